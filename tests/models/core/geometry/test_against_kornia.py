"""Our geometry against kornia's, where kornia has the operation.

It judges and does not serve: ComfyUI lists kornia among its requirements that are not essential, importing it takes over a second,
and its pixel centres are whole numbers where ours lie at +0.5, so half a pixel has to be moved at each call.
"""

import torch
from kornia.color import rgb_to_linear_rgb
from kornia.geometry.camera import project_points, unproject_points
from kornia.geometry.depth import depth_to_3d_v2, depth_to_normals
from kornia.morphology import gradient

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


def test_edges_are_a_morphological_gradient():
    spread = gradient(DEPTH.unsqueeze(1), torch.ones(3, 3)).squeeze(1)
    assert torch.equal(depth_edges(DEPTH, 0.5), spread > 0.5 * DEPTH)


def test_linear_light():
    image = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(srgb_to_linear(image).movedim(-1, 0), rgb_to_linear_rgb(image.movedim(-1, 0)))
