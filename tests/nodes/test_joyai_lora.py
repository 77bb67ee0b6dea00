"""A LoRA of our trainer in a real ComfyUI, through its stock loaders, on JoyImage in bfloat16 and in int8."""

import pytest

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    return str(tmp_path_factory.mktemp("joyai_lora"))


@pytest.mark.parametrize("file", ["joy_bf16.safetensors", "joy_int8.safetensors"])
def test_core_with_the_lora_is_the_network_that_was_trained(inside, folder, file):
    """All 16 layers are found, and the LoRA's change is many times the error of the precision."""
    seen = inside("inside_joyai_lora.py", "loaded", folder=folder, name=file)
    assert seen["kind"] == "JoyImage" and seen["patches"] == 16 and seen["quantized"] == 16
    assert seen["base"] < 0.02 and seen["trained"] < 0.02 and seen["change"] > 0.2, seen
    assert seen["sampled"]
