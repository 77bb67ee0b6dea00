"""The pipeline on a small random network: memory savings change no number, cameras fit their pixels,
notes say what is doubtful.
"""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from spatialweave.models.core.geometry.camera import (
    invert_pose,
    pad_pose,
    transform_points,
    unproject,
    upright_world,
)
from spatialweave.models.core.geometry.points import depth_to_points
from spatialweave.models.vggt.config import PRESETS
from spatialweave.models.vggt.memory import count_sequence_tokens, estimate_memory, taps_bytes
from spatialweave.models.vggt.pipeline import VggtPipeline
from spatialweave.models.vggt.pose_code import decode_poses, relative_to_first
from spatialweave.models.vggt.weights import save_network


def published_way(network, images):
    """Every entry kept, all views through the dense head at once, attention whole:
    the published order of things.
    """
    encoded = network.aggregator(images, range(network.config.depth))
    return encoded, network.predict(encoded, images.shape[-2:], views_at_once=0).depth


def test_taps_alone_and_views_one_by_one_give_the_published_numbers(small):
    images = torch.rand(1, 32, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    encoded, depth = published_way(small, images)
    with torch.no_grad():
        found = small(images, queries=50)
    assert len(encoded.layers) == 4
    assert (found.depth - depth).abs().max() < 1e-5
    assert all(
        (a - b).abs().max() < 1e-5 for a, b in zip(found.poses, small.predict(encoded, (28, 42)).poses)
    )


def test_four_taps_of_24_are_a_sixth_and_32_views_fit_well_below_the_published_memory():
    config, size = PRESETS["vggt_1b"], (518, 518)
    # float32 of every entry, which the published code keeps
    kept = 4 * config.depth * config.layer_dim * count_sequence_tokens(config, 32, size)
    assert abs(kept / 1e9 - 8.6) < 0.1 and abs(taps_bytes(config, 32, size) / 1e9 - 1.44) < 0.02
    rest = estimate_memory(config, 32, size) - taps_bytes(config, 32, size)
    assert estimate_memory(config, 32, size) < 0.6 * (kept + rest)


def test_views_hold_the_published_points(small, images):
    """A VIEW's depth through its own camera, pixel centers at +0.5,
    against the published unprojection at whole numbers.
    """
    square = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(56, 56)).movedim(1, -1)
    pipeline = VggtPipeline(small, small.config)
    view = pipeline(square).view
    with torch.no_grad():
        said = small(square.movedim(-1, 1)[None])
    pose, lens = (part[0] for part in decode_poses(said.poses[-1], (56, 56)))
    corners = (
        torch.cartesian_prod(torch.arange(56.0), torch.arange(56.0))
        .flip(-1)
        .view(56, 56, 2)
        .expand(3, -1, -1, -1)
    )
    to_world = invert_pose(pad_pose(relative_to_first(pose[None])[0]))
    expected = transform_points(unproject(corners, said.depth[0], lens), to_world)
    # the VIEW's world is the first camera's frame, turned y up
    points = transform_points(depth_to_points(view.depth, view.intrinsics), invert_pose(view.world_to_cam))
    assert (points * torch.tensor([1.0, -1, -1]) - expected).abs().max() < 1e-4
    assert torch.allclose(view.world_to_cam[0], upright_world(torch.eye(4)), atol=1e-6)


def test_pixel_center_of_the_network_is_kept(small, images):
    square = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(56, 56)).movedim(1, -1)
    view = VggtPipeline(small, replace(small.config, pixel_center=0.5))(square).view
    assert torch.allclose(view.intrinsics[:, :2, 2], torch.full((3, 2), 28.0))


def test_images_of_several_sizes_and_sources_give_a_view_each_at_its_size(small, tmp_path):
    grey = Image.effect_noise((30, 50), 80)
    rgba = Image.effect_mandelbrot((61, 40), (-2, -1.5, 1, 1.5), 30).convert("RGBA")
    result = VggtPipeline(small, small.config)([grey, rgba, torch.rand(20, 90, 3)])
    assert [tuple(view.depth.shape) for view in result.views] == [(1, 50, 30), (1, 40, 61), (1, 20, 90)]
    assert all(view.mask.all() and view.intrinsics is not None for view in result.views)
    assert (
        any("one channel was used for red, green and blue" in note for note in result.notes)
        and any("alpha" in note for note in result.notes)
    )
    with pytest.raises(ValueError, match="Expected images of one size"):
        _ = result.view


