"""The tiny latent diffusion model as core objects, with random weights;
the shipped ones are tested in tests/models/intrinsic_ldm.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_tiny_diffusion.py"


def test_it_is_made_of_cores_own_classes(inside):
    found = inside(FILE, "as_core_objects")
    assert found["classes"] == ["UNetModel", "AutoencoderKL", "BaseModel"] and found["type"] == "V_PREDICTION"
    assert (
        found["dtypes"] == ["torch.float32"]
        and found["scale"] == pytest.approx(0.7)
        and found["sizes"] == [8, 8, 8]
    )
    assert found["again"] == 0 and found["preview"] == [3] * 8


def test_diffusers_with_the_same_weights_agrees(inside):
    found = inside(FILE, "against_diffusers")
    if found is None:
        pytest.skip(
            "diffusers is not installed, so the tiny UNet was NOT compared with it: pip install -e .[train]"
        )
    assert found["keys"] == "<All keys matched successfully>" and found["size"] > 0.1
    assert found["unet"] < 1e-4 and found["latent"] < 1e-4 and found["decoded"] < 1e-4


def test_prompts_go_through_cores_clip(inside):
    found = inside(FILE, "prompts")
    assert found["gap"] < 1e-5 and found["size"] > 0.1 and found["shape"] == [1, 24, 64]


def test_a_stock_sampler_takes_a_stock_empty_latent(inside):
    found = inside(FILE, "sampled")
    assert found == {"shape": [2, 8, 16, 16], "finite": True, "picture": [2, 128, 128, 3]}


def test_another_file_is_called_by_its_name(inside):
    text = inside(FILE, "wrong_file")
    assert "tiny image codec" in text and "Use the file that ships" in text
