"""Joint latents as data: taken apart, joined, written and read, in a real ComfyUI."""

import json

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_latents.py"


@pytest.fixture(scope="module")
def latents(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


def test_apart_and_together_again_changes_no_bit(latents):
    result = latents("taken_apart")
    assert result["same"]
    assert result["pixels"] == [2, 64, 48, 3] and result["flipped"] == [2, 32, 4, 3]


def test_joining_takes_masks_sizes_and_batches_along(latents):
    assert latents("joined", case="batch of one") == {
        "shapes": [[3, 32, 4, 3], [3, 1, 64, 48]],
        "size": [50, 40],
        "masks": [1, 0],
    }
    assert latents("joined", case="encoded") == {
        "shapes": [[1, 32, 4, 3], [1, 1, 64, 48]],
        "size": [50, 40],
        "masks": [1, 0],
    }


def test_a_size_is_scaled_with_the_latents_and_no_padding_shows(latents):
    result = latents("joined", case="scaled")
    assert result["shapes"] == [[1, 32, 8, 6], [1, 1, 128, 96]] and result["size"] == [100, 80]
    assert latents("decoded_size", case="scaled") == [[1, 100, 80, 3], [1, 100, 80]]


def test_a_size_that_no_longer_holds_is_dropped(latents):
    result = latents("joined", case="stretched")
    assert result["shapes"] == [[1, 32, 4, 6], [1, 1, 64, 96]] and result["size"] == []
    assert latents("decoded_size", case="stretched") == [[1, 64, 96, 3], [1, 64, 96]]


def test_what_is_saved_is_loaded_bit_for_bit(latents, tmp_path):
    result = latents("saved_and_loaded", folder=str(tmp_path))
    assert result["same"] and result["samples"]
    assert result["files"] == ["joint_00001_.joint.safetensors", "joint_00002_.joint.safetensors"]
    assert result["listed"] == [f"latents/{name} [output]" for name in result["files"]]
    assert result["metadata"]["spatialweave"] == "joint latent"
    assert json.loads(result["metadata"]["spatialweave_size"]) == [50, 40]
    assert json.loads(result["metadata"]["workflow"]) == {"nodes": []} and json.loads(
        result["metadata"]["prompt"]
    )
    assert result["prints"] == [64, 64]


def test_whatever_was_saved_can_be_chosen(latents, tmp_path):
    """Save Joint Latent's prefix may name any folder in the output folder."""
    result = latents("saved_deep", folder=str(tmp_path))
    assert result["listed"] == [
        "given.joint.safetensors",
        "a/b/joint_00001_.joint.safetensors [output]",
        "top_00001_.joint.safetensors [output]",
    ]
    assert result["same"] == [True, True]


def test_any_size_can_be_asked_for_in_the_browser(latents):
    """It rounds what is typed to the step; the padding to whole patches is ours."""
    assert latents("steps_of_the_size") == {"width": 1, "height": 1}


REFUSALS = {
    "plain latent split": ["plain latent (1, 32, 4, 3)", "without a depth"],
    "joint latent joined": ["at image_latent", "Split Joint Latent"],
    "sizes that do not fit": ["does not cover the same image"],
    "batches that do not fit": ["2 images and 3 depth maps", "equally many"],
    "plain latent saved": ["plain latent", "without a depth"],
    "another file": ["got a LoRA", "Save Joint Latent"],
    "a file that is gone": ["gone.joint.safetensors, got no file of this name"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_joint_latent_is_refused_with_the_remedy(latents, case, tmp_path):
    sentence = latents("refused", case=case, folder=str(tmp_path))
    assert sentence and sentence.count(". ") <= 1 and "\n" not in sentence
    assert not [part for part in REFUSALS[case] if part not in sentence], sentence
