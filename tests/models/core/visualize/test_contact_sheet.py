"""The contact sheet: the pictures are on it where they belong, the words are printed, every shape of picture
fits.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.core.geometry.view import View
from spatialweave.models.core.visualize.contact_sheet import contact_sheet, find_unprintable
from spatialweave.models.core.visualize.depth_colors import NO_DEPTH, color_depth
from spatialweave.models.core.visualize.orbit import Orbit

PAGE = torch.tensor([22, 23, 27]) / 255


def parts(height=48, width=48, frames=4, **others):
    random = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(
        torch.rand(1, 3, 6, 6, generator=random), (height, width), mode="bilinear"
    ).movedim(1, -1)
    depth = torch.linspace(4, 1, height)[:, None].repeat(1, width)
    orbit = Orbit(torch.rand(frames, height, width, 3, generator=random), 55.0, True)
    return View.from_depth(depth, units="relative", image=image, **others), orbit


def inked(sheet):
    """Share of pixels that are not page."""
    return (sheet - PAGE).abs().amax(-1) > 0.02


def test_the_panels_hold_image_and_depth():
    view, orbit = parts()
    sheet = contact_sheet(view, orbit, caption="a ball", facts=["seed 7"])
    assert sheet.dtype == torch.float32 and sheet.shape[1:] == (1480, 3)
    large = Image.fromarray((view.image[0] * 255).round().byte().numpy()).resize(
        (440, 440), Image.Resampling.LANCZOS
    )
    np.testing.assert_array_equal(
        (sheet[76:476, 76:476] * 255).round().byte(), np.asarray(large)[20:420, 20:420]
    )
    depth = color_depth(view).image
    for row in (4, 24, 44):
        place = 56 + round((row + 0.5) * 440 / 48)
        torch.testing.assert_close(sheet[place, 740], depth[row, 24], atol=0.06, rtol=0)


def test_own_normals_are_shown_and_missing_ones_are_gray():
    normals = torch.zeros(1, 48, 48, 3)
    normals[..., :24, :] = torch.tensor([0.0, 0.0, -1.0])
    view, orbit = parts(normals=normals)
    sheet = contact_sheet(view, orbit, caption="")
    assert sheet[276, 1100].tolist() == pytest.approx([0.5, 0.5, 1], abs=0.01)
    assert sheet[276, 1350].tolist() == pytest.approx(NO_DEPTH, abs=0.01)


def test_words_are_printed_and_long_captions_take_lines():
    view, orbit = parts()
    bare, short, long = (
        contact_sheet(view, orbit, caption=text) for text in ("", "a ball", "a ball beside a box " * 8)
    )
    assert len(bare) < len(short) < len(long)
    assert len(contact_sheet(view, orbit, caption="word " * 500)) == len(
        contact_sheet(view, orbit, caption="word " * 100)
    )
    assert len(contact_sheet(view, orbit, caption="w" * 500)) == len(short)
    with_facts = contact_sheet(view, orbit, caption="a ball", facts=["seed 7", "1.5 s"] * 40)
    line = slice(len(short) - 73, len(short) - 56)
    assert int(inked(with_facts[line, 56:1200]).sum()) > 1000 and int(inked(short[line, 56:1200]).sum()) == 0
    assert int(inked(short[line, 1250:1424]).sum()) > 100  # the name
    assert not bool(
        inked(with_facts[:, :56]).any() | inked(with_facts[:, 1424:]).any() | inked(with_facts[-50:]).any()
    )


def test_holes_get_a_legend():
    view, orbit = parts()
    depth = view.depth.clone()
    depth[0, :5] = float("nan")
    holed = contact_sheet(View.from_depth(depth, units="relative", image=view.image), orbit, caption="")
    whole = contact_sheet(view, orbit, caption="")
    beside_the_label = slice(505, 530), slice(850, 960)
    assert int(inked(holed[beside_the_label]).sum()) > 100 and int(inked(whole[beside_the_label]).sum()) == 0


@pytest.mark.parametrize(("height", "width", "frames"), [(30, 90, 24), (90, 30, 2), (2, 3, 1), (48, 48, 7)])
def test_any_shape_fits(height, width, frames):
    view, orbit = parts(height, width, frames)
    sheet = contact_sheet(view, orbit, caption="a ball")
    assert sheet.shape[1] == 1480 and len(sheet) < 1500
    assert not bool(inked(sheet[:, :56]).any() | inked(sheet[:56]).any() | inked(sheet[:, 1424:]).any())


def test_bad_input_is_worded():
    view, orbit = parts()
    with pytest.raises(
        ValueError, match="Expected one View with its image for a contact sheet, got a batch of 2"
    ):
        contact_sheet(
            View.from_depth(view.depth.expand(2, -1, -1), units="relative", image=view.image),
            orbit,
            caption="",
        )


def test_what_the_font_cannot_print_is_named_and_left_out():
    """A title of Chinese alone leaves the page as an empty title does; Latin letters are all printed."""
    chinese = "\u7ea2\u7403 \u7ea2"
    assert find_unprintable(f"A ball, 3.5! {chinese}\U0001f534") == "\u7ea2\u7403\U0001f534"
    view, orbit = parts()
    sheets = [contact_sheet(view, orbit, caption=f"a ball{text}") for text in ("", chinese)]
    assert torch.equal(*sheets)
