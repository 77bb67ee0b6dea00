"""The red box against Pillow's own rectangle, and one box from numbers, core's bounding boxes and masks."""

import math

import numpy as np
import pytest
import torch

from spatialweave.models.joyai_edit.boxes import (
    box_from_sides,
    boxes_from_core,
    boxes_from_masks,
    broadcast_boxes,
    draw_red_box,
    line_width,
    require_target,
    round_box,
)


@pytest.mark.parametrize(
    "size, width", [((1024, 1024), 4), ((832, 1216), 4), ((256, 256), 2), ((48, 64), 2), ((2160, 3840), 11)]
)
def test_line_width(size, width):
    assert line_width(*size) == width


@pytest.mark.parametrize("size, box", [
    ((1024, 1024), (682, 378, 935, 664)), ((48, 64), (10.4, 7.5, 40.6, 30.5)),
    ((832, 1216), (-121.6, 166.4, 425.6, 998.4)),
    ((1024, 1024), (100, 100, 106, 300)), ((64, 64), (0, 0, 64, 64)),
])  # fmt: skip
def test_outline_is_pillows(size, box):
    draw = pytest.importorskip("PIL.ImageDraw")
    from PIL import Image

    height, width = size
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    corners = [max(0, math.floor(box[0] + 0.5)), max(0, math.floor(box[1] + 0.5))]
    corners += [min(width, math.floor(box[2] + 0.5)) - 1, min(height, math.floor(box[3] + 0.5)) - 1]
    draw.Draw(picture).rectangle(corners, outline=(255, 0, 0), width=line_width(height, width))
    drawn = draw_red_box(torch.full((height, width, 3), 128 / 255), box)
    np.testing.assert_array_equal((drawn * 255).round().to(torch.uint8).numpy(), np.asarray(picture))


def test_a_box_narrower_than_two_lines_is_filled():
    drawn = draw_red_box(torch.zeros(64, 64, 3), (5, 5, 6, 40))
    red = torch.zeros(64, 64, dtype=torch.bool)
    red[5:40, 5:6] = True
    assert torch.equal(drawn[..., 0] == 1, red) and not drawn[..., 1:].any()


def test_the_image_that_is_drawn_on_stays():
    image = torch.zeros(20, 30, 3)
    draw_red_box(image, (2, 2, 10, 10))
    assert not image.any()


@pytest.mark.parametrize("box, words", [
    ((1100, 100, 1200, 300), "outside"), ((500, 500, 500, 700), "empty"), ((10, 10, 10.2, 20), "empty"),
    ((30, 10, 20, 40), "empty"),
    ((math.nan, 0, 5, 5), "Expected a box of four numbers"), ((-50, -50, 0, 0), "outside"),
])  # fmt: skip
def test_boxes_without_a_pixel_are_refused(box, words):
    with pytest.raises(ValueError, match=words):
        round_box(box, 1024, 1024)


def test_one_pixel_is_no_target_and_an_overhang_is_said():
    with pytest.raises(ValueError, match="one pixel"):
        require_target((5, 5, 6, 6), 64, 64)
    assert require_target((5, 5, 6, 7), 64, 64) == ((5, 5, 6, 7), [])
    box, (note,) = require_target((-10, 5, 20, 30), 64, 64)
    assert box == (0, 5, 20, 30) and "reaches over the edge" in note and "x 0, y 5, 20 wide, 25 high" in note


def test_numbers_core_and_mask_give_one_box():
    mask = torch.zeros(1, 60, 80)
    mask[0, 12:40, 7:33] = 1
    frame = {"x": 7, "y": 12, "width": 26, "height": 28}
    boxes = [
        [box_from_sides(7, 12, 26, 28)],
        boxes_from_core(frame),
        boxes_from_core([frame]),
        boxes_from_core([[frame]]),
    ]
    assert all(found == [(7, 12, 33, 40)] for found in [*boxes, boxes_from_masks(mask, 60, 80)])


def test_a_batch_has_one_box_each_and_one_serves_all():
    frames = [[{"x": n, "y": 0, "width": 5, "height": 5}] for n in range(3)]
    boxes = boxes_from_core(frames)
    assert (
        [box[0] for box in broadcast_boxes(boxes, 3)] == [0, 1, 2]
        and broadcast_boxes(boxes[:1], 2) == boxes[:1] * 2
    )
    with pytest.raises(
        ValueError, match="Expected one box, or one for each of 2 images, got boxes for 3 images"
    ):
        broadcast_boxes(boxes, 2)


FRAME = {"x": 1, "y": 2, "width": 3, "height": 4}


@pytest.mark.parametrize("boxes, words", [
    ([FRAME, FRAME], "Expected one box for image 0, got 2. Move one object at a time"),
    ([[FRAME], [FRAME] * 3], "image 1, got 3"),
    ([], "got none"), (None, "got none"), ([[]], "Expected one box for image 0, got 0"),
    ([[{"x": 1}]], "Expected a box with x, y, width and"),
    ("1,2,3,4", "Expected a bounding box, got '1,2,3,4'"),
])  # fmt: skip
def test_several_or_no_boxes_are_refused(boxes, words):
    with pytest.raises(ValueError) as error:
        boxes_from_core(boxes)
    assert words in str(error.value)


def test_masks_of_another_size_or_without_a_pixel_are_refused():
    with pytest.raises(
        ValueError, match=r"Expected a mask of the image's size, 80 x 60 \(width x height\), got 64 x 48"
    ):
        boxes_from_masks(torch.ones(1, 48, 64), 60, 80)
    with pytest.raises(ValueError, match="got mask 1 without a pixel"):
        boxes_from_masks(torch.stack([torch.ones(6, 8), torch.full((6, 8), 0.2)]), 6, 8)
