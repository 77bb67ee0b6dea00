"""The scale of relative views, recovered from exact data that was divided by a known number."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spatialweave.models.core.geometry.packets import from_da3, to_da3
from spatialweave.models.core.geometry.posed_views import (
    PickedPixel,
    find_scale_by_cameras,
    find_scale_by_depth,
    find_scale_by_points,
    scale_views,
    view_centers,
    views_to_world,
)
from spatialweave.models.core.geometry.view import View
from spatialweave.models.world.multiview import sample_views

FACTOR = 3.7  # metres a relative unit


@pytest.fixture(scope="module")
def metric():
    (item,) = sample_views(5, 1, 4, (48, 64), split="test", samples=1, lens_jitter=0.1)
    depth = item.depth_metric.masked_fill(~item.mask, torch.inf)
    cameras = {"intrinsics": item.intrinsics, "world_to_cam": item.world_to_cam}
    return View.from_depth(depth, units="metric", image=item.image, **cameras)


@pytest.fixture(scope="module")
def relative(metric):
    pose = metric.world_to_cam.clone()
    pose[:, :3, 3] /= FACTOR
    return replace(metric, depth=metric.depth / FACTOR, world_to_cam=pose, units="relative")


def world_point(view, index, column, row):
    """The surface point at a pixel, in NumPy."""
    ray = np.linalg.inv(view.intrinsics[index].double().numpy()) @ (column + 0.5, row + 0.5, 1.0)
    in_cam = np.append(ray * float(view.depth[index, row, column]), 1.0)
    return (np.linalg.inv(view.world_to_cam[index].double().numpy()) @ in_cam)[:3]


def test_points_of_the_world(metric):
    points = views_to_world(metric)
    for index, row, column in ((0, 30, 20), (2, 40, 50)):
        np.testing.assert_allclose(
            points[index, row, column], world_point(metric, index, column, row), atol=1e-4
        )


def test_the_scale_is_recovered_by_each_road(metric, relative):
    first, second = PickedPixel(0, 20, 40), PickedPixel(3, 50, 30)
    apart = np.linalg.norm(world_point(metric, 0, 20, 40) - world_point(metric, 3, 50, 30))
    eyes = [np.linalg.inv(metric.world_to_cam[i].double().numpy())[:3, 3] for i in (0, 2)]
    found = {
        "all depths": find_scale_by_depth(relative, metric),
        "one depth": find_scale_by_depth(relative, metric[2], index=2),
        "points": find_scale_by_points(relative, first, second, apart),
        "cameras": find_scale_by_cameras(relative, 0, 2, np.linalg.norm(eyes[0] - eyes[1])),
    }
    for road, scale in found.items():
        assert scale.factor == pytest.approx(FACTOR, rel=1e-4), road
    again = scale_views(relative, found["points"].factor)
    assert again.units == "metric"
    torch.testing.assert_close(again.depth, metric.depth, rtol=1e-4, atol=0)
    torch.testing.assert_close(view_centers(again), view_centers(metric), rtol=1e-4, atol=1e-4)
    assert torch.equal(again.world_to_cam[:, :3, :3], metric.world_to_cam[:, :3, :3])


def test_points_of_one_view_need_no_pose(metric, relative):
    first, second = PickedPixel(1, 10, 40), PickedPixel(1, 50, 30)
    apart = np.linalg.norm(world_point(metric, 1, 10, 40) - world_point(metric, 1, 50, 30))
    alone = replace(relative, world_to_cam=None)
    assert find_scale_by_points(alone, first, second, apart).factor == pytest.approx(FACTOR, rel=1e-4)
    assert scale_views(alone, 2.0).world_to_cam is None


def test_a_third_of_wrong_pixels_does_not_move_the_median(metric, relative):
    depth = metric.depth.clone()
    depth[:, :16] *= 4
    scale = find_scale_by_depth(relative, replace(metric, depth=depth))
    assert scale.factor == pytest.approx(FACTOR, rel=1e-4) and "half of them from 1.000 to" in scale.found_by


def test_multi_view_geometry_of_depth_anything_survives_both_ways(metric):
    packet = to_da3(metric)
    assert packet["mode"] == "multiview"
    assert packet["extrinsics"].shape == (1, 4, 3, 4) and packet["intrinsics"].shape == (1, 4, 3, 3)
    again = from_da3(packet, "metric")
    torch.testing.assert_close(again.world_to_cam, metric.world_to_cam)
    torch.testing.assert_close(again.intrinsics, metric.intrinsics)
    torch.testing.assert_close(again.depth, metric.depth)
    torch.testing.assert_close(views_to_world(again)[again.mask], views_to_world(metric)[metric.mask])
    # its own convention: an OpenCV world, so that a point of it projects by the extrinsics alone
    point = world_point(metric, 1, 30, 40) * np.array([1, -1, -1])
    in_cam = packet["extrinsics"][0, 1].double().numpy() @ np.append(point, 1.0)
    pixel = packet["intrinsics"][0, 1].double().numpy() @ in_cam
    np.testing.assert_allclose(pixel[:2] / pixel[2], (30.5, 40.5), atol=1e-3)


def sentence(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def test_what_gives_no_scale_is_refused_in_words(metric, relative):
    one, other = PickedPixel(0, 20, 40), PickedPixel(1, 20, 40)
    posed = replace(relative, world_to_cam=None)
    smaller = View.from_depth(torch.ones(1, 10, 10), units="metric")
    hole = replace(relative, depth=relative.depth * 0, mask=relative.mask & False)
    same = replace(relative, world_to_cam=relative.world_to_cam[:1].expand(4, 4, 4))
    cases = {
        "got a relative one": lambda: find_scale_by_depth(relative, relative),
        "Expected one metric depth, or one for each of 4 views, got 2": lambda: find_scale_by_depth(
            relative, metric.select([0, 1])
        ),
        "Expected the view of the metric depth among 0 to 3, got 4": lambda: find_scale_by_depth(
            relative, metric[0], index=4
        ),
        "Expected a depth of the reference's 10 x 10 pixels, got 64 x 48": lambda: find_scale_by_depth(
            relative, smaller
        ),
        "got none in common": lambda: find_scale_by_depth(hole, metric),
        "Expected views with poses (world_to_cam) in one common frame to measure between points": lambda: (
            find_scale_by_points(posed, one, other, 1.0)
        ),
        "to measure between cameras, got 4 without": lambda: find_scale_by_cameras(posed, 0, 1, 1.0),
        "Expected two different points": lambda: find_scale_by_points(relative, one, one, 1.0),
        "Expected a pixel inside 64 x 48, got column 64": lambda: find_scale_by_points(
            relative, PickedPixel(0, 64, 0), one, 1.0
        ),
        "got an invalid pixel": lambda: find_scale_by_points(hole, one, other, 1.0),
        "Expected a known distance above 0 metres, got 0": lambda: find_scale_by_points(
            relative, one, other, 0.0
        ),
        "Expected a known distance above 0 metres, got nan": lambda: find_scale_by_cameras(
            relative, 0, 1, float("nan")
        ),
        "got cameras 0 and 1 in one place": lambda: find_scale_by_cameras(same, 0, 1, 1.0),
        "Expected a camera among 0 to 3, got 7": lambda: find_scale_by_cameras(relative, 0, 7, 1.0),
        "Expected a finite scale above 0": lambda: scale_views(relative, float("inf")),
        "Expected depths within float32's range": lambda: scale_views(relative, 1e39),
    }
    for words, call in cases.items():
        assert words in sentence(call), words


def test_views_are_selected_in_any_order(metric):
    some = metric.select([3, -4])
    assert (
        torch.equal(some.depth, metric.depth[[3, 0]])
        and torch.equal(some.world_to_cam, metric.world_to_cam[[3, 0]])
    )
    for wrong in ([4], []):
        with pytest.raises(ValueError, match="Expected indices below 4"):
            metric.select(wrong)
