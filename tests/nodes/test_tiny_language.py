"""Load Tiny Language Model in a real ComfyUI, with random weights."""

import pytest

from spatialweave.models.spatial_fusion.language import tokenize_words

pytestmark = pytest.mark.comfyui
FILE = "inside_tiny_language.py"


def test_cores_class_gives_the_keys_and_values_of_transformers(inside):
    seen = inside(FILE, "two_hosts")
    assert seen["gap"] < 1e-4 and seen["hidden"] < 1e-4 and seen["spread"] > 0.05, seen
    assert seen["layers"] == [0, 1, 3, 4]
    assert seen["lengths"] == [13, 2] and seen["shape"] == [1, 13, 128] and not seen["notes"]


def test_spatial_depth_runs_over_it(inside):
    seen = inside(FILE, "depth")
    assert seen["shape"] == [1, 24, 32] and seen["weighted"] == 0 and seen["other"] > 1e-4, seen
    assert "Weights of words" in " ".join(seen["notes"])


def test_any_text_is_read(inside):
    seen = inside(FILE, "texts")
    red_ball = tokenize_words(["red ball"])[0]
    unknown = tokenize_words(["a zebra"])[0]
    assert seen["ids"] == {
        "": [0], "red (ball:1.5)": red_ball, "a zebra": unknown, "a " * 40: [unknown[0]] * 24,
    }  # fmt: skip
    assert seen["weights"] == [1.0, 1.5] and seen["finite"] and seen["weighted"] > 1e-3
    assert seen["shapes"] == [[1, 1, 128], [1, 3, 128], [1, 3, 128]]


def test_wrong_and_missing_files_are_refused_by_what_they_are(inside):
    seen = inside(FILE, "refused", name="adapter.safetensors")
    assert "Expected a tiny language model of SpatialWeave" in seen["error"] and seen["checked"] is True
    assert "got SpatialWeave's depth adapter" in seen["error"]
    seen = inside(FILE, "refused", name="missing.safetensors")
    assert seen["error"] == seen["checked"] and "got no such file. Put a tiny language model" in seen["error"]
