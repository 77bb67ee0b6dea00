"""What belongs to a depth, as other programs hand it over: types, scales, layouts, and what is refused."""

import math

import numpy as np
import pytest
import torch

from spatialweave.models.core.geometry.camera import intrinsics_from_fov, look_at
from spatialweave.models.core.geometry.mesh import view_to_mesh
from spatialweave.models.core.geometry.normals import view_with_normals
from spatialweave.models.core.geometry.packets import from_da3, from_moge, to_da3, to_moge
from spatialweave.models.core.geometry.points import view_to_point_cloud
from spatialweave.models.core.geometry.view import View

HEIGHT, WIDTH = 6, 8
DEPTH = np.linspace(2, 3, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
PIXELS = np.array([[60, 0, 4], [0, 60, 3], [0, 0, 1]])
NAN = math.nan


def view(**others):
    return View.from_depth(DEPTH, units="metric", **others)


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.float16, ">f4", np.uint8])
def test_a_camera_of_any_number_type_serves_everything_that_needs_one(kind):
    pose = np.eye(4).astype(kind)
    ours = view(intrinsics=PIXELS.astype(kind), world_to_cam=pose)
    want = view(intrinsics=torch.tensor(PIXELS, dtype=torch.float32), world_to_cam=torch.eye(4))
    assert ours.intrinsics.dtype == ours.world_to_cam.dtype == torch.float32
    assert torch.equal(ours.intrinsics, want.intrinsics) and torch.equal(ours.world_to_cam, want.world_to_cam)
    for make in (view_to_point_cloud, view_to_mesh, view_with_normals):
        make(ours)
    assert from_moge(to_moge(ours), "metric").intrinsics.dtype == torch.float32
    assert from_da3(to_da3(ours), "metric").world_to_cam.dtype == torch.float32


@pytest.mark.parametrize("kind", [np.float64, np.float16, ">f8"])
def test_normals_and_confidence_become_float32(kind):
    normals = np.zeros((HEIGHT, WIDTH, 3), kind)
    normals[..., 2] = -1
    ours = view(normals=normals, confidence=DEPTH.astype(kind))
    assert ours.normals.dtype == ours.confidence.dtype == torch.float32
    assert (ours.normals == torch.tensor([0.0, 0, -1])).all()


@pytest.mark.parametrize(
    "layout", [(HEIGHT, WIDTH, 1), (1, HEIGHT, WIDTH, 1), (1, 1, HEIGHT, WIDTH)], ids=str
)
def test_an_axis_of_1_is_dropped_from_every_map(layout):
    ones = np.ones(layout)
    ours = View.from_depth(
        DEPTH.reshape(layout), units="metric", mask=ones > 0, confidence=ones, sky=ones * 0
    )
    assert (
        ours.depth.shape == ours.mask.shape == ours.confidence.shape == ours.sky.shape == (1, HEIGHT, WIDTH)
    )
    assert torch.equal(ours.depth, view().depth)


def test_images_of_whole_numbers_are_scaled_by_their_type():
    values = np.arange(HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3)
    want = torch.from_numpy(values).float() / 255
    assert torch.equal(view(image=values.astype(np.uint8)).image[0], want)
    assert torch.equal(view(image=(values * 257).astype(np.uint16)).image[0], want)
    assert torch.equal(view(image=want.double()).image[0], want)


def test_masks_and_sky_may_be_probabilities():
    chance = np.full((HEIGHT, WIDTH), 0.2)
    chance[0], chance[1] = 0.5, 1
    assert view(mask=chance).mask[0, :, 0].tolist() == [True, True, False, False, False, False]
    depth = DEPTH.copy()
    depth[:3] = 0
    ours = View.from_depth(depth, units="metric", sky=chance)
    assert ours.sky[0, :, 0].tolist() == [True, True, False, False, False, False]
    assert view(mask=(chance >= 0.5).astype(np.uint8) * 255).mask[0, :, 0].tolist() == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_normals_get_unit_length_and_none_where_they_are_not_finite():
    normals = np.zeros((HEIGHT, WIDTH, 3))
    normals[..., 2] = -1
    normals[0, 0], normals[0, 1] = NAN, (0, 0, -0.5)
    ours = view(normals=normals).normals[0]
    assert ours[0, 0].tolist() == [0, 0, 0] and ours[0, 1].tolist() == [0, 0, -1]


def test_confidence_that_is_not_a_number_is_none():
    confidence = np.full((HEIGHT, WIDTH), 0.75)
    confidence[2, 3] = NAN
    ours = view(confidence=confidence).confidence[0]
    assert ours[2, 3] == 0 and ours[0, 0] == 0.75


