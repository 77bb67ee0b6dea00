"""Guided upscaling, against exact renderings of the same scenes at the larger size."""

import pytest
import torch
import torch.nn.functional as F

from spatialweave.models.core.geometry import upscale
from spatialweave.models.core.geometry.upscale import steps_to, upscale_view
from spatialweave.models.core.geometry.view import View
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import sample_scenes


@pytest.fixture(scope="module")
def frames():
    scenes = sample_scenes(29, 2, split="test")
    return render(scenes, 128, 128), render(scenes, 512, 512)


def small_view(frames):
    low = frames[0]
    return View.from_depth(low.depth, units="metric", image=low.image, intrinsics=low.intrinsics)


@pytest.fixture(scope="module")
def guided(frames):
    """The small views at the larger size, each test's to read."""
    return upscale_view(small_view(frames), frames[1].image)


def edge_error(depth, exact):
    """Mean |log ratio| within four pixels of an outline, where both are finite."""
    log = torch.where(torch.isfinite(exact), exact, exact[torch.isfinite(exact)].max()).log()[:, None]
    edges = (F.max_pool2d(log, 9, 1, 4) + F.max_pool2d(-log, 9, 1, 4) > 0.1)[:, 0]
    both = edges & torch.isfinite(exact) & (depth > 0)
    return float((depth[both] / exact[both]).log().abs().mean())


def test_outlines_follow_the_image_better_than_bilinear_ones(frames, guided):
    exact = frames[1]
    plain = F.interpolate(
        frames[0].depth.nan_to_num(posinf=1e3)[:, None].log(), size=(512, 512), mode="bilinear"
    )
    assert guided.units == "metric" and guided.depth.shape == exact.depth.shape
    assert edge_error(guided.depth, exact.depth) < 0.65 * edge_error(plain.exp()[:, 0], exact.depth)


def test_sky_and_valid_pixels_are_the_exact_ones_but_for_outlines(frames, guided):
    sky = torch.isinf(frames[1].depth)
    assert guided.sky is not None and float((guided.sky != sky).float().mean()) < 0.01
    assert torch.equal(guided.sky, ~guided.mask)


def test_the_camera_is_that_of_the_larger_image(frames, guided):
    assert torch.allclose(guided.intrinsics, frames[1].intrinsics, rtol=1e-5)


def test_a_smooth_depth_is_interpolated_in_its_logarithm():
    ramp = torch.linspace(0, 0.15, 8).exp().expand(1, 8, 8)
    guided = upscale_view(View.from_depth(ramp, units="relative"), torch.rand(1, 16, 16, 3))
    want = F.interpolate(ramp.log()[:, None], size=(16, 16), mode="bilinear").exp()[:, 0]
    assert torch.allclose(guided.depth, want, rtol=1e-5)


def test_holes_stay_holes(frames):
    depth = torch.full((1, 32, 32), 2.0)
    depth[:, 8:16, 8:16] = 0
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    image[:, 16:32, 16:32] += 0.8
    guided = upscale_view(View.from_depth(depth, units="metric"), image)
    assert torch.equal(~guided.mask[0], image[0, ..., 0] > 0.5)
    assert torch.allclose(guided.depth[guided.mask], torch.tensor(2.0))


def test_strips_change_nothing(frames, guided, monkeypatch):
    monkeypatch.setattr(upscale, "_STRIP", 512 * 2 * 7)
    again = upscale_view(small_view(frames), frames[1].image)
    assert torch.allclose(again.depth, guided.depth, rtol=1e-5)


@pytest.mark.parametrize(
    ("small", "large", "steps"),
    [
        ((64, 64), (256, 256), [(128, 128), (256, 256)]),
        ((60, 80), (60, 80), [(60, 80)]),
        ((10, 20), (33, 66), [(18, 36), (33, 66)]),
    ],
)
def test_steps_are_at_most_doublings_and_end_at_the_size(small, large, steps):
    found = list(steps_to(small, large))
    assert found[-1] == large and len(found) == len(steps)
    for (h, w), (H, W) in zip([small, *found], found, strict=False):
        assert h <= H <= 2 * h + 1 and w <= W <= 2 * w + 1


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 64, 128, 3), "at least the depth map's 128 x 128 pixels, got 128 x 64"),
        ((1, 256, 512, 3), "aspect ratio, 128 x 128, got 512 x 256"),
        ((3, 256, 256, 3), r"an image \(1, h, w, 3\) or \(2, h, w, 3\) for 2 depth maps"),
    ],
)
def test_images_that_do_not_fit_are_refused(frames, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        upscale_view(small_view(frames), torch.zeros(shape))
