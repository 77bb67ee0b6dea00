"""The tiny editor in a real ComfyUI, with random weights: as core objects, and a graph of stock nodes against
the pipeline in plain torch.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_tiny_editor.py"


def test_it_is_made_of_cores_own_classes(inside):
    found = inside(FILE, "as_core_objects")
    assert found["classes"] == [True, True, "TinyCodec"] and found["type"] == "FLUX"
    assert found["dtypes"] == ["torch.float32"] and found["sizes"] == [32, 16, 16]
    assert found["shift"] == 0.7 and found["preview"] == [3] * 32 and found["again"] == 0


def test_a_stock_sampler_gives_the_edit_of_the_pipeline(inside):
    found = inside(FILE, "against_pipeline")
    for name in ("editor", "editor and LoRA", "all"):
        seen = found[name]
        assert seen["latent"] < 1e-4 and seen["image"] < 1e-4, (name, seen)
        assert seen["size"] > 0.1 and seen["shape"] == [1, 128, 128, 3], (name, seen)
    changes = ("LoRA changes", "tokens change", "instruction changes", "reference changes")
    assert min(found[name] for name in changes) > 2e-3, found


def test_the_lora_is_the_one_that_cores_loader_would_patch_in(inside):
    found = inside(FILE, "by_cores_lora_loader")
    assert found["gap"] == 0 and found["change"] > 1e-2, found


def test_a_batch_of_another_size_runs(inside):
    found = inside(FILE, "batches_and_sizes")
    assert found == {"latent": [2, 32, 6, 8], "image": [2, 96, 128, 3], "finite": True}


def test_previews_show_the_images_colors(inside):
    found = inside(FILE, "previews")
    assert found["gap"] < 0.25 * found["spread"], found


def test_bad_input_is_a_sentence_with_the_remedy(inside):
    said = inside(FILE, "refusals")
    assert said.pop("empty") is None
    expected = {
        "unknown word": ("the tiny editor's words", "'dog'"),
        "near word": ("the tiny editor's words", "'redd' (nearest: 'red')"),
        "too long": ("at most 16 words",),
        "no object": ("names an object",),
        "layer": ("CLIP Set Last Layer",),
        "no reference": ("reference latent", "got none", "Reference Latent"),
        "Kontext's connector": ("Flux-Kontext of width 160", "of width 96", "trained with this model"),
        "tiny connector on another editor": ("Flux-Kontext of width 64", "of width 160"),
        "tokens of another image": ("128 x 128 pixels", "128 x 64", "VAE Encode"),
        "start after end": ("start_percent below end_percent", "0.6 and 0.4"),
        "2 for 3": ("3 images of the batch", "got 2"),
        "no editor file": ("tiny_editor.safetensors",),
        "no connector file": ("tiny_connector.safetensors",),
    }
    assert set(said) == set(expected)
    for name, words in expected.items():
        assert said[name] and "Expected" in said[name] and said[name].endswith("."), f"{name}: {said[name]}"
        assert all(word in said[name] for word in words), f"{name}: {said[name]}"
