"""A saved choice whose file is not there gets our sentence, not core's "Value not in list"."""

import pytest

pytestmark = pytest.mark.comfyui
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}}


def test_a_missing_vae_or_lora_of_intrinsic_maps_is_named_with_what_to_do(inside):
    vae = {
        "1": {"class_type": "SpatialWeave_LoadIntrinsicVae", "inputs": {"vae_name": "gone.safetensors"}},
        "2": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 0]}},
        "3": {
            "class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1},
        },
        "4": SAVE,
    }
    lora = {
        "1": {"class_type": "SpatialWeave_LoadTinyDiffusion", "inputs": {}},
        "2": {
            "class_type": "SpatialWeave_IntrinsicCoGeneration",
            "inputs": {
                "model": ["1", 0], "lora_name": "gone.safetensors", "schedule": "off", "cut_below": 0.0,
                "keep_maps": False, "share_image_loras": False,
            },
        },
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    said = inside("inside_missing_files.py", "said_of", graphs={"vae": vae, "lora": lora})
    for kind, folder in (("vae", "vae"), ("lora", "loras")):
        (sentence,) = {text.partition(" - ")[2] for text in said[kind]}
        start = f"Expected gone.safetensors in ComfyUI's models/{folder}, got no such file. Copy it there"
        assert sentence.startswith(start) and "'tiny (shipped with the pack)'" in sentence
        assert not any("not in" in text for text in said[kind]), said
