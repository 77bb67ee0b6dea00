"""The tiny network that ships: its figures on held-out scenes, its size and its precision."""

import pytest
import torch
from safetensors import safe_open

from spatialweave.models.benchmarks.vggt import evaluate_vggt
from spatialweave.models.vggt.config import PRESETS
from spatialweave.models.vggt.pipeline import TINY_NETWORK, VggtPipeline
from spatialweave.models.vggt.weights import load_network
from spatialweave.models.world.multiview import sample_views


def test_shipped_file_is_the_preset_in_a_few_megabytes():
    assert TINY_NETWORK.stat().st_size < 4.5e6
    network, config = load_network(TINY_NETWORK)
    assert config == PRESETS["tiny"] and network.aggregator.camera_token.dtype == torch.float32
    assert {safe_open(TINY_NETWORK, "pt").get_tensor(name).dtype for name in network.state_dict()} == {
        torch.int8, torch.float16,
    }  # fmt: skip


def test_shipped_network_meets_its_figures_on_held_out_scenes():
    """Depth within 8 % and half of the relative rotations within 5 degrees, on scenes of 2 to 4 views."""
    figures = evaluate_vggt(count=24)
    assert figures["absrel"] <= 0.08, figures
    assert figures["rotation"] <= 5.0, figures


@pytest.mark.parametrize("size", [(112, 84), (200, 150), (60, 112)])
def test_shipped_network_takes_other_shapes(size):
    (scene,) = sample_views(0, 1, 3, size, split="test", start=3)
    view = VggtPipeline.from_preset("tiny")(scene.image).view
    scale = (scene.depth_metric[scene.mask] / view.depth[scene.mask]).median()
    error = ((scale * view.depth - scene.depth_metric).abs() / scene.depth_metric)[scene.mask].mean()
    assert view.depth.shape == (3, *size) and error < 0.2
