"""Pictures in every form a caller may have, against values written by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.core.pictures import read_pictures

BYTES = np.array([[[0, 51, 255], [102, 0, 1]]], dtype=np.uint8)  # 1 x 2 pixels


def assert_rgb(pictures, expected):
    torch.testing.assert_close(pictures.rgb, torch.as_tensor(expected, dtype=torch.float32))
    assert pictures.rgb.dtype == torch.float32


@pytest.mark.parametrize(
    "source",
    [
        BYTES, BYTES[None], torch.from_numpy(BYTES), Image.fromarray(BYTES),
        BYTES.astype(np.uint16) * 257, (BYTES / 255).astype(np.float32), BYTES / 255,
    ],
    ids=["uint8", "batch", "tensor", "pillow", "uint16", "float32", "float64"],
)  # fmt: skip
def test_colour_pictures_of_any_depth(source):
    pictures = read_pictures(source)
    assert_rgb(pictures, BYTES[None] / 255)
    assert pictures.alpha is None and pictures.notes == ()


def test_alpha_is_split_off_with_one_notice():
    rgba = np.concatenate([BYTES, np.array([[[255], [0]]], dtype=np.uint8)], axis=-1)
    for source in (rgba, Image.fromarray(rgba)):
        pictures = read_pictures(source)
        assert_rgb(pictures, BYTES[None] / 255)
        assert pictures.alpha.tolist() == [[[1.0, 0.0]]]
        assert len(pictures.notes) == 1 and "output as a mask" in pictures.notes[0]


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (np.full((2, 3), 51, dtype=np.uint8), 0.2),
        (np.full((2, 3, 1), 51, dtype=np.uint8), 0.2),
        (Image.new("L", (3, 2), 51), 0.2),
        (Image.new("1", (3, 2), 1), 1.0),
        (Image.fromarray(np.full((2, 3), 13107, dtype=np.uint16)), 0.2),
        (Image.fromarray(np.full((2, 3), 13107, dtype=np.int32)), 0.2),
        (torch.full((2, 3), True), 1.0),
    ],
    ids=["h w", "h w 1", "pillow L", "pillow 1", "pillow I;16", "pillow I", "bool"],
)
def test_gray_pictures_serve_all_three_colours(source, value):
    pictures = read_pictures(source)
    assert_rgb(pictures, np.full((1, 2, 3, 3), value))
    assert pictures.alpha is None


def test_gray_with_alpha_and_palettes():
    pictures = read_pictures(np.array([[[255, 51]]], dtype=np.uint8))
    assert_rgb(pictures, np.ones((1, 1, 1, 3)))
    assert pictures.alpha.flatten().tolist() == pytest.approx([0.2]) and len(pictures.notes) == 2
    assert_rgb(
        read_pictures(Image.fromarray(BYTES).convert("P", palette=Image.Palette.ADAPTIVE)), BYTES[None] / 255
    )


def test_small_overshoot_is_clamped_and_nan_zeroed_with_counts():
    source = torch.tensor([[[1.25, -0.5, 0.5], [float("nan"), float("inf"), 1.0]]])
    pictures = read_pictures(source)
    assert_rgb(pictures, [[[[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]]]])
    assert [note.split()[0] for note in pictures.notes] == ["2", "2"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            np.full((2, 2, 3), 200.0),
            r"Expected image values in \[0, 1\], got floats from 200 to 200. Divide them by their full scale",
        ),
        (np.zeros((2, 2, 3), dtype=np.int64), r"Expected an image of 8 or 16 bits .* got torch.int64"),
        (np.zeros((2, 2, 5)), r"Expected an image of height x width.* got shape \(2, 2, 5\)"),
        (torch.zeros(1, 3, 8, 8), r"shape \(1, 3, 8, 8\)"),
        (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\)"),
        (np.zeros(4), r"shape \(4,\)"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(source, said):
    with pytest.raises(ValueError, match=said):
        read_pictures(source)
