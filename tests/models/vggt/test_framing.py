"""Every pixel of an image stays where it is: a ramp of coordinates goes to the network's image and back."""

import pytest
import torch

from spatialweave.models.vggt.framing import frame_images, intrinsics_back, read_back

SIZES = [(518, 518), (1023, 517), (100, 400), (8, 8), (37, 500), (56, 57)]


def network_map(shape, frame):
    """At each pixel of the network's image, the x and y of the image's pixel coordinate there:
    exact by the frame's definition.
    """
    height, width = shape
    y = (torch.arange(height) + 0.5 - frame.offset[0]) / frame.scale[0]
    x = (torch.arange(width) + 0.5 - frame.offset[1]) / frame.scale[1]
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)))


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", SIZES)
def test_maps_come_back_to_the_pixel_they_belong_to(size, fit):
    framed, (frame,) = frame_images([torch.rand(*size, 3)], fit, 112, 14)
    assert framed.shape[-1] % 14 == 0 and framed.shape[-2] % 14 == 0
    found, seen = read_back(network_map(framed.shape[-2:], frame), frame)
    assert found.shape == (2, *size)
    x, y = torch.meshgrid(torch.arange(size[1]) + 0.5, torch.arange(size[0]) + 0.5, indexing="xy")
    # half a network pixel is clamped at the borders of the image and of the network's image
    inner = seen
    for at, axis in ((y, 0), (x, 1)):
        inside = frame.offset[axis] + frame.scale[axis] * at
        low, high = (
            max(frame.offset[axis], 0),
            min(frame.offset[axis] + frame.scale[axis] * size[axis], framed.shape[axis - 2]),
        )
        inner = inner & (inside > low + 0.5) & (inside < high - 0.5)
    if inner.any():
        assert (
            max((found[0] - x)[inner].abs().max(), (found[1] - y)[inner].abs().max())
            < 2e-3 * max(size) / 112 + 1e-3
        )
    assert seen.all() == (fit == "pad" or size[0] <= size[1] * 1.05)


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_what_the_network_sees_lies_where_the_frame_says(fit):
    """A bright column and row of the image are found at their place in the network's image."""
    image = torch.zeros(90, 150, 3)
    image[30:33], image[:, 100:103] = 1, 1
    framed, (frame,) = frame_images([image], fit, 112, 14)
    grey = framed[0].mean(0)
    left, right = (int(max(0, frame.offset[1])), int(frame.offset[1] + 150 * frame.scale[1]))
    column = grey[5:20, left + 2 : right - 2].mean(0).argmax() + left + 2
    row = (
        grey[:, left + 2 : left + 40].mean(1)[int(max(0, frame.offset[0])) + 1 : -12].argmax()
        + int(max(0, frame.offset[0]))
        + 1
    )
    assert abs(float(column) + 0.5 - (frame.offset[1] + frame.scale[1] * 101.5)) <= 0.75
    assert abs(float(row) + 0.5 - (frame.offset[0] + frame.scale[0] * 31.5)) <= 0.75


def test_images_of_several_sizes_share_a_frame_each_around_its_middle():
    framed, frames = frame_images(
        [torch.rand(50, 100, 3), torch.rand(100, 50, 3), torch.rand(60, 60, 3)], "pad", 112, 14
    )
    assert framed.shape == (3, 3, 112, 112)
    for frame in frames:
        middle = [
            offset + scale * side / 2 for offset, scale, side in zip(frame.offset, frame.scale, frame.size)
        ]
        assert all(abs(m - 56) <= 1 for m in middle)
    assert (framed[0, :, :20] == 1).all() and (framed[1, :, :, :20] == 1).all(), (
        "white beside what has another shape"
    )


def test_pixel_center_moves_the_principal_point_by_half_a_network_pixel():
    _, (frame,) = frame_images([torch.rand(100, 200, 3)], "pad", 112, 14)
    lens = torch.tensor([[100.0, 0, 56], [0, 100, 28], [0, 0, 1]])
    corner, center = intrinsics_back(lens, frame, 0.0), intrinsics_back(lens, frame, 0.5)
    assert abs(float(center[0, 2]) - 100) < 1e-4 and abs(float(center[1, 2]) - 50) < 1e-4
    assert abs(float(corner[0, 2] - center[0, 2]) - 0.5 / frame.scale[1]) < 1e-4
    assert abs(float(center[0, 0]) - 100 / frame.scale[1]) < 1e-3


def test_crop_is_the_published_size_and_says_what_is_lost():
    framed, (frame,) = frame_images([torch.rand(1000, 500, 3)], "crop", 518, 14)
    assert framed.shape[-2:] == (518, 518)  # 500 -> 518 wide, 1036 high, its middle 518 kept
    _, seen = read_back(torch.zeros(1, 518, 518), frame)
    assert abs(float(seen.float().mean()) - 0.5) < 0.01 and not seen[0].any() and seen[500].all()
    wide, _ = frame_images([torch.rand(300, 1000, 3)], "crop", 518, 14)
    assert wide.shape[-2:] == (round(518 * 0.3 / 14) * 14, 518)
