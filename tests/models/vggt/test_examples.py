"""The example views that ship: what the world renders, in scenes that the tiny network reads."""

import pytest
import torch

from spatialweave.models.vggt.examples import list_examples, load_example
from spatialweave.models.vggt.pipeline import TINY_NETWORK, VggtPipeline
from spatialweave.models.world.multiview import sample_views

SCENES = {"boxes": 4, "cones": 11, "desert": 2}  # their index in the held-out split of seed 0


@pytest.fixture(scope="module", params=sorted(SCENES))
def scene(request):
    """(the shipped images, the same views rendered with their exact depth)."""
    (views,) = sample_views(0, 1, 4, (224, 224), split="test", start=SCENES[request.param], samples=3)
    return load_example(request.param), views


def test_every_scene_is_tested():
    assert list_examples() == sorted(SCENES)


def test_the_images_are_the_rendered_views(scene):
    image, views = scene
    assert image.shape == (4, 224, 224, 3) and image.dtype == torch.float32
    for one, rendered in zip(image, views.image):
        assert (one - rendered).abs().mean() < 2 / 255, "more than JPEG changes"


def test_the_tiny_network_finds_the_depth_that_the_help_states(scene):
    """4 to 5% of mean relative difference, after one factor."""
    image, views = scene
    view = VggtPipeline.from_file(TINY_NETWORK)(image).view
    known = views.mask & view.mask
    ratio = view.depth[known] / views.depth_metric[known]
    assert known.sum() > 0.98 * views.mask.sum() and (ratio / ratio.median() - 1).abs().mean() < 0.055


def test_a_scene_that_does_not_ship_is_refused():
    with pytest.raises(ValueError, match=r"Expected an example scene, boxes, cones, desert, got '\.\./x'"):
        load_example("../x")
