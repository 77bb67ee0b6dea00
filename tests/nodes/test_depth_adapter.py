"""Depth Adapter in a real ComfyUI, on small random models of core's classes."""

import functools

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_depth_adapter.py"
# of the result's size: float32 through three steps; SD's input is scaled down by up to 15 and back
CLOSE = {"sd15": 3e-5, "sd21_v": 3e-5, "sdxl": 3e-5}
FAMILIES = ["sd15", "sd21_v", "sdxl", "flux", "flux_inpaint", "flux2", "omnigen2", "qwen", "joy"]


def limit(kind, size):
    return CLOSE.get(kind, 1e-5) * max(1.0, size)


@pytest.fixture(scope="module")
def family(inside):
    """What is seen of each kind, once for both tests."""
    return functools.cache(lambda kind: inside(FILE, "family", kind=kind))


@pytest.mark.parametrize("kind", FAMILIES)
def test_depth_adapter_adds_f_where_the_network_reads_the_latent(family, kind):
    seen = family(kind)
    assert seen["gap"] < limit(kind, seen["size"]) and seen["without CFG"] < limit(kind, seen["size"])
    assert seen["change"] > 100 * seen["gap"] and seen["change"] > 0.05, "F changes nothing"
    assert seen["shape"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_depth_adapter_of_zeros_and_strength_zero_are_bit_equal_to_the_base(family, kind):
    seen = family(kind)
    assert seen["an adapter of zeros"] and seen["strength 0"] and seen["base again"]


@pytest.mark.parametrize("kind", ["sd15", "flux", "omnigen2", "qwen"])
def test_depth_adapter_holds_in_every_sampler(inside, kind):
    names = ["dpmpp_2m", "heun", "uni_pc", "ddim", "euler_ancestral", "lcm"]
    seen = inside(FILE, "samplers", kind=kind, names=names)
    assert set(seen) == set(names) and max(seen.values()) < 1e-4, seen


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux", "flux2", "omnigen2", "qwen", "joy"])
def test_depth_adapter_and_lora_go_together_in_either_order(inside, kind):
    seen = inside(FILE, "lora", kind=kind)
    assert seen["gap"] < limit(kind, seen["size"]) and seen["lora"] > 1e-3


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux", "omnigen2", "qwen", "joy"])
def test_depth_adapter_is_cropped_to_a_prompts_area(inside, kind):
    seen = inside(FILE, "areas", kind=kind)
    assert seen["area"] < 1e-4 and seen["mask"] < 1e-4
    assert seen["area matters"] > 1e-3 and seen["mask matters"] > 1e-5


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_depth_adapter_and_controlnet_add_up(inside, kind):
    seen = inside(FILE, "control", kind=kind)
    assert seen["gap"] < limit(kind, seen["size"]) and seen["control"] > 1e-3


@pytest.mark.parametrize("kind", ["sd15", "flux", "omnigen2", "joy"])
def test_depth_adapter_keeps_what_a_noise_mask_keeps(inside, kind):
    seen = inside(FILE, "inpainting", kind=kind)
    assert seen["kept"] < 1e-5 and seen["gap"] < limit(kind, seen["size"]) and seen["change"] > 0.05


def test_depth_adapter_reaches_the_image_stream_of_a_joint_latent(inside):
    seen = inside(FILE, "joint")
    assert seen["streams"] == 2 and seen["gap"] < 1e-4 * max(1, seen["size"]) and seen["image"] > 0.05
    assert seen["base again"]


def test_depth_adapter_is_on_from_start_to_end_at_the_running_models_sigmas(inside):
    seen = inside(FILE, "schedule")
    assert seen["all"] == [True] * 4 and seen["nothing"] == [False] * 4
    # of the times 1, .75, .5, .25 those down to 1 - .6
    assert seen["first part"] == [True, True, True, False] and seen["last part"] == [
        False,
        False,
        False,
        True,
    ]
    # a shift of 5 moves the sigmas and the limit alike, whichever node comes first
    assert seen["shifted after"] == seen["shifted before"] == [True, True, True, False]


def test_depth_adapters_stack_and_f_is_computed_once(inside):
    seen = inside(FILE, "stacking")
    assert max(seen["both"], seen["twice"]) < limit("omnigen2", seen["size"])
    assert seen["row 0 masked out"] < 1e-6 and seen["black"] and seen["computed"] == 1
    assert seen["masked"] < limit("omnigen2", seen["size"])


def test_depth_adapter_follows_the_latents_size_and_the_framing(inside):
    seen = inside(FILE, "sizes")
    assert max(seen.values()) < 1e-4, seen


def test_depth_adapter_works_under_a_guider_of_three_prompts(inside):
    seen = inside(FILE, "guiders")
    assert seen["gap"] < limit("omnigen2", seen["size"]) and seen["change"] > 0.05


def test_depth_adapter_leaves_the_base_bit_equal_after_a_cancelled_run(inside):
    assert all(inside(FILE, "cancel").values())


def test_depth_adapter_files_load_in_any_precision_and_others_are_refused_by_name(inside, tmp_path):
    seen = inside(FILE, "files", folder=str(tmp_path / "adapters"))
    gaps = seen["gaps"]
    assert gaps["float32"] == 0 and gaps["float16"] < 2e-3 and gaps["bfloat16"] < 2e-2 and seen["config"]
    said = seen["said"]
    for name, words in {
        "lora": ("Expected a depth adapter", "a LoRA, a patch for another model"),
        "part": ("1 tensors missing", "out.bias"),
        "other": ("config of a depth adapter", "stride"),
        "nan": ("finite numbers in out.bias", "NaN"),
        "text": ("text.safetensors",),
        "missing": ("models/model_patches", "none.safetensors"),
    }.items():  # fmt: skip
        assert all(word in said[name] for word in words), said[name]


def test_depth_adapter_bad_input_is_a_sentence_with_the_remedy(inside):
    said = inside(FILE, "refusals")
    for name, words in {
        "another latent": ("SDXL latents of 4", "got Omnigen2 with Flux latents of 16 channels", "Load"),
        "same channels": ("Wan21 latents", "Flux latents"),
        "audio": ("image or a video", "StableAudio1"),
        "no valid pixel": ("Expected a valid pixel", "depth map 0 of 1"),
        "start after end": ("start_percent at most end_percent", "0.7 and 0.2"),
        "aspect": ("aspect, 96 x 64 pixels, got one of 64 x 64", "crop, pad or stretch"),
        "counts": ("Expected 3 depth maps", "for 3 images", "got 2"),
        "mask counts": ("Expected 2 depth maps or masks", "got 3"),
        "masks for views": ("Expected 2 masks", "got 3"),
        "cropped to nothing": ("to which it is cropped", "pad or stretch"),
        "no model": ("Expected a MODEL",),
    }.items():  # fmt: skip
        assert said[name] and all(word in said[name] for word in words), (name, said[name])
