"""Which colors an image of the world shows, against its own scenes."""

import pytest
import torch

from spatialweave.models.spatial_diff.grammar import COLORS
from spatialweave.models.spatial_diff.seen_colors import HUES, explain_absent, find_colors
from spatialweave.models.world.moves import sample_moves
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import COLORS as PALETTE

SIZE = 128
SMALLEST = 40  # pixels of a solid that counts as seen


@pytest.fixture(scope="module")
def scenes():
    """Held-out scenes of moves with the colors of those solids that are seen, and of all."""
    found = []
    for edit in sample_moves(5, 48, split="test")[::6]:
        frames = render([edit.source], SIZE, SIZE)
        colors = [item.color for item in edit.source.objects]
        counts = [int((frames.segmentation[0] == number).sum()) for number, _ in enumerate(colors, 1)]
        seen = {color for color, count in zip(colors, counts, strict=True) if count >= SMALLEST}
        found.append((frames.image[0], seen, set(colors), edit.source.surroundings.floor))
    return found


def test_hues_are_those_of_the_worlds_solids():
    import colorsys

    assert tuple(HUES) == COLORS == tuple(PALETTE)
    for name, (hue, saturation) in HUES.items():
        expected = colorsys.rgb_to_hsv(*PALETTE[name])
        assert 360 * expected[0] == pytest.approx(hue, abs=0.1)
        assert expected[1] == pytest.approx(saturation, abs=0.01)


def test_every_solid_is_seen_and_hardly_another_color(scenes):
    wrong = 0
    for image, seen, colors, floor in scenes:
        found = set(find_colors(image))
        assert seen <= found, (seen, found)
        wrong += len(found - colors - ({"orange"} if floor == "wooden" else set()))
    assert sum(len(seen) for _, seen, _, _ in scenes) > 10
    assert wrong <= 1, "of eight colors in each image"


def test_an_object_of_an_absent_color_is_named_with_what_is_there(scenes):
    image, seen, colors, floor = scenes[0]
    absent = next(color for color in ("purple", "cyan", "green") if color not in colors)
    there = sorted(seen)[0]
    said = explain_absent(f"move the {absent} ball behind the {there} box", image)
    assert said.startswith(f"Expected the {absent} ball in the image") and there in said.split("got")[1]
    assert explain_absent(f"move the {there} ball to the left", image) is None
    assert explain_absent("move the ball to the left", image) is None  # no color, nothing to compare
    gray = torch.full((8, 8, 3), 0.5)
    assert "without any of the colors" in explain_absent("move the red ball to the left", gray)
