"""Our geometry against kornia's, where kornia has the operation.

Where kornia's is as exact for every input (depth edges, linear light) it is used, and the tests below compare
it with numpy. Elsewhere it is the judge: it ignores the skew of intrinsics, its normals span depth edges, and
its pixel centers are whole numbers where ours are at +0.5, so the principal point is moved by half a pixel.
"""

import numpy as np
import pytest
import torch
from kornia.geometry.camera import project_points, unproject_points
from kornia.geometry.depth import depth_to_3d_v2, depth_to_normals

from spatialweave.models.core.export.exr import srgb_to_linear
from spatialweave.models.core.geometry.camera import intrinsics_from_fov, pixel_centers, project, unproject
from spatialweave.models.core.geometry.normals import normals_from_depth
from spatialweave.models.core.geometry.points import depth_edges, depth_to_points

HEIGHT, WIDTH = 19, 27
CAMERA = intrinsics_from_fov(torch.tensor([60.0, 75.0]), WIDTH, HEIGHT)  # b 3 3
DEPTH = torch.rand(2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 4 + 0.5


def at_whole_pixels(camera):
    """The same camera for pixel centres at 0, 1, 2 ..."""
    moved = camera.clone()
    moved[:, :2, 2] -= 0.5
    return moved


def test_depth_to_points():
    torch.testing.assert_close(depth_to_points(DEPTH, CAMERA), depth_to_3d_v2(DEPTH, at_whole_pixels(CAMERA)))


def test_project_and_unproject():
    pixels = pixel_centers(HEIGHT, WIDTH).expand(2, HEIGHT, WIDTH, 2)
    per_pixel = CAMERA[:, None, None].expand(2, HEIGHT, WIDTH, 3, 3)
    points = unproject(pixels, DEPTH, CAMERA)
    torch.testing.assert_close(points, unproject_points(pixels, DEPTH.unsqueeze(-1), per_pixel))
    torch.testing.assert_close(project(points, CAMERA)[0], project_points(points, per_pixel))


def test_normals_of_a_plane_agree_but_for_the_border():
    """Kornia's point away from the camera, and its Sobel filter leans on the border pixels."""
    x, y = ((pixel_centers(HEIGHT, WIDTH) - CAMERA[0, :2, 2]) / CAMERA[0, 0, 0]).unbind(-1)
    plane = (3 / (1 + 0.3 * x - 0.2 * y)).unsqueeze(0)
    ours = normals_from_depth(plane, CAMERA[:1], edge_rtol=torch.inf)
    theirs = depth_to_normals(plane.unsqueeze(1), at_whole_pixels(CAMERA[:1])).movedim(1, -1)
    theirs = theirs * torch.sign((theirs * ours).sum(-1, keepdim=True))
    torch.testing.assert_close(ours[:, 2:-2, 2:-2], theirs[:, 2:-2, 2:-2], atol=2e-3, rtol=0)


def test_kornia_ignores_the_skew_of_intrinsics_and_ours_do_not():
    skewed = CAMERA.clone()
    skewed[:, 0, 1] = 0.02 * skewed[:, 0, 0]
    pixels = pixel_centers(HEIGHT, WIDTH).expand(2, HEIGHT, WIDTH, 2)
    homogeneous = torch.cat([pixels, torch.ones(2, HEIGHT, WIDTH, 1)], dim=-1).double().numpy()
    inverse = np.linalg.inv(skewed.double().numpy())
    true_points = np.einsum("bij,bhwj->bhwi", inverse, homogeneous) * DEPTH.double().numpy()[..., None]
    ours = depth_to_points(DEPTH, skewed)
    np.testing.assert_allclose(ours.numpy(), true_points, atol=2e-6)
    torch.testing.assert_close(project(ours, skewed)[0], pixels, atol=1e-4, rtol=0)
    assert np.abs(depth_to_3d_v2(DEPTH, at_whole_pixels(skewed)).numpy() - true_points).max() > 0.01


@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_edges_are_the_range_of_each_window(scale):
    """Against numpy's sliding windows, with holes, and at depths beyond the padding value of kornia's
    default.
    """
    depth = (DEPTH * scale).masked_fill(DEPTH < 1, 0)
    numbers = depth.numpy()
    padded = [np.pad(numbers, ((0, 0), (1, 1), (1, 1)), constant_values=value) for value in (-np.inf, np.inf)]
    high, low = (np.lib.stride_tricks.sliding_window_view(each, (3, 3), axis=(1, 2)) for each in padded)
    true_edges = high.max((-1, -2)) - low.min((-1, -2)) > np.float32(0.5) * np.maximum(
        numbers, np.float32(1e-6)
    )
    found = depth_edges(depth, 0.5).numpy()
    np.testing.assert_array_equal(found, true_edges)
    assert 0 < found.sum() < found.size


def test_far_planes_have_no_edge_at_the_border():
    assert not depth_edges(torch.full((1, 8, 8), 2e4), 0.04).any()


def test_linear_light():
    """Against the two pieces of IEC 61966-2-1 in float64."""
    image = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0))
    values = image.double().numpy()
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    found = srgb_to_linear(image)
    assert found.is_contiguous() and found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), linear, atol=1e-6)
