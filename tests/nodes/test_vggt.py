"""VGGT's nodes in a real ComfyUI, with small random files."""

import functools

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_vggt.py"


@pytest.fixture(scope="module")
def vggt(inside, tmp_path_factory):
    """Call a function inside ComfyUI, each only once and with a folder of its own."""
    return functools.cache(
        lambda function: inside(FILE, function, folder=str(tmp_path_factory.mktemp(function) / "geometry"))
    )


def test_vggt_reconstruct_gives_one_view_for_each_image_as_the_pipeline_does(vggt):
    seen = vggt("reconstruct")
    assert (
        seen["depth"] == [3, 40, 61]
        and seen["units"] == "relative"
        and seen["valid"]
        and seen["confident"] > 1
    )
    assert seen["plain"] < 1e-5 and seen["chunked"] < 1e-5 and seen["deviates"] > 1e-3
    assert seen["image"] and seen["transparent"] == 0
    assert seen["loaded"], "the network is not in core's memory management"
    assert (
        "3 views at 56 x 42 pixels" in seen["notes"]
        and "GB free on" in seen["notes"]
        and "GB of main memory" in seen["notes"]
    )
    assert "View 0's camera is the common frame" in seen["notes"] and "alpha" in seen["notes"]


def test_vggt_first_view_is_the_frame_and_principal_points_count_in_the_images_pixels(vggt):
    seen = vggt("reconstruct")
    # the first camera's frame, turned y up
    expected = [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
    assert all(abs(a - b) < 1e-5 for row, want in zip(seen["first"], expected) for a, b in zip(row, want))
    for matrix in seen["intrinsics"]:
        # the middle, and half of a network's pixel of VGGT's own convention: 56 of its pixels are 61 of the
        # image's
        assert abs(matrix[0][2] - (30.5 + 0.5 * 61 / 56)) < 1e-3
        # the image's 37 network rows lie two below the top of 42: half a row off the middle
        assert abs(matrix[1][2] - (20 + (0.5 + 0.5) * 40 / 37)) < 1e-3


def test_vggt_views_go_through_comfyuis_own_nodes(vggt):
    seen = vggt("reconstruct")
    assert seen["mode"] == "multiview" and seen["shown"] == [3, 40, 61, 3] and seen["vertices"] > 1000


def test_vggt_point_head_becomes_depth_by_each_camera(vggt):
    seen = vggt("point_source")
    assert seen["gap"] < 1e-5 and seen["mask"] and seen["known"] > 0.05


def test_vggt_geometry_tokens_are_the_last_entry_with_its_grid(vggt):
    seen = vggt("tokens")
    assert (
        seen["shape"] == [2, 5 + 3 * 4, 128]
        and seen["special"] == 5
        and seen["grid"] == [3, 4]
        and seen["size"] == [40, 61]
    )
    assert seen["gap"] < 1e-5 and "2 x 17 tokens of 128 channels" in seen["notes"]


def test_vggt_result_has_the_images_size_whatever_it_is(vggt):
    seen = vggt("sizes")
    for name, (count, height, width) in {
        "one": (1, 56, 56), "odd": (2, 101, 51), "wide": (1, 14, 300), "8 px": (2, 8, 8),
        "200": (200, 16, 16),
    }.items():  # fmt: skip
        for fit in ("pad", "crop")[: 1 if count > 99 else 2]:
            found = seen[f"{name} {fit}"]
            assert found["depth"] == [count, height, width], name
            assert (found["holes"] > 0.3) == (name == "odd" and fit == "crop"), f"{name} {fit}"
            # the middle of the network's image, but for rounding to its pixels: at most one of them
            x, y = found["middle"]
            pixel = max(height, width) / (28 if count > 99 else 56)
            assert abs(x - width / 2) <= 1.1 * pixel and abs(y - height / 2) <= 1.1 * pixel, found
    assert "cropped above and below" in seen["odd crop"]["notes"]


def test_vggt_cancel_stops_within_the_views_and_leaves_the_next_run_as_it_was(vggt):
    seen = vggt("cancel")
    # each block, and each view of the dense head; core checks within its attention besides
    parts = 2 + 2 * 4 + 3
    assert seen["checks"] >= parts and seen["bar"] == [parts, parts]
    assert seen["stopped"] and seen["same"]


def test_vggt_bad_input_is_a_sentence_with_the_remedy(vggt):
    said = vggt("refusals")
    for name, words in {
        "MoGe's file": ("MoGe", "Expected a VGGT network", "vggt_1b.safetensors"),
        "Depth Anything's file": ("Depth Anything", "Expected a VGGT network"),
        "half a file": ("half.safetensors", "cut off"),
        "tensors missing": ("lacks.safetensors", "missing (first: aggregator.global_blocks.1.mlp"),
        "NaN in the file": ("aggregator.camera_token", "NaN"),
        "no such file": ("vggt_1b.safetensors", "models/geometry_estimation", "CC BY-NC"),
        "no depth head": ("Expected a VGGT network with a depth head", "camera, point"),
        "no camera head": ("Expected a VGGT network with a camera head",),
        "overflow": ("Expected finite depth", "bfloat16"),
        "201 views": ("Expected 1 to 200 views", "201", "Set every to 2"),
        "longer side": ("Expected a longer side of 14 to 2048", "got 9"),
        "VGGT's file in Load Modality Forcing": (
            "SpatialWeave's VGGT network",
            "Expected a Modality Forcing network",
        ),
        "VGGT's file in Load Intrinsic VAE": ("VGGT",),
        "not a network": ("Load VGGT",),
        "NaN colors": ("NaN or infinite",),
        "black": ("Views 0, 1: one color all over", "View 1: equal to an earlier view"),
        "equal": ("Views 1, 2: equal to an earlier view",),
    }.items():
        assert said[name] and all(word in said[name] for word in words), f"{name}: {said[name]}"
        assert "Traceback" not in said[name]


def test_vggt_full_memory_names_the_views_and_what_to_change(vggt):
    said = vggt("memory_full")
    assert "reconstruct 2 views of 56 x 42 pixels" in said and "fewer views" in said and "longer_side" in said


def test_vggt_runs_with_its_weights_cast_layer_by_layer(vggt):
    seen = vggt("lowvram")
    assert seen["lowvram"] and seen["gap"] < 1e-5 and seen["again"] < 1e-5, seen


def test_vggt_loader_shows_the_license_and_leaves_tracking_out(vggt):
    said = vggt("licenses")
    commercial = " ".join(said["vggt_1b_commercial.safetensors"])
    assert "VGGT licence: commercial use allowed, military use excluded" in commercial
    assert "1 tensors of track_head.* are left out" in commercial
    assert "license unknown" in said["ours.safetensors"][0]
    assert said["tiny (shipped with the pack)"] == []


def test_vggt_body_in_bfloat16_keeps_heads_in_float32(vggt):
    seen = vggt("bfloat16_body")
    assert seen["dtypes"]["aggregator"] == "torch.bfloat16"
    assert {seen["dtypes"][f"{head}_head"] for head in ("camera", "depth", "point")} == {"torch.float32"}
    assert 0 < seen["relative"] < 0.05 and 0 < seen["pose"] < 0.1


def test_vggt_tiny_network_is_the_default_and_sees_a_scene(vggt):
    seen = vggt("tiny_scene")
    assert seen["default"] == "tiny (shipped with the pack)"
    assert seen["rotation"] < 10 and seen["error"] < 0.15, seen
    assert "no other view sees the same surface" not in seen["notes"] and "FusedCloud" in seen["outputs"]


def test_vggt_takes_every_nth_frame_of_a_video(vggt):
    seen = vggt("video")
    assert seen["equal"] and seen["notes"].startswith("3 of 7 images, every = 3."), seen
    assert seen["saved"] == [3, 40, 60]
    assert seen["said"] == "Expected 1 to 200 views of one scene, got 201. Set every to 2 or more."
