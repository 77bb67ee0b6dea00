"""Stereo pairs of scenes whose two views can be written down."""

import math

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.geometry import stereo
from spatialweave.models.core.geometry.stereo import nearness, shift_picture, stereo_pair
from spatialweave.models.core.geometry.view import View

WIDTH = 100


def make(depth, **others):
    depth = depth.reshape(1, 1, -1).expand(1, 3, -1)
    image = torch.rand(1, 3, depth.shape[-1], 3, generator=torch.Generator().manual_seed(0))
    return View.from_depth(depth, units="relative", **{"image": image, **others})


def test_no_parallax_changes_nothing():
    view = make(torch.rand(WIDTH) + 1)
    for eye in stereo_pair(view, parallax=0.0):
        assert torch.equal(eye.image, view.image) and not eye.holes.any()


def test_a_flat_scene_moves_as_a_whole():
    view = make(torch.full((WIDTH,), 7.0))
    left, right = stereo_pair(view, parallax=4.0, screen=0.0)  # nearness 1: two of a hundred pixels each
    assert torch.equal(left.image[:, :, 2:], view.image[:, :, :-2]) and torch.equal(
        right.image[:, :, :-2], view.image[:, :, 2:]
    )
    assert left.holes[0, 0].nonzero().flatten().tolist() == [0, 1] and right.holes[
        0, 0
    ].nonzero().flatten().tolist() == [98, 99]
    assert (left.image[left.holes] == 0).all()


def test_what_lies_in_the_screen_stays():
    view = make(torch.full((WIDTH,), 7.0))
    assert all(torch.equal(eye.image, view.image) for eye in stereo_pair(view, parallax=9.0, screen=1.0))


def test_a_box_covers_and_uncovers_the_wall_behind_it():
    depth = torch.full((WIDTH,), 2.0)
    depth[40:60] = 1.0
    view = make(depth)
    left, right = stereo_pair(
        view, parallax=8.0, screen=0.5
    )  # the wall, nearness 0.5, stays; the box moves 2 pixels
    for eye, shift, holes in ((left, 2, [40, 41]), (right, -2, [58, 59])):
        want = view.image.clone()
        want[:, :, 40 + shift : 60 + shift] = view.image[:, :, 40:60]
        want[:, :, holes] = 0
        assert torch.equal(eye.image, want)
        assert eye.holes[0, 1].nonzero().flatten().tolist() == holes


def test_a_slant_is_stretched_without_gaps_and_interpolated():
    """Nearness linear in x moves x to x + a + b x: a ramp of colour there has the colour of where it came
    from.
    """
    x = torch.arange(WIDTH).float()
    near = 0.5 + 0.5 * x / (WIDTH - 1)
    ramp = (x / (WIDTH - 1)).reshape(1, 1, -1, 1).expand(1, 3, WIDTH, 3)
    view = make(1 / near, image=ramp)
    scale = float(nearness(view)[0, 0, -1])  # the nearest is a percentile: a whisker above 1
    left, _ = stereo_pair(view, parallax=20.0, screen=0.0)
    start, slope = 10 * scale * 0.5, 10 * scale * 0.5 / (WIDTH - 1)
    inside = torch.arange(math.ceil(start), WIDTH).float()
    assert_close(left.image[0, 1, inside.long(), 0], (inside - start) / (1 + slope) / (WIDTH - 1), atol=1e-5)
    assert not left.holes[0, :, inside.long()].any()


def test_sky_is_shown_at_infinity_and_holes_stay_holes():
    depth = torch.full((WIDTH,), 1.0)
    depth[:30] = float("inf")
    depth[70:80] = float("nan")
    view = make(depth)
    left, right = stereo_pair(
        view, parallax=4.0, screen=1.0
    )  # the front stays, the sky moves left in the left eye
    assert torch.equal(left.image[:, :, :28], view.image[:, :, 2:30]) and torch.equal(
        right.image[:, :, 2:30], view.image[:, :, :28]
    )
    for eye, more in ((left, [28, 29]), (right, [0, 1])):
        assert eye.holes[0, 0].nonzero().flatten().tolist() == more + list(range(70, 80))


def test_what_has_more_front_is_seen_in_any_order():
    image = torch.arange(3.0).reshape(1, 1, 3, 1).expand(1, 1, 3, 3)
    shift = torch.tensor([[[2.0, 1.0, 0.0]]])
    known, apart = torch.ones(1, 1, 3, dtype=torch.bool), torch.zeros(1, 1, 2, dtype=torch.bool)
    for front, seen in (([3.0, 2, 1], 0), ([1.0, 3, 2], 1), ([1.0, 2, 3], 2)):
        moved = shift_picture(image, shift, torch.tensor([[front]]), known, apart)
        assert moved.image[0, 0, 2, 0] == seen and moved.holes.tolist() == [[[True, True, False]]]


def test_each_picture_of_a_batch_has_its_own_scale():
    depth = torch.stack([torch.full((3, WIDTH), 1.0), torch.full((3, WIDTH), 50.0)])
    view = View.from_depth(depth, units="metric", image=torch.rand(1, 3, WIDTH, 3))
    left, _ = stereo_pair(view, parallax=4.0, screen=0.0)
    assert torch.equal(left.image[0], left.image[1])


def test_bands_of_rows_are_one_picture(monkeypatch):
    random = torch.Generator().manual_seed(1)
    depth, steps = torch.rand(2, 2, 11, 40, generator=random)
    depth = 3 + 0.1 * depth + (steps > 0.8)
    depth[:, 4:6, 5:20], depth[:, 2, :9] = float("nan"), float("inf")
    view = View.from_depth(depth, units="metric", image=torch.rand(2, 11, 40, 3, generator=random))
    whole = stereo_pair(view, parallax=20.0)
    monkeypatch.setattr(stereo, "BAND", 3)
    for one, other in zip(whole, stereo_pair(view, parallax=20.0), strict=True):
        assert torch.equal(one.image, other.image) and torch.equal(one.holes, other.holes)
        assert bool(one.holes.any()) and not bool(one.holes.all())


def test_an_image_of_one_column_stays():
    image = torch.rand(1, 5, 1, 3)
    for eye in stereo_pair(View.from_depth(torch.ones(1, 5, 1), units="metric", image=image)):
        assert torch.equal(eye.image, image) and not eye.holes.any()


@pytest.mark.parametrize(
    ("view", "options", "sentence"),
    [
        (
            View.from_depth(torch.ones(1, 2, 2), units="metric"),
            {},
            "Expected a view with an image to shift, got one without",
        ),
        (make(torch.ones(4)), {"screen": 1.5}, r"Expected a screen from 0 \(infinity\) to 1 .*, got 1.5"),
        (make(torch.ones(4)), {"parallax": -1.0}, "Expected a parallax of at least 0 %, got -1"),
        (
            make(torch.zeros(4)),
            {},
            r"Expected a valid pixel \(finite and above 0\), got none among 12 in depth map 0 of 1",
        ),
    ],
)
def test_what_is_refused(view, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        stereo_pair(view, **options)