def test_poses_of_three_rows_get_the_fourth():
    pose = look_at((1.0, 2, 3), (0.0, 0, 0))
    assert torch.equal(view(world_to_cam=pose[:3].double().numpy()).world_to_cam[0], pose)
    assert view(world_to_cam=pose[None, :3]).world_to_cam.shape == (1, 4, 4)


def changed(matrix, place, value):
    matrix = np.array(matrix, float)
    matrix[place] = value
    return matrix


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image", np.full((HEIGHT, WIDTH, 3), 254.0), "Expected floats from 0 to 1 in the array 'image'"),
        ("image", np.full((HEIGHT, WIDTH, 3), 254), "Expected 8 or 16 bits or floats"),
        ("image", np.full((HEIGHT, WIDTH, 3), "x"), "Expected real numbers in the array 'image', got text"),
        (
            "intrinsics",
            [[0.94, 0, 0.5], [0, 1.25, 0.5], [0, 0, 1]],
            "got a principal point of .0.5, 0.5., which is not in pixels",
        ),
        (
            "intrinsics",
            [[2, 0, 0], [0, 2, 0], [0, 0, 1]],
            "got a principal point of .0, 0., which is not in pixels",
        ),
        ("intrinsics", PIXELS.T, r"Expected .* as \[\[fx, s, cx\], .* Transpose"),
        ("intrinsics", PIXELS * 2, r"Expected .* as \[\[fx, s, cx\]"),
        ("intrinsics", changed(PIXELS, (0, 0), 0), "got focal lengths of 0 and 60"),
        ("intrinsics", changed(PIXELS, (1, 1), -60), "got focal lengths of 60 and -60"),
        ("intrinsics", changed(PIXELS, (0, 2), NAN), "got numbers that are not finite"),
        ("intrinsics", PIXELS + 0j, "got complex numbers"),
        ("intrinsics", [60, 60, 4, 3], "Expected 3 axes in intrinsics"),
        ("world_to_cam", np.full((4, 4), NAN), "Expected a pose .* not finite"),
        ("world_to_cam", changed(np.eye(4), (3, 0), 5), "Expected 0 0 0 1 as the last row"),
        ("world_to_cam", np.diag([2, 2, 2, 1]), "Expected a rotation in the pose"),
        ("world_to_cam", np.diag([1, 1, -1, 1]), "Expected a rotation in the pose .* mirrors"),
        (
            "normals",
            np.full((HEIGHT, WIDTH, 3), 0.2),
            "Expected normals of length 1, got vectors of a median length of 0.3464",
        ),
        ("normals", np.full((HEIGHT, WIDTH, 3), 128, np.uint8), "Expected normals of length 1"),
        ("mask", DEPTH, "Expected probabilities from 0 to 1 in the array 'mask'"),
        ("mask", np.full((HEIGHT, WIDTH), 7), "Expected truth values, 0 and 1, or 0 and 255"),
        ("sky", np.full((HEIGHT, WIDTH), NAN), "Expected probabilities from 0 to 1 in the array 'sky'"),
        (
            "confidence",
            np.full((HEIGHT, WIDTH), "high"),
            "Expected real numbers in the array 'confidence', got text",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        view(**{name: value})


def test_a_crop_may_have_its_principal_point_in_the_corner_or_outside():
    for center in ([0.5, 0.5], [-40, 3], [4, 100]):
        matrix = np.diag([600.0, 600, 1])
        matrix[:2, 2] = center
        assert view(intrinsics=matrix).intrinsics[0, :2, 2].tolist() == center


def test_maps_of_one_pixel_have_a_camera():
    ours = View.from_depth([[2.0]], units="metric", intrinsics=intrinsics_from_fov(60.0, 1, 1))
    assert ours.intrinsics.shape == (1, 3, 3)


def test_the_constructor_lets_no_other_type_in():
    depth, mask = torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    fields = {
        "image": torch.zeros(1, 2, 2, 3), "normals": torch.zeros(1, 2, 2, 3), "confidence": depth,
        "intrinsics": intrinsics_from_fov(60.0, 2, 2)[None], "world_to_cam": torch.eye(4)[None],
    }  # fmt: skip
    for name, value in fields.items():
        View(depth, "metric", mask, **{name: value})
        with pytest.raises(ValueError, match=f"Expected {name} of torch.float32, got torch.float64"):
            View(depth, "metric", mask, **{name: value.double()})
    with pytest.raises(ValueError, match=r"Expected an image in \[0, 1\]"):
        View(depth, "metric", mask, image=torch.full((1, 2, 2, 3), 2.0))
    with pytest.raises(ValueError, match="focal lengths"):
        View(
            depth,
            "metric",
            mask,
            intrinsics=-fields["intrinsics"] + 2 * torch.diag(torch.tensor([0.0, 0, 1])),
        )
