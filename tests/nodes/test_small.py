"""File names, disks and latents that cannot be what was meant: one sentence each, and no files that nobody
finds.
"""

import pytest

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def small(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside("inside_small.py", function, **kwargs)


@pytest.mark.parametrize(("kind", "suffix"), [("depth", "exr"), ("latent", "joint.safetensors")])
def test_a_prefix_without_a_name_or_below_a_file_is_refused(small, tmp_path, kind, suffix):
    found = small("prefixes", folder=str(tmp_path), kind=kind)
    for prefix in ("", " ", ".", "./"):
        assert found["said"][prefix] == (
            f"Expected a file name in filename_prefix, got {prefix!r}, which would give a hidden file. Give "
            "a name, or a folder and a name."
        )
    reason = "a part of this path is a file, not a folder; choose another folder."
    assert found["said"]["taken/x"].startswith("Cannot write ") and found["said"]["taken/x"].endswith(reason)
    assert found["said"]["fine"] is None and found["said"]["below/fine"] is None
    assert found["files"] == [f"below/fine_00001_.{suffix}", f"fine_00001_.{suffix}"]


def test_a_full_temporary_folder_is_one_sentence_and_keeps_nothing_of_the_preview(small, tmp_path):
    found = small("full_temporary_folder", folder=str(tmp_path))
    reason = "the disk is full; free some space or choose another disk."
    assert found["said"] == f"Cannot write {tmp_path / 'preview.png'}: {reason}"
    assert found["left"] == ["kept.png"]


def test_latents_that_do_not_fit_say_what_does(small):
    said = small("latents")
    assert said["two depths"].startswith("Expected an image's latent at image_latent, got a depth's, (1, 1,")
    assert "Connect the image_latent of Split Joint Latent" in said["two depths"]
    assert "that a latent was sampled by a KSampler" in said["unsampled"]
