"""The tiny editor as it ships: its files, and an edit of an example image, judged by the world's scorer."""

import pytest
import torch

from spatialweave.models.core.weights.files import read_header
from spatialweave.models.spatial_diff.config import find_preset
from spatialweave.models.spatial_diff.editor_files import EDITOR_FILE, LORA_FILE, TEXT_FILE
from spatialweave.models.spatial_diff.pipeline import SpatialDiffPipeline
from spatialweave.models.spatial_diff.weights import HEAD, TINY_CONNECTOR, load_connector
from spatialweave.models.vggt.examples import load_example
from spatialweave.models.vggt.pipeline import TINY_NETWORK
from spatialweave.models.world.judges.scorer import Scorer

FILES = (EDITOR_FILE, TEXT_FILE, LORA_FILE, TINY_CONNECTOR)


def test_all_that_ships_is_small():
    """With the tiny VGGT, whose tokens it takes; in half precision but for the LoRA's scales."""
    assert sum(file.stat().st_size for file in (*FILES, TINY_NETWORK)) < 16e6
    for file in FILES:
        header = read_header(file)
        kept = {name for name, dtype in header.dtypes.items() if dtype != "F16"}
        assert all(name.endswith(".alpha") for name in kept), (file.name, kept)
        assert header.metadata["spatialweave"]


def test_the_connector_is_for_the_tiny_editor_and_the_tiny_vggt():
    assert load_connector(TINY_CONNECTOR).config == find_preset("tiny")
    assert any(name.startswith(HEAD) for name in read_header(TINY_CONNECTOR).shapes)


@pytest.fixture(scope="module")
def example():
    """The template's image, and what the scorer sees in it: its objects by name."""
    views = load_example("boxes")[:1].movedim(-1, 1)
    image = torch.nn.functional.interpolate(views, (128, 128), mode="area").movedim(1, -1)
    scorer = Scorer.from_pretrained()

    def see(pictures):
        return {item.name: item for item in scorer.read(pictures)[0]}

    return image, see


@pytest.mark.parametrize(
    ("text", "sign"),
    [("move the pink box one metre to the left", -1), ("move the blue box one metre to the right", 1)],
)
def test_an_object_moves_and_the_other_stays(example, text, sign):
    image, see = example
    moved, other = ("pink box", "blue box") if "pink" in text else ("blue box", "pink box")
    before = see(image)
    result = SpatialDiffPipeline.from_preset("tiny")(text, image=image, seed=1)
    after = see(result.image)
    assert result.notes == () and {moved, other} <= set(after), sorted(after)
    assert sign * (after[moved].x - before[moved].x) > 0.15  # of half the width
    assert abs(after[other].x - before[other].x) < 0.06
    assert abs(after[other].y - before[other].y) < 0.06
