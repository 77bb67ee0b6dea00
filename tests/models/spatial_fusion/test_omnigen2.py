"""Our OmniGen2 network against ComfyUI's class, on random weights."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.core.layers.blocks import checkpointed
from spatialweave.models.spatial_fusion import omnigen2
from spatialweave.models.spatial_fusion.omnigen2 import PRESETS, RELEASED, OmniGen2, OmniGen2Config

TINY = PRESETS["tiny"]
# three groups a key head and two refiner blocks, as the release has; a width above 1024, where the time
# embedding is narrower than the blocks
WIDE = replace(
    TINY, hidden_size=1080, mlp_hidden=4352, num_heads=9, num_kv_heads=3, depth=1, depth_refiner=2,
    axes_dim=(40, 40, 40),
)  # fmt: skip
CONFIGS = {"tiny": TINY, "wide": WIDE}
# name: size of the latent, sizes of the references, lengths of the prompts in a batch of two
CASES = {
    "no reference": ((8, 12), (), None),
    "square": ((8, 8), (), None),
    "odd sides": ((7, 9), (), None),
    "one reference": ((8, 12), ((8, 12),), None),
    "one larger odd reference": ((6, 6), ((11, 7),), None),
    "two references": ((12, 4), ((6, 10), (5, 8)), None),
    "five references": ((4, 4), ((4, 6),) * 5, None),
    "masked": ((8, 6), (), (7, 3)),
    "masked with a reference": ((5, 8), ((6, 7),), (2, 7)),
    "masked with two references": ((6, 8), ((6, 8), (8, 4)), (7, 1)),
}


@cache
def make_network(config):
    """The same network for the same config; nothing trains it."""
    generator = torch.Generator().manual_seed(1)
    network = OmniGen2(config).train(False).requires_grad_(False)
    for name, value in network.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(noise * value.shape[-1] ** -0.5)
        else:
            value.copy_(noise * 0.1 + (0.0 if name.endswith("bias") else 1.0))
    return network


def make_inputs(config, case):
    size, references, lengths = CASES[case]
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(2, *shape, generator=generator)  # noqa: E731
    given = {
        "x": draw(config.in_channels, *size), "t": torch.tensor([0.9, 0.25]),
        "context": draw(7, config.context_in_dim),
    }  # fmt: skip
    if lengths:
        given["mask"] = torch.stack([(torch.arange(7) < length).to(torch.uint8) for length in lengths])
    return given | {f"reference{i}": draw(config.in_channels, *each) for i, each in enumerate(references)}


def run_ours(network, given, **options):
    references = [given[name] for name in sorted(given) if name.startswith("reference")]
    return network(given["x"], given["t"], given["context"], references, mask=given.get("mask"), **options)


@pytest.fixture(scope="module")
def core_outputs(inside, tmp_path_factory):
    """The folder with a folder for each config: its weights, each case's inputs and core's output."""
    folder = tmp_path_factory.mktemp("core")
    for name, config in CONFIGS.items():
        place = folder / name
        place.mkdir()
        save_file(make_network(config).state_dict(), place / "weights.safetensors")
        (place / "params.json").write_text(json.dumps(config.for_core()))
        for case in CASES:
            save_file(make_inputs(config, case), place / f"{case}.inputs.safetensors")
    inside(Path(__file__).with_name("inside_omnigen2.py"), "run", folder=str(folder))
    yield folder
    make_network.cache_clear()  # the wide network is 580 MB
    shutil.rmtree(folder)


@pytest.mark.comfyui
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CONFIGS)
def test_omnigen2_equals_comfyui(core_outputs, name, case):
    expected = load_file(core_outputs / name / f"{case}.output.safetensors")["velocity"]
    ours = run_ours(make_network(CONFIGS[name]), make_inputs(CONFIGS[name], case))
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_omnigen2_padding_of_a_prompt_changes_nothing():
    network, given = make_network(TINY), make_inputs(TINY, "masked with a reference")
    other = given["context"].clone()
    other[0, 2:] = 1e3
    torch.testing.assert_close(
        run_ours(network, given | {"context": other}), run_ours(network, given), rtol=0, atol=1e-6
    )
    without = {name: value for name, value in given.items() if name != "mask"}
    assert (run_ours(network, without) - run_ours(network, given))[0].abs().max() > 0.01


def test_omnigen2_references_are_numbered():
    network, given = make_network(TINY), make_inputs(TINY, "two references")
    given["reference1"] = given["reference0"].flip(-1)
    swapped = given | {"reference0": given["reference1"], "reference1": given["reference0"]}
    assert (run_ours(network, given) - run_ours(network, swapped)).abs().max() > 0.01
    six = {f"reference{i}": given["reference0"] for i in range(6)}
    with pytest.raises(ValueError, match="at most 5 references, got 6"):
        run_ours(network, given | six)


def test_omnigen2_gradients_are_the_same_with_checkpointing():
    network, given = make_network(TINY), make_inputs(TINY, "masked with a reference")
    gradients = []
    for run in (omnigen2.run_block, checkpointed):
        x = given["x"].clone().requires_grad_(True)
        run_ours(network, given | {"x": x}, run=run).square().mean().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_omnigen2_release_has_its_size_and_its_names():
    network = OmniGen2(RELEASED, device="meta")
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert 3.9e9 < sum(value.numel() for value in network.parameters()) < 4.0e9
    for name, shape in {
        "x_embedder.weight": (2520, 64),
        "ref_image_patch_embedder.bias": (2520,),
        "image_index_embedding": (5, 2520),
        "time_caption_embed.timestep_embedder.linear_1.weight": (1024, 256),
        "time_caption_embed.caption_embedder.0.weight": (2048,),
        "time_caption_embed.caption_embedder.1.weight": (2520, 2048),
        "noise_refiner.1.norm1.linear.weight": (10080, 1024),
        "ref_image_refiner.0.norm1.norm.weight": (2520,),
        "context_refiner.1.norm1.weight": (2520,),
        "layers.31.attn.to_k.weight": (840, 2520),
        "layers.31.attn.norm_q.weight": (120,),
        "layers.31.attn.to_out.0.weight": (2520, 2520),
        "layers.0.feed_forward.linear_2.weight": (2520, 10240),
        "layers.0.ffn_norm2.weight": (2520,),
        "norm_out.linear_2.weight": (64, 2520),
    }.items():
        assert shapes[name] == shape, name


def test_omnigen2_config_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="axes_dim that add up to hidden_size / num_heads"):
        OmniGen2Config(hidden_size=96, num_heads=4, num_kv_heads=2, axes_dim=(8, 8, 6))
    with pytest.raises(ValueError, match="three even numbers"):
        OmniGen2Config(hidden_size=96, num_heads=4, num_kv_heads=2, axes_dim=(12, 12))
    with pytest.raises(ValueError, match="num_heads by num_kv_heads"):
        OmniGen2Config(num_kv_heads=2)
