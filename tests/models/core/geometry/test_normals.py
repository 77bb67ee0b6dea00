"""Normals from depth against planes and a sphere worked out on paper."""

import pytest
import torch

from spatialweave.models.core.geometry.camera import intrinsics_from_fov, pixel_centers
from spatialweave.models.core.geometry.normals import normals_from_depth, normals_to_image


def rays(height, width, intrinsics):
    pixels = pixel_centers(height, width)
    return torch.cat(
        [(pixels - intrinsics[:2, 2]) / intrinsics.diagonal()[:2], torch.ones(height, width, 1)], dim=-1
    )


def angles(a, b):
    return torch.rad2deg(torch.atan2(torch.linalg.cross(a, b, dim=-1).norm(dim=-1), (a * b).sum(-1)))


@pytest.mark.parametrize(
    "normal", [(0.0, 0.0, -1.0), (0.6, 0.0, -0.8), (0.0, -0.6, -0.8), (-0.48, 0.64, -0.6)], ids=str
)
def test_planes_are_exact_up_to_the_border(normal):
    """n . p = d gives z = d / (n . ray)."""
    intrinsics, normal = intrinsics_from_fov(40, 16, 12), torch.tensor(normal)
    depth = -2 / (rays(12, 16, intrinsics) @ normal)
    assert bool((depth > 0).all())
    found = normals_from_depth(depth[None], intrinsics[None], edge_rtol=10)
    torch.testing.assert_close(found[0], normal.expand(12, 16, 3), atol=2e-4, rtol=0)


def sphere_over_wall(size=96):
    """A unit sphere 4 away before a wall 7 away: depth, normals and which pixels are sphere."""
    intrinsics = intrinsics_from_fov(45, size, size)
    ray = rays(size, size, intrinsics)
    a, b, c = (ray * ray).sum(-1), -2 * 4 * ray[..., 2], 16 - 1
    root = b * b - 4 * a * c
    hit = root > 0
    depth = torch.where(hit, (-b - root.clamp_min(0).sqrt()) / (2 * a), torch.full_like(a, 7.0))
    normals = torch.where(
        hit[..., None], ray * depth[..., None] - torch.tensor([0.0, 0, 4]), torch.tensor([0.0, 0, -1])
    )
    return depth, normals, hit, intrinsics


def test_sphere_is_near_and_its_edge_does_not_bleed():
    depth, truth, hit, intrinsics = sphere_over_wall()
    found = normals_from_depth(depth[None], intrinsics[None])[0]
    error = angles(found, truth)
    inside = hit & (truth[..., 2] < -0.5)
    assert float(error[inside].max()) < 2.5
    assert float(error[inside].mean()) < 0.3
    assert float(error[~hit].max()) < 0.1  # the wall is flat right up to the sphere
    assert bool((found[..., 2] <= 0).all())


def test_invalid_pixels_have_no_normal_and_do_not_spread():
    depth = torch.full((1, 5, 5), 2.0)
    depth[0, 2, 2] = float("nan")
    found = normals_from_depth(depth, intrinsics_from_fov(50, 5, 5)[None])
    assert found[0, 2, 2].tolist() == [0, 0, 0]
    rest = torch.ones(5, 5, dtype=torch.bool)
    rest[2, 2] = False
    torch.testing.assert_close(found[0][rest], torch.tensor([0.0, 0.0, -1.0]).expand(24, 3))
    mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    mask[0, 1, 1] = True
    assert not bool(normals_from_depth(depth, intrinsics_from_fov(50, 5, 5)[None], mask).any())


def test_a_line_of_pixels_has_no_normals():
    assert not bool(normals_from_depth(torch.ones(1, 1, 4), intrinsics_from_fov(50, 4, 1)[None]).any())


def test_picture_conventions():
    facing, upward, none = [0.0, 0, -1], [0.0, -1, 0], [0.0, 0, 0]
    normals = torch.tensor([facing, upward, none])
    assert normals_to_image(normals).tolist() == [[0.5, 0.5, 1], [0.5, 1, 0.5], [0, 0, 0]]
    assert normals_to_image(normals, "directx").tolist() == [[0.5, 0.5, 1], [0.5, 0, 0.5], [0, 0, 0]]
    with pytest.raises(ValueError, match="Expected a normal map style of .*, got 'unity'"):
        normals_to_image(normals, "unity")
