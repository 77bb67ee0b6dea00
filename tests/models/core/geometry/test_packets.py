"""ComfyUI's geometry packets: what comes in, what goes out, and that a round trip loses only what has no
place in them.
"""

import math

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.geometry.camera import (
    intrinsics_from_fov,
    invert_pose,
    look_at,
    transform_points,
)
from spatialweave.models.core.geometry.packets import from_da3, from_moge, to_da3, to_moge
from spatialweave.models.core.geometry.points import depth_to_points
from spatialweave.models.core.geometry.view import View


def scene(**others):
    """Two maps of 5 x 7 with a hole and two pixels of sky, and an off-centre camera."""
    random = torch.Generator().manual_seed(0)
    depth = torch.rand(2, 5, 7, generator=random) * 3 + 1
    depth[0, 0, 0] = float("nan")
    depth[1, 0, :2] = float("inf")
    intrinsics = intrinsics_from_fov(torch.tensor([60.0, 75.0]), 7, 5)
    intrinsics[:, 0, 2] += 0.4
    normals = torch.nn.functional.normalize(torch.randn(2, 5, 7, 3, generator=random), dim=-1)
    image = torch.rand(2, 5, 7, 3, generator=random)
    return View.from_depth(
        depth, units="metric", intrinsics=intrinsics, normals=normals, image=image, **others
    )


def same(got, want, *names):
    for name in names:
        assert_close(getattr(got, name), getattr(want, name), atol=1e-6)
    assert torch.equal(got.mask, want.mask) and torch.equal(got.sky, want.sky) and got.units == want.units


def test_moge_round_trip_is_exact():
    view = scene()
    same(from_moge(to_moge(view), "metric"), view, "depth", "image", "normals", "intrinsics")


def test_moge_packet_counts_in_widths_and_heights_and_marks_holes():
    view = scene()
    packet = to_moge(view)
    assert_close(packet["intrinsics"][:, 0, 0], view.intrinsics[:, 0, 0] / 7)
    assert_close(packet["intrinsics"][:, 1], view.intrinsics[:, 1] / 5)
    assert packet["depth"][0, 0, 0].isnan() and (packet["depth"][1, 0, :2] == math.inf).all()
    assert (packet["points"][0, 0, 0] == math.inf).all()
    assert_close(packet["points"][view.mask], depth_to_points(view.depth, view.intrinsics)[view.mask])


def test_moge_points_alone_give_depth_and_the_unit_is_the_callers():
    points = depth_to_points(torch.full((1, 4, 6), 2.0), intrinsics_from_fov(60.0, 6, 4)[None])
    packet = {
        "points": points,
        "intrinsics": torch.tensor([[[0.9, 0, 0.5], [0, 1.3, 0.5], [0, 0, 1]]]),
        "image": torch.rand(1, 4, 6, 4),
    }
    view = from_moge(packet, "relative")
    assert (view.depth == 2).all() and view.units == "relative" and view.image.shape == (1, 4, 6, 3)


def test_view_without_camera_or_picture_in_a_moge_packet():
    view = View.from_depth(torch.rand(1, 4, 6) + 1, units="relative")
    packet = to_moge(view, 90.0)
    assert_close(packet["intrinsics"][0], torch.tensor([[0.5, 0, 0.5], [0, 0.75, 0.5], [0, 0, 1]]))
    assert torch.equal(packet["image"], view.to_control_image())
    with pytest.raises(
        ValueError, match="Expected a view with a camera, got one without, so its points have no position"
    ):
        to_moge(view)


def test_panoramas_and_empty_packets_are_refused():
    with pytest.raises(
        ValueError,
        match="Expected the depth of one camera, got a MOGE_GEOMETRY that is a panorama, with "
        "distances all around",
    ):
        from_moge({"points": torch.zeros(1, 2, 4, 3), "depth": torch.ones(1, 2, 4)}, "relative")
    with pytest.raises(
        ValueError, match=r"Expected depth or points in the MOGE_GEOMETRY, got the keys \['image'\]"
    ):
        from_moge({"image": torch.zeros(1, 2, 2, 3)}, "metric")
    with pytest.raises(ValueError, match=r"Expected depth in the DA3_GEOMETRY, got the keys \['image'\]"):
        from_da3({"image": torch.zeros(1, 2, 2, 3)}, "metric")


def test_da3_round_trip_is_exact():
    view = scene(
        confidence=torch.rand(2, 5, 7),
        world_to_cam=look_at(torch.tensor([[0.0, 1, 4], [2.0, 1, 3]]), (0.0, 0.0, 0.0)),
    )
    again = from_da3(to_da3(view), "metric")
    same(again, view, "depth", "image", "confidence", "intrinsics", "world_to_cam")


def test_da3_packet_has_its_world_y_down_and_says_which_mode():
    pose = look_at((0.0, 0.0, 4.0), (0.0, 0.0, 0.0))
    view = scene(world_to_cam=pose)
    packet = to_da3(view)
    assert (
        packet["mode"] == "multiview"
        and packet["extrinsics"].shape == (1, 2, 3, 4)
        and packet["intrinsics"].shape == (1, 2, 3, 3)
    )
    above = torch.tensor([[0.0, 1.0, 0.0]])  # a point above the origin has y = -1 in DA3's world
    seen = transform_points(above, pose)
    rotation, shift = packet["extrinsics"][0, 0, :, :3], packet["extrinsics"][0, 0, :, 3]
    assert_close(seen, (torch.tensor([[0.0, -1.0, 0.0]]) @ rotation.T) + shift, atol=1e-6)
    assert to_da3(scene())["mode"] == "mono" and "extrinsics" not in to_da3(scene())
    assert (packet["depth"][1, 0, :2] == view.depth[1].max()).all() and packet["sky"][1, 0, :3].tolist() == [
        1,
        1,
        0,
    ]


def test_da3_camera_of_another_size_is_brought_to_the_pixels_of_the_map():
    intrinsics = intrinsics_from_fov(60.0, 28, 14)[None, None]
    pose = torch.eye(4)[None, None, :, :]
    packet = {
        "depth": torch.ones(1, 30, 60),
        "image": torch.zeros(1, 30, 60, 3),
        "intrinsics": intrinsics,
        "extrinsics": pose,
    }
    view = from_da3(packet, "relative")
    assert_close(view.intrinsics[0, 0, 0], 60 / 2 / torch.tan(torch.deg2rad(torch.tensor(30.0))))
    assert_close(view.intrinsics[0, :2, 2], torch.tensor([30.0, 15.0]))
    assert_close(invert_pose(view.world_to_cam)[0, :3, :3], torch.diag(torch.tensor([1.0, -1.0, -1.0])))


def test_da3_probable_sky_is_sky_and_identity_cameras_are_none():
    sky = torch.tensor([[[0.9, 0.2]]])
    eye = torch.eye(3)[None, None]
    view = from_da3(
        {"depth": torch.ones(1, 1, 2), "sky": sky, "intrinsics": eye, "extrinsics": torch.eye(4)[None, None]},
        "metric",
    )
    assert view.mask.tolist() == [[[False, True]]] and view.sky.tolist() == [[[True, False]]]
    assert view.intrinsics is None and view.world_to_cam is None


def test_half_precision_pictures_become_single():
    packet = {"depth": torch.ones(1, 2, 2).half(), "image": torch.zeros(1, 2, 2, 3).half()}
    assert from_da3(packet, "metric").image.dtype == torch.float32
