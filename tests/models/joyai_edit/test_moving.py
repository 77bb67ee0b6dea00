"""Prompts and boxed images of several pictures: what is repeated, what is noted,
which picture a refusal names.
"""

import pytest
import torch

from spatialweave.models.joyai_edit.framing import fit_images, plan_framing
from spatialweave.models.joyai_edit.moving import (
    boxes_from_mask_batches,
    boxes_from_numbers,
    prepare_moves,
    split_images,
    stack_images,
)
from spatialweave.models.joyai_edit.restore import FramedImage

BOX = (60.0, 40.0, 160.0, 140.0)


def fitted(height, width, mode="pad"):
    image = torch.rand(1, height, width, 3)
    framing = plan_framing(height, width, mode)
    return fit_images(image, framing), FramedImage(image, framing)


def test_an_unfitted_image_is_boxed_and_what_comfyui_will_crop_is_said():
    (move,) = prepare_moves(["the mug"], [torch.zeros(1, 300, 400, 3)], [BOX], None)
    assert (
        move.image.shape == (1, 300, 400, 3)
        and move.box == {"x": 60, "y": 40, "width": 100, "height": 100}
    )
    (note,) = move.notes
    assert "ComfyUI will crop 4.0% of it and resize it to 1152 x 832" in note and "Wire Joy: Fit" in note
    assert prepare_moves(["the mug"], [torch.zeros(1, 832, 1152, 3)], [BOX], None)[0].notes == ()


def test_braces_and_a_box_over_the_edge_are_noted():
    image, framed = fitted(300, 500)
    (move,) = prepare_moves(["the {red|blue} mug"], [image], [(-20, 40, 60, 90)], [framed])
    assert move.prompt == "Move the {red|blue} mug into the red box and finally remove the red box."
    assert len(move.notes) == 2 and "braces" in move.notes[0] and "reaches over the edge" in move.notes[1]
    assert move.box == {"x": 0, "y": 40, "width": 60, "height": 50}


def test_names_and_framings_are_repeated_and_the_image_at_fault_is_named():
    image, framed = fitted(300, 500)
    moves = prepare_moves(["the mug"], [image, image], [BOX, (0, 0, 20, 20)], [framed])
    assert [move.box["x"] for move in moves] == [60, 0] and moves[0].prompt == moves[1].prompt
    with pytest.raises(ValueError, match="^Image 1: Expected a box inside the image of 500 x 300"):
        prepare_moves(["the mug"], [image, image], [BOX, (600, 0, 700, 50)], [framed])
    with pytest.raises(ValueError, match="Expected one object, or one for each of 2 images, got 3"):
        prepare_moves(["a", "b", "c"], [image, image], [BOX, BOX], [framed])
    with pytest.raises(ValueError, match="Expected the framing of Joy: Fit at framing, got dict"):
        prepare_moves(["a"], [image], [BOX], [{}])


def test_a_box_that_the_crop_left_out_is_refused():
    image, framed = fitted(300, 1900, "crop")
    with pytest.raises(ValueError, match="in the part of the image that Joy: Fit kept"):
        prepare_moves(["the mug"], [image], [(0, 0, 40, 40)], [framed])


def test_numbers_and_masks_come_singly_or_one_for_each_image():
    assert boxes_from_numbers([[1], [2], [3, 30], [4]], 2) == [(1, 2, 4, 6), (1, 2, 31, 6)]
    with pytest.raises(ValueError, match="Expected one x, or one for each of 2 images, got 3"):
        boxes_from_numbers([[1, 2, 3], [2], [3], [4]], 2)
    mask = torch.zeros(1, 30, 40)
    mask[0, 5:10, 6:12] = 1
    assert boxes_from_mask_batches([mask], [(30, 40), (30, 40)]) == [(6, 5, 12, 10)] * 2
    with pytest.raises(ValueError, match="Expected a mask of the image's size, 40 x 20"):
        boxes_from_mask_batches([mask], [(30, 40), (20, 40)])


def test_images_are_split_and_stacked_where_sizes_allow():
    images, notes = split_images([torch.rand(2, 8, 9, 3), torch.rand(1, 5, 6, 4)])
    assert (
        [tuple(image.shape) for image in images] == [(1, 8, 9, 3)] * 2 + [(1, 5, 6, 3)]
        and "alpha is left out" in notes[0]
    )
    assert (
        [tuple(one.shape) for one in stack_images(images[:2])] == [(2, 8, 9, 3)]
        and len(stack_images(images)) == 3
    )
