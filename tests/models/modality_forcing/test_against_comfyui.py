"""Core's FLUX.2, core's model detection and core's noise as the truth, all from one process of its own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.kernels.testing import assert_close
from spatialweave.models.modality_forcing.config import PRESETS, ModalityForcingConfig
from spatialweave.models.modality_forcing.sampling import draw_noise
from spatialweave.models.modality_forcing.weights import is_image_text, network_shapes

pytestmark = pytest.mark.comfyui

BASES = ("klein_9b", "klein_4b")
BLOCKS = {"num_double_blocks": 2, "num_single_blocks": 2, "num_depth_decoder_blocks": 1}
CONFIG = ModalityForcingConfig(context_in_dim=24, hidden_size=256, num_heads=2, **BLOCKS)
SEED, SHAPES = 1234567, [(2, 32, 3, 5), (2, 1, 48, 80)]


@pytest.fixture(scope="module")
def core(inside, tmp_path_factory, make_network, make_inputs):
    """(JSON answer, velocity) of inside_core.py for a network of CONFIG."""
    folder = tmp_path_factory.mktemp("core")
    img, _, context, t_rgb, _ = make_inputs(CONFIG, grid=(3, 5), text=7)
    save_file(
        {name: v for name, v in make_network(CONFIG).state_dict().items() if is_image_text(name)},
        folder / "weights.safetensors",
    )
    save_file({"img": img, "context": context, "t": t_rgb}, folder / "inputs.safetensors")
    presets = {
        name: {key: shape for key, shape in network_shapes(PRESETS[name]).items() if is_image_text(key)}
        for name in BASES
    }
    request = {"presets": presets, "noise": {"seed": SEED, "shapes": SHAPES}}
    inside(Path(__file__).with_name("inside_core.py"), "run", folder=str(folder), **request)
    return json.loads((folder / "answer.json").read_text()), load_file(folder / "output.safetensors")


def test_without_depth_the_network_is_cores_flux2(core, make_network, make_inputs):
    answer, output = core
    assert answer["network"] == {"image_model": "flux2", "unused": []}
    img, _, context, t_rgb, _ = make_inputs(CONFIG, grid=(3, 5), text=7)
    with torch.no_grad():
        velocity = make_network(CONFIG).forward_image(img, context, t_rgb)
    assert_close(velocity, output["velocity"], atol=1e-4)  # core's rotary angles are float64, ours float32


@pytest.mark.parametrize("name", BASES)
def test_core_detects_our_bases_as_the_flux2_they_are(core, name):
    found, config = core[0]["presets"][name], PRESETS[name]
    assert found["class"] == "Flux2" and found["image_model"] == "flux2"
    assert found["hidden_size"] == config.hidden_size and found["num_heads"] == config.num_heads
    assert (
        found["depth"] == config.num_double_blocks
        and found["depth_single_blocks"] == config.num_single_blocks
    )
    assert found["in_channels"] == config.in_channels and found["out_channels"] == config.in_channels
    assert found["context_in_dim"] == config.context_in_dim and found["mlp_ratio"] == config.mlp_ratio
    assert tuple(found["axes_dim"]) == config.axes_dim and found["theta"] == config.theta
    # three layers of its Qwen3 text encoder side by side
    assert 3 * core[0]["text_widths"][name] == config.context_in_dim


def test_noise_is_what_core_draws_for_a_nested_latent(core):
    rgb, depth = draw_noise(SEED, *SHAPES)
    assert torch.equal(rgb, core[1]["noise_0"]) and torch.equal(depth, core[1]["noise_1"])
