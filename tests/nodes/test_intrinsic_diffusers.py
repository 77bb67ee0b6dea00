"""Core's small models and diffusers' with the same weights and LoRA sample alike."""

import pytest

pytestmark = pytest.mark.comfyui


@pytest.mark.parametrize("kind", ["sd21", "sdxl", "pixart"])
@pytest.mark.parametrize("schedule", ["gaussian", "drop", "half"])
def test_diffusers_with_our_processors_agrees(inside, kind, schedule):
    result = inside("inside_intrinsic_diffusers.py", "agreement", kind=kind, schedule=schedule)
    if result is None:
        pytest.skip("diffusers is not installed, so its processors were NOT tested: pip install -e .[train]")
    assert result["gap"] < 1e-4 and result["size"] > 0.1
    assert result["names"] and result["numbers"], "both hosts must count layers alike"