def test_order_of_the_views_matters_and_is_said(small, images):
    pipeline = VggtPipeline(small, small.config)
    forward, backward = pipeline(images), pipeline(images.flip(0))
    assert (forward.view.depth - backward.view.depth.flip(0)).abs().max() > 1e-4
    assert any("View 0's camera is the common frame" in note for note in forward.notes)


def test_tokens_of_the_last_entry_without_any_head(small, build, images):
    config = replace(small.config, heads=())
    network = build(config)
    tokens = VggtPipeline(network, config).encode(images)
    assert (
        tokens.tokens.shape == (3, 5 + 3 * 4, 128)
        and tokens.grid == (3, 4)
        and tokens.frames[0].size == (40, 61)
    )
    with pytest.raises(ValueError, match="Expected a VGGT network with a camera head, got one with none"):
        VggtPipeline(network, config)(images)


def test_doubtful_views_are_named(small, images):
    pipeline = VggtPipeline(small, small.config)
    small.depth_head.scratch.output_conv2[2].bias[1] = -9.0
    notes = pipeline(images).notes
    assert any("Views 0, 1, 2: low confidence" in note for note in notes)
    small.depth_head.scratch.output_conv2[2].bias[1] = 3.0
    assert not any("low confidence" in note for note in pipeline(images).notes)


def test_views_that_share_no_surface_are_named():
    """Two cameras side by side, one that looks the other way,
    and one beside them that sees a surface of another color there.
    """
    from spatialweave.models.core.geometry.view import View
    from spatialweave.models.vggt.notes import describe_views

    lens = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]])
    beside, away = torch.eye(4), torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    beside[0, 3] = -0.3
    views = [
        View.from_depth(
            torch.full((30, 40), 2.0), units="relative", intrinsics=lens, world_to_cam=pose,
            confidence=torch.full((30, 40), 4.0),
            image=torch.full((30, 40, 3), grey),
        )
        for pose, grey in ((torch.eye(4), 0.5), (beside, 0.45), (away, 0.5), (beside, 0.9))
    ]  # fmt: skip
    notes = describe_views(views)
    assert len(notes) == 1 and notes[0].startswith("Views 2, 3: no other view sees the same surface")
    assert describe_views(views[:2]) == ()


def test_a_part_is_reported_for_each_block_and_each_view(small, images):
    counted = []
    VggtPipeline(small, small.config)(images, on_part=lambda: counted.append(1))
    assert len(counted) == small.count_parts(3, ("camera", "depth")) == 2 + 2 * 4 + 3


def test_the_note_on_a_held_lens_is_whole(small, images):
    small.camera_head.pose_branch.fc2.bias[7:] = -9.0  # fields of view of 0
    small.camera_head.pose_branch.fc2.weight.zero_()
    notes = VggtPipeline(small, small.config)(images).notes
    expected = "Views 0, 1, 2: field of view clamped to 1 to 170 degrees, so the camera is unreliable."
    assert expected in notes


def test_weights_of_another_shape_than_the_preset_are_refused(small, build, tmp_path):
    file = save_network(tmp_path / "small.safetensors", small, small.config)
    for name, width in (("tiny", 128), ("vggt_1b", 1024)):
        words = f"Expected embed_dim {width} of the preset {name} in small.safetensors, got 64. Choose a file"
        with pytest.raises(ValueError, match=words):
            VggtPipeline.from_preset(name, weights=file)
    assert VggtPipeline.from_file(file).config == small.config
    file = save_network(tmp_path / "tiny.safetensors", build(PRESETS["tiny"]), PRESETS["tiny"])
    assert VggtPipeline.from_preset("tiny", weights=file).config == PRESETS["tiny"]
    with pytest.raises(ValueError, match="Choose the preset tiny"):
        VggtPipeline.from_preset("vggt_1b", weights=file)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fit": "stretch"}, "Expected fit pad or crop"),
        ({"longer_side": 5}, "Expected a longer side of 14 to 2048"),
        ({"source": "normals"}, "Expected source depth or point"),
    ],
)
def test_wrong_settings_are_a_sentence(small, images, given, words):
    with pytest.raises(ValueError, match=words):
        VggtPipeline(small, small.config)(images, **given)


def test_number_of_views_has_limits(small):
    for count in (0, 201):
        with pytest.raises(ValueError, match=f"Expected 1 to 200 views of one scene, got {count}"):
            VggtPipeline(small, small.config)([torch.rand(8, 8, 3)] * count)
