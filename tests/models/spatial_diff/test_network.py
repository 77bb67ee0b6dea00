"""The connector and its depth head against the equations, and the files that hold them."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.spatial_diff.config import PRESETS, ConnectorConfig, find_preset
from spatialweave.models.spatial_diff.network import GeometryConnector, LatentDepthHead
from spatialweave.models.spatial_diff.weights import (
    load_connector,
    load_depth_head,
    network_shapes,
    save_connector,
)

SMALL = ConnectorConfig(
    geometry_width=20, width=24, grid=(2, 3), layers=2, heads=2, head_width=5, mlp_ratio=2.0, depth_channels=3
)  # fmt: skip


def random_connector(config=SMALL, seed=0):
    torch.manual_seed(seed)
    network = GeometryConnector(config).requires_grad_(False)
    for value in network.parameters():  # every norm and bias matters
        value.add_(torch.randn(value.shape) * 0.2)
    return network


def layer_norm(x, state, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def connector_by_numpy(tokens, state, config):
    """Pre-norm cross-attention written out: softmax(Q K^T / sqrt(d)) V, head by head, in float64."""
    x = np.repeat(state["queries"][None], len(tokens), 0)
    for i in range(config.layers):
        part = {k.removeprefix(f"layers.{i}."): v for k, v in state.items() if k.startswith(f"layers.{i}.")}
        q = linear(layer_norm(x, part, "norm_queries"), part, "to_q")
        kv = linear(layer_norm(tokens, part, "norm_tokens"), part, "to_kv")
        k, v = kv[..., : config.inner_width], kv[..., config.inner_width :]
        heads = []
        for h in range(config.heads):
            at = slice(h * config.head_width, (h + 1) * config.head_width)
            scores = np.exp(q[..., at] @ k[..., at].transpose(0, 2, 1) / math.sqrt(config.head_width))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[..., at])
        x = x + linear(np.concatenate(heads, -1), part, "to_out")
        x = x + linear(gelu(linear(layer_norm(x, part, "norm_mlp"), part, "mlp.fc1")), part, "mlp.fc2")
    return layer_norm(x, state, "norm_out")


def test_the_connector_is_cross_attention_of_its_queries():
    network, tokens = random_connector(), torch.randn(3, 7, 20)
    state = {name: value.double().numpy() for name, value in network.state_dict().items()}
    out = network(tokens)
    assert out.shape == (3, 6, 24)
    np.testing.assert_allclose(
        out.numpy(), connector_by_numpy(tokens.double().numpy(), state, SMALL), atol=2e-5
    )


def test_the_order_of_geometry_tokens_and_the_batch_do_not_matter():
    network, tokens = random_connector(), torch.randn(2, 7, 20)
    out = network(tokens)
    torch.testing.assert_close(network(tokens[:, torch.randperm(7)]), out, atol=1e-5, rtol=0)
    torch.testing.assert_close(network(tokens[1:]), out[1:], atol=1e-5, rtol=0)


def test_every_parameter_gets_a_gradient():
    network, head = GeometryConnector(SMALL), LatentDepthHead(SMALL)
    head(network(torch.randn(2, 7, 20))).square().mean().backward()
    for part in (network, head):
        for name, value in part.named_parameters():
            assert value.grad is not None and value.grad.abs().sum() > 0, name


def test_the_depth_head_puts_each_token_at_its_place_on_the_grid():
    head = LatentDepthHead(SMALL).requires_grad_(False)
    rows = torch.randn(1, 6, 24)
    before = head(rows)
    assert before.shape == (1, 3, 4, 6)
    rows[:, 4] += torch.randn(24)  # row 1, column 1
    changed = (head(rows) - before).abs().sum((0, 1)) > 0
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[2:4, 2:4] = True
    assert torch.equal(changed, expected)
    # channels are the slow index of a token's values, then rows, then columns: Flux's own order
    values = head.linear(head.norm(rows))[0, 4].reshape(3, 2, 2)
    assert torch.equal(head(rows)[0, :, 2:4, 2:4], values)


def test_kontexts_connector_has_the_published_sizes():
    config = PRESETS["kontext"]
    shapes = network_shapes(config)
    assert shapes["queries"] == (1024, 3072) and config.queries == 1024 and config.layers == 8
    assert shapes["layers.7.to_kv.weight"] == (2 * 24 * 128, 2048)
    assert shapes["layers.0.mlp.fc1.weight"] == (4 * 3072, 3072)
    assert (config.base, config.first_axis) == ("flux", 2)
    assert sum(math.prod(shape) for shape in shapes.values()) == 859_142_144


def test_a_file_gives_back_the_connector_and_its_head(tmp_path):
    network, head = random_connector(), LatentDepthHead(SMALL)
    path = save_connector(tmp_path / "c.safetensors", network, head, {"license": "mine"})
    read, tokens = load_connector(path), torch.randn(1, 4, 20)
    assert read.config == SMALL and torch.equal(read(tokens), network(tokens))
    rows = torch.randn(1, 6, 24)
    assert torch.equal(load_depth_head(path)(rows), head(rows))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["license"] == "mine"
    assert {"base": "flux", "first_axis": 2.0, "width": 24, "grid": [2, 3]}.items() <= json.loads(
        metadata["config"]
    ).items()


def test_a_connector_alone_has_no_head_and_may_be_cast(tmp_path):
    path = save_connector(tmp_path / "c.safetensors", random_connector(), dtype=torch.bfloat16)
    assert load_depth_head(path) is None
    assert {value.dtype for value in load_connector(path).parameters()} == {torch.bfloat16}
    assert {value.dtype for value in load_connector(path, dtype=torch.float32).parameters()} == {
        torch.float32
    }


def spoil(path, change):
    """The same file with its tensors or metadata changed."""
    state = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    change(state, metadata)
    save_file(state, path, metadata=metadata)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s, m: m.update(spatialweave="VGGT network"), ("Expected a SpatialDiff geometry", "VGGT")),
        (lambda s, m: m.pop("config"), ("configuration", "metadata", "got none")),
        (lambda s, m: m.update(config="{"), ("sound configuration", "faulty")),
        (lambda s, m: m.update(config='{"base": "sd15"}'), ("base flux or flux2", "sd15")),
        (lambda s, m: m.update(config='{"depth": 3}'), ("connector config keys", "depth")),
        (lambda s, m: s.pop("queries"), ("1 tensors missing", "queries")),
        (lambda s, m: s.update(queries=torch.zeros(5, 24)), ("of another shape", "(5, 24)", "(6, 24)")),
        (lambda s, m: s.update(more=torch.zeros(2)), ("1 tensors unknown", "more")),
        (lambda s, m: s["layers.1.to_q.weight"].fill_(torch.nan), ("finite", "layers.1.to_q.weight")),
        (lambda s, m: s.update(queries=torch.zeros(6, 24, dtype=torch.int8)), ("queries", "I8", "quantized")),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path, change, words):
    path = save_connector(tmp_path / "c.safetensors", random_connector())
    spoil(path, change)
    with pytest.raises(WeightsError) as error:
        load_connector(path)
    assert all(word in str(error.value) for word in (*words, "c.safetensors")), error.value


@pytest.mark.parametrize(
    "name, value, word",
    [
        ("base", "sd15", "base flux or flux2"),
        ("width", 0, "width as a whole number"),
        ("layers", 2.5, "layers as a whole number"),
        ("heads", True, "heads as a whole number"),
        ("grid", (4,), "grid as rows and columns"),
        ("grid", 16, "grid as rows and columns"),
        ("grid", (4, 0), "grid columns as a whole number"),
        ("grid", (1000, 1000), "at most 16384 queries"),
        ("mlp_ratio", 0, "mlp_ratio as a finite number above 0"),
        ("first_axis", math.nan, "first_axis as a finite number"),
        ("first_axis", 0, "other than 0"),
    ],
)
def test_a_wrong_size_is_refused_at_birth(name, value, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(SMALL, **{name: value})


def test_configs_survive_json_and_presets_are_named():
    for config in PRESETS.values():
        assert ConnectorConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match="kontext.*got 'nano'"):
        find_preset("nano")
