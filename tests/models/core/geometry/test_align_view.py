"""Whole views into the scale of another: what is fitted, what goes along, what is dropped."""

from dataclasses import replace

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.geometry.align import align_depth, align_view
from spatialweave.models.core.geometry.camera import intrinsics_from_fov, look_at
from spatialweave.models.core.geometry.normals import normals_from_depth, view_with_normals
from spatialweave.models.core.geometry.points import view_to_point_cloud, viewer_pose
from spatialweave.models.core.geometry.view import View


def truth():
    depth = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1
    pose = look_at(torch.tensor([[0.0, 1, 4], [2.0, 1, 3]]), (0.0, 0.0, 0.0))
    return View.from_depth(
        depth, units="metric", intrinsics=intrinsics_from_fov(60.0, 8, 6), world_to_cam=pose
    )


@pytest.mark.parametrize("fit", ["scale", "scale, robust"])
@pytest.mark.parametrize("quantity", ["depth", "disparity"])
def test_a_scaled_view_comes_back_with_pose_and_normals(fit, quantity):
    reference = truth()
    small = reference.world_to_cam.clone()
    small[:, :3, 3] /= 4
    view = View.from_depth(
        reference.depth / 4, units="relative", intrinsics=reference.intrinsics, world_to_cam=small
    )
    view = view_with_normals(view)
    aligned, found = align_view(view, reference, fit, quantity)
    assert_close(aligned.depth, reference.depth, atol=1e-5)
    assert_close(aligned.world_to_cam, reference.world_to_cam, atol=1e-5)
    assert aligned.units == "metric" and torch.equal(aligned.normals, view.normals)
    assert_close(
        found.scale if quantity == "depth" else 1 / found.scale, torch.full((2,), 4.0).double(), atol=1e-5
    )


@pytest.mark.parametrize("fit", ["scale and shift", "scale and shift, robust"])
def test_a_shift_is_found_from_few_pixels_and_drops_what_it_bends(fit):
    reference = truth()
    sparse = torch.zeros_like(reference.depth)
    sparse[:, ::3, ::3] = reference.depth[:, ::3, ::3]
    view = replace(
        truth(), depth=reference.depth / 2 + 0.25, units="relative", normals=torch.ones(2, 6, 8, 3)
    )
    aligned, found = align_view(view, View.from_depth(sparse, units="metric"), fit)
    assert_close(aligned.depth, reference.depth, atol=1e-4)
    assert aligned.normals is None and aligned.world_to_cam is None and aligned.intrinsics is not None
    assert found.describe().startswith("image 0: scale 2, shift -0.5") and found.describe().count("\n") == 1


def test_outliers_move_the_robust_fit_least():
    reference = truth()
    spoiled = reference.depth.clone()
    spoiled[:, 0, :4] = 90.0
    half, spoiled = (
        View.from_depth(reference.depth / 2, units="relative"),
        View.from_depth(spoiled, units="metric"),
    )
    aligned, _ = align_view(half, spoiled, "scale, robust")
    assert_close(aligned.depth, reference.depth, atol=1e-4)


def test_depth_driven_to_zero_or_beyond_infinity_becomes_invalid():
    views = [
        View.from_depth(torch.tensor([[values]]), units="metric")
        for values in ([1.0, 2, 3, 4], [0.0, 1, 2, 3], [1.0, 2, 4, 0])
    ]
    aligned, _ = align_view(views[0], views[1], "scale and shift")
    assert aligned.mask.tolist() == [[[False, True, True, True]]]
    depth, target = torch.tensor([[[1.0, 2.0, 50.0]]]), torch.tensor([[[1.0, 4.0, 0.0]]])
    mask = torch.tensor([[[True, True, False]]])
    assert align_depth(depth, target, mask, "scale and shift", "disparity")[0][0, 0, 2] == torch.inf


@pytest.mark.parametrize("fit", ["scale and shift", "scale and shift, robust"])
@pytest.mark.parametrize("quantity", ["depth", "disparity"])
def test_a_fit_that_makes_near_things_far_is_refused(fit, quantity):
    """As when disparity is taken for depth; a scale alone is positive, and goes through."""
    reference = truth()
    turned = View.from_depth(torch.stack([reference.depth[0], 1 / reference.depth[1]]), units="relative")
    with pytest.raises(
        ValueError,
        match="Expected a fit with a scale above 0, got the scale -.* for image 1, which makes near "
        "things far, .*. Check that",
    ):
        align_view(turned, reference, fit, quantity)
    assert bool(align_view(turned, reference, "scale", quantity)[1].scale.gt(0).all())


def test_one_reference_serves_a_batch():
    reference = truth()
    aligned, _ = align_view(
        View.from_depth(truth().depth[:1].repeat(3, 1, 1) * 2, units="relative"), reference[0], "scale"
    )
    assert_close(aligned.depth, reference.depth[:1].expand(3, 6, 8), atol=1e-5)


def test_what_is_refused():
    reference, other = truth(), View.from_depth(torch.ones(3, 6, 8), units="metric")
    for call, sentence in (
        (lambda: align_view(other, reference, "scale"), "got 2 for 3. Give equally many, or one for all"),
        (lambda: align_view(reference, reference, "shift"), "got 'shift' in 'depth'"),
        (
            lambda: align_view(View.from_depth(torch.ones(1, 2, 2), units="metric"), reference, "scale"),
            "Scale the image to 8 x 6",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_normals_of_a_view_know_its_camera_and_zero_means_no_edges():
    view = truth()
    assert torch.equal(
        view_with_normals(view).normals, normals_from_depth(view.depth, view.intrinsics, view.mask)
    )
    assert (view_with_normals(view, edge_rtol=0).normals[:, 1:-1, 1:-1].norm(dim=-1) - 1).abs().max() < 1e-5


def test_aligned_views_of_one_world_meet():
    """The cloud of a view at half scale lands, aligned, on that of the reference in the world."""
    reference = truth()
    small = reference.world_to_cam.clone()
    small[:, :3, 3] /= 2
    view = View.from_depth(
        reference.depth / 2, units="relative", intrinsics=reference.intrinsics, world_to_cam=small
    )
    aligned, _ = align_view(view, reference, "scale")
    for index in range(2):
        got, want = (view_to_point_cloud(one, edge_rtol=0)[index].points for one in (aligned, reference))
        assert_close(got, want, atol=1e-5)
        assert_close(viewer_pose(aligned, "world")[index], viewer_pose(reference, "world")[index], atol=1e-5)
