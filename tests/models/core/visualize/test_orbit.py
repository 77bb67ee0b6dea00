"""The orbit against planes and points whose place in every frame can be worked out."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from spatialweave.models.core.geometry.camera import intrinsics_from_fov
from spatialweave.models.core.geometry.view import View
from spatialweave.models.core.visualize.orbit import render_orbit

RED, WALL = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.2, 0.6, 0.9])


def square_before_a_wall(size=64, near=2.0, far=4.0, wall=True):
    """A red square at ``near`` in the middle third, a blue wall at ``far``, or nothing, behind it."""
    inside = torch.zeros(size, size, dtype=torch.bool)
    inside[size // 3 : 2 * size // 3, size // 3 : 2 * size // 3] = True
    depth = torch.where(inside, near, far if wall else float("inf"))
    return View.from_depth(depth, units="metric", image=torch.where(inside[..., None], RED, WALL)[None])


def is_colour(frame, colour, tolerance=0.06):
    return (frame - colour).abs().amax(-1) < tolerance


def test_a_flat_picture_seen_straight_is_the_picture_one_step_back():
    """At 1.15 times the distance everything shrinks by 1.15; Pillow does the same to the picture."""
    image = (
        torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=96, mode="bicubic")
        .clamp(0, 1)[0]
        .movedim(0, -1)
    )
    view = View.from_depth(torch.full((96, 96), 3.0), units="relative", image=image)
    frame = render_orbit(view, frames=1, size=192, yaw_degrees=0, pitch_degrees=0).frames[0]
    side = round(192 / 1.15)
    small = Image.fromarray((image * 255).round().byte().numpy()).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    start = (192 - side) // 2
    inner = frame[start : start + side, start : start + side].numpy()
    assert np.abs(inner - np.asarray(small) / 255)[3:-3, 3:-3].mean() < 0.01


@pytest.mark.parametrize(("index", "yaw", "pitch"), [(0, 0, 6), (1, 9, 3), (2, 0, 0), (3, -9, 3)])
def test_points_are_where_scipy_turns_them(index, yaw, pitch):
    """The camera swings right and up around the middle, so the near square moves left and down against the
    wall.
    """
    orbit = render_orbit(
        square_before_a_wall(), frames=4, size=160, yaw_degrees=9, pitch_degrees=6, fov_degrees=50
    )
    red = is_colour(orbit.frames[index], RED).nonzero().double()
    found = red[:, 1].mean() + 0.5, red[:, 0].mean() + 0.5
    centre = 4.0  # nearly all pixels lie on the wall
    # in a world with y up and z backwards, to swing the camera right is to turn the world left about y
    turn = Rotation.from_euler("yx", [-yaw, pitch], degrees=True)
    middle = (31.5 - 32) * 2.0 / (32 / math.tan(math.radians(25)))  # pixels 21 to 41, 2 away
    x, y, z = turn.apply([middle, -middle, -2.0 + centre])
    focal = 80 / math.tan(math.radians(25))
    wanted = 80 + focal * x / (1.15 * centre - z), 80 - focal * y / (1.15 * centre - z)
    assert found == pytest.approx(wanted, abs=1.2)


def test_every_pixel_is_one_surface_a_shadow_or_background():
    """Nothing is smeared: apart from the outlines there is no mixture of red and wall, nor any red shadow."""
    orbit = render_orbit(square_before_a_wall(), frames=6, size=160, yaw_degrees=10)
    for frame in orbit.frames:
        red, wall = is_colour(frame, RED), is_colour(frame, WALL)
        shadow = is_colour(frame, 0.66 * WALL)
        gray = (frame.amax(-1) - frame.amin(-1) < 0.06) & (frame.amax(-1) < 0.3)
        assert float((red | wall | shadow | gray).float().mean()) > 0.975
        assert float(red.float().mean()) > 0.05
    side = orbit.frames[1]
    assert int(is_colour(side, 0.66 * WALL).sum()) > 100


def test_no_depth_stays_background():
    """Sky has no depth: in front of it and beside the square the neutral background shows, and no shadow."""
    frames = render_orbit(square_before_a_wall(wall=False), frames=4, size=128).frames
    red = is_colour(frames, RED)
    assert 0.05 < float(red.float().mean()) < 0.2
    colourless = frames.amax(-1) - frames.amin(-1) < 0.06
    assert float((red | colourless).float().mean()) > 0.97


def test_soft_depth_edges_are_cut():
    """A model's depth climbs to the wall over some pixels; these must not hang in the air as a sheet."""
    view = square_before_a_wall()
    soft = torch.nn.functional.avg_pool2d(1 / view.depth, 3, 1, 1, count_include_pad=False)
    frame = render_orbit(
        View.from_depth(1 / soft, units="metric", image=view.image), frames=4, size=160, yaw_degrees=10
    ).frames[1]
    sharp = render_orbit(view, frames=4, size=160, yaw_degrees=10).frames[1]
    assert float((frame - sharp).abs().amax(-1).gt(0.1).float().mean()) < 0.01


def test_field_of_view_is_given_known_or_assumed():
    view = square_before_a_wall()
    known = View.from_depth(
        view.depth, units="metric", image=view.image, intrinsics=intrinsics_from_fov(70, 64, 64)
    )
    orbits = [
        render_orbit(v, frames=1, size=32, fov_degrees=f)
        for v, f in ((view, None), (known, None), (known, 40.0))
    ]
    assert [round(orbit.fov_degrees, 3) for orbit in orbits] == [55, 70, 40]
    assert [orbit.fov_was_assumed for orbit in orbits] == [True, False, False]


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((40, 64), (60, 96)), ((64, 40), (96, 60)), ((900, 1700), (51, 96)), ((2, 2), (96, 96))],
)
def test_any_shape_of_picture(size, wanted):
    depth = torch.linspace(1, 3, size[0])[:, None].expand(size)
    frames = render_orbit(
        View.from_depth(depth, units="relative", image=torch.rand(1, *size, 3)), frames=2, size=96
    ).frames
    assert frames.shape == (2, *wanted, 3)
    assert float(frames.amin()) >= 0 and float(frames.amax()) <= 1


def test_a_few_valid_pixels_suffice():
    depth = torch.zeros(1600, 1600)
    depth[800, 800] = 2.0
    frames = render_orbit(
        View.from_depth(depth, units="relative", image=torch.ones(1, 1600, 1600, 3)), frames=1, size=64
    ).frames
    assert bool(torch.isfinite(frames).all())


def test_bad_input_is_worded():
    view = square_before_a_wall()
    with pytest.raises(ValueError, match="Expected a View of one depth map with its image, got a batch of 1"):
        render_orbit(View.from_depth(view.depth, units="metric"))
    with pytest.raises(ValueError, match="at least 16 pixels, got 0 of 320"):
        render_orbit(view, frames=0)
    with pytest.raises(ValueError, match="Expected an image wide enough to orbit, got 4 x 1 pixels"):
        render_orbit(View.from_depth(torch.ones(1, 4), units="metric", image=torch.ones(1, 4, 3)))
    with pytest.raises(
        ValueError,
        match=r"Expected a valid pixel \(finite and above 0\), got none among 16 in depth map 0 of 1",
    ):
        render_orbit(View.from_depth(torch.zeros(4, 4), units="metric", image=torch.ones(4, 4, 3)))
