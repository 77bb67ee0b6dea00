"""Core's KSampler on our MODEL against our own sampler in plain torch: same files, same seed,
same numbers.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_sampling.py"


@pytest.fixture(scope="module")
def sampling(inside, tiny_weights):
    inside(FILE, "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.mark.parametrize("steps", [1, 4, 10, 12, 20, 25, 28, 30, 50])
def test_scheduler_simple_is_the_published_schedule(sampling, steps):
    assert sampling("schedule_table", steps=steps) <= 2e-7


def test_scheduler_simple_is_near_the_published_schedule_for_other_step_counts(sampling):
    assert max(sampling("schedule_table", steps=steps) for steps in (11, 13, 17, 23)) < 1.2e-4


@pytest.mark.parametrize(
    ("log2_alpha", "cfg", "batch"),
    [(None, 1.0, 1), (None, 4.0, 2), (5.0, 4.0, 1), (-6.0, 1.0, 2)],
    ids=["plain", "guided", "image first", "depth first"],
)
def test_ksampler_agrees_with_plain_torch(sampling, log2_alpha, cfg, batch):
    result = sampling("joint_agreement", log2_alpha=log2_alpha, cfg=cfg, batch=batch, steps=5)
    assert result["difference"] < 1e-4
    assert result["size"] > 0.1, "a comparison of zeros would prove nothing"
    assert result["shapes"] == [[batch, 32, 4, 3], [batch, 1, 64, 48]]


@pytest.mark.parametrize("mode", ["image_to_depth", "depth_to_image"])
def test_a_masked_stream_is_given(sampling, mode):
    """Its time is 0 for the network, and its bits come back."""
    result = sampling("given_stream", mode=mode)
    assert result["bit_equal"]
    assert result["difference"] < 1e-4


def test_a_masked_stream_keeps_its_bits_under_another_sampler(sampling):
    assert sampling("given_stream", mode="depth_to_image", sampler="dpmpp_2m")["bit_equal"]


def test_only_part_of_a_stream_can_be_kept(sampling):
    result = sampling("partly_given")
    assert result["kept_bit_equal"] and result["rest_sampled"] and result["finite"]


def test_sampling_in_part_starts_from_the_latent(sampling):
    """denoise below 1 noises both streams, the depth to its own level."""
    assert sampling("partial_denoise", log2_alpha=3.0) < 1e-4


def test_stock_samplers_serve(sampling):
    names = ["dpmpp_2m", "dpmpp_sde", "uni_pc", "heun", "lcm", "res_multistep", "euler_ancestral", "ddim"]
    assert (
        sampling("stock_samplers", samplers=names)
        == {name: [[2, 32, 4, 4], [2, 1, 64, 64]] for name in names}
    )


@pytest.mark.parametrize("patch", ["ModelSamplingFlux", "ModelSamplingSD3"])
def test_cores_shift_patches_keep_the_times_right(sampling, patch):
    """They count timesteps to 1 and to 1000; the network must see the same times."""
    assert sampling("patched_shift", patch=patch) < 1e-4


def test_core_loras_reach_the_network_and_leave_it(sampling):
    assert sampling("lora", strength=1.0)["moved"] > 1e-3
    assert sampling("lora", strength=0.0) == {"moved": 0.0, "restored": 0.0}


def test_a_file_in_the_released_form_is_hosted(sampling, tmp_path):
    result = sampling("released_layout", path=str(tmp_path / "model.safetensors"))
    assert result["difference"] < 1e-4
    assert result["format"] == "Flux2" and result["shapes"] == [[1, 128, 4, 3], [1, 1, 64, 48]]


def test_precision_of_the_carried_depth_does_not_depend_on_the_network(sampling):
    """In bfloat16 the depth must not inherit the rounding of the latent it is carried in."""
    assert sampling("bfloat16_depth", log2_alpha=5.0) < 0.05
