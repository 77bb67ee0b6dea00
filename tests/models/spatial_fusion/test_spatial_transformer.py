"""The spatial transformer: its attention against a plain one in float64, pairing, queries, image features."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from spatialweave.kernels.dispatch import use_backend
from spatialweave.models.spatial_fusion.config import (
    TRANSFORMER_PRESETS,
    SpatialTransformerConfig,
    find_transformer_preset,
)
from spatialweave.models.spatial_fusion.network import (
    SpatialTransformer,
    attend_one_way,
    mrope_table,
    plan_depth,
)
from spatialweave.models.spatial_fusion.pipeline import infer_view


def plain_rotation(x, position, section, theta):
    """One head's vector (d,) at a position (time, row, column), pair by pair."""
    half, out = len(x) // 2, np.empty_like(x)
    axis = [i for i, count in enumerate(section) for _ in range(count)]
    for i in range(half):
        angle = position[axis[i]] / theta ** (2 * i / len(x))
        c, s = math.cos(angle), math.sin(angle)
        out[i], out[half + i] = x[i] * c - x[half + i] * s, x[half + i] * c + x[i] * s
    return out


def plain_attention(layer, x, keys, values, grid, config):
    """One image's attention (n, c) -> (n, c): each query of each head by itself, in numpy."""
    d, groups = config.head_dim, config.kv_heads
    weights = {name: value.double().numpy() for name, value in layer.state_dict().items()}

    def project(name):
        found = x @ weights[f"{name}_proj.weight"].T + weights[f"{name}_proj.bias"]
        return found.reshape(len(x), -1, d)

    q, k, v = project("q"), project("k"), project("v")
    text, out = keys.shape[1], np.empty((len(x), config.heads, d))
    positions = [(text, text + row, text + column) for row in range(grid[0]) for column in range(grid[1])]
    turn = lambda vector, n: plain_rotation(  # noqa: E731
        vector, positions[n], config.mrope_section, config.rope_theta
    )
    for head in range(config.heads):
        group = head * groups // config.heads
        all_k = [*keys[group], *(turn(k[n, group], n) for n in range(len(x)))]
        all_v = np.array([*values[group], *v[:, group]])
        for n in range(len(x)):
            scores = np.array([turn(q[n, head], n) @ key for key in all_k]) / math.sqrt(d)
            share = np.exp(scores - scores.max())
            out[n, head] = (share / share.sum()) @ all_v
    return out.reshape(len(x), -1) @ weights["o_proj.weight"].T


def whole_attention(network, x, semantic, grid):
    """The network's own, of the first layer."""
    table = mrope_table(semantic.lengths, grid, network.config, x)
    paired = network.config.pairs[0]
    keys, values = semantic.keys[paired], semantic.values[paired]
    return network.layers[0].self_attn(x, keys, values, semantic.lengths, table)


@pytest.mark.parametrize("backend", ["composition", "reference"])
@pytest.mark.parametrize("lengths", [(7,), (5, 5), (4, 7, 4)])
def test_attention_is_one_softmax_over_both_kinds_of_keys(build, draw, lengths, backend):
    network, grid = build(dtype=torch.float64), (2, 3)
    config = network.config
    semantic = draw(config, lengths, dtype=torch.float64)
    x = torch.randn(len(lengths), 6, config.width, dtype=torch.float64)
    with use_backend(backend):
        got = whole_attention(network, x, semantic, grid)
    for row, length in enumerate(lengths):
        keys, values = (
            tensors[config.pairs[0]][row, :, :length].numpy() for tensors in (semantic.keys, semantic.values)
        )
        want = plain_attention(network.layers[0].self_attn, x[row].numpy(), keys, values, grid, config)
        assert np.abs(got[row].numpy() - want).max() < 1e-12 and np.abs(want).max() > 0.1


def test_attention_in_float32_is_close_to_float64(build, draw):
    network, grid = build(dtype=torch.float64), (3, 3)
    semantic = draw(network.config, (6,), dtype=torch.float64)
    x = torch.randn(1, 9, network.config.width, dtype=torch.float64)
    want = whole_attention(network, x, semantic, grid)
    got = whole_attention(network.float(), x.float(), semantic, grid)
    assert got.dtype == torch.float32 and (got - want).abs().max() < 1e-5


def test_a_prompts_tokens_matter_and_its_padding_does_not(build, draw):
    network = build()
    both, plan = draw(network.config, (4, 7)), ((3, 3), (42, 42))
    together = network(both, *plan).depth
    for row, length in enumerate(both.lengths):
        keys, values = (
            {layer: tensor[row : row + 1, :, :length] for layer, tensor in tensors.items()}
            for tensors in (both.keys, both.values)
        )
        alone = network(both._replace(keys=keys, values=values, lengths=(length,)), *plan).depth
        assert (alone - together[row : row + 1]).abs().max() < 1e-5 * together.max()
    assert (together[0] - together[1]).abs().max() > 0.01


def test_gradients_reach_every_weight_and_not_the_mllm(build, draw):
    network = build().requires_grad_(True)
    semantic = draw(network.config, (5, 6))
    image = torch.randn(2, 3, 42, 42)
    found = network(semantic, (3, 3), (42, 42), image=image)
    (found.depth.log().mean() + found.confidence.log().mean()).backward()
    without = {name for name, value in network.named_parameters() if value.grad is None}
    # of DINOv2's training alone; the head's coarsest map has no finer one to be added to
    assert without <= {"image_encoder.mask_token"}
    assert not any(tensor.requires_grad for tensor in (*semantic.keys.values(), *semantic.values.values()))


def test_attention_is_differentiable_by_its_keys(build):
    """Against numerical derivatives, with rows of two lengths."""
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    given = (
        draw(2, 4, 3, 8), draw(2, 2, 3, 8), draw(2, 2, 3, 8), draw(2, 2, 4, 8), draw(2, 2, 4, 8),
    )  # fmt: skip
    assert torch.autograd.gradcheck(lambda *tensors: attend_one_way(*tensors, (2, 4)), given)


@pytest.mark.parametrize(
    ("pairing", "layers", "mllm", "want"),
    [
        ("uniform", 10, 36, (0, 3, 7, 10, 14, 18, 21, 25, 28, 32)),
        ("shallow", 10, 36, tuple(range(10))),
        ("deep", 10, 36, tuple(range(26, 36))),
        ("uniform", 4, 6, (0, 1, 3, 4)),
        ("uniform", 6, 6, tuple(range(6))),
        ("deep", 6, 6, tuple(range(6))),
    ],
)
def test_pairing(pairing, layers, mllm, want):
    taps = (0, 1, 2, 3)
    config = SpatialTransformerConfig(layers=layers, mllm_layers=mllm, pairing=pairing, dpt_layers=taps)
    assert config.pairs == want


def test_each_layer_reads_the_layer_it_is_paired_with(build, draw):
    for pairing, want in (("uniform", (0, 1, 3, 4)), ("shallow", (0, 1, 2, 3)), ("deep", (2, 3, 4, 5))):
        network, seen = build(pairing=pairing), []
        semantic = draw(network.config, (5,))
        for layer in network.layers:
            layer.self_attn.register_forward_pre_hook(lambda _, args, into=seen: into.append(args[1]))
        network(semantic, (3, 3), (42, 42))
        assert all(torch.equal(got, semantic.keys[i]) for got, i in zip(seen, want, strict=True))


def test_presets_have_the_papers_and_the_tiny_sizes():
    paper, tiny = (
        SpatialTransformer(find_transformer_preset(name), device="meta") for name in ("omnigen2", "tiny")
    )
    count = lambda module: sum(value.numel() for value in module.parameters())  # noqa: E731
    # q, o of 2048 x 2048, k, v of 2048 x 256, SwiGLU of 2048 x 11008, biases, two norms; ten of them
    layer = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008 + 2048 + 2 * 256 + 2 * 2048
    assert count(paper.layers) == 10 * layer and 1.0e9 < count(paper) < 1.2e9
    assert count(tiny) < 2e6
    assert paper.depth_head.norm.weight.shape == (2048,), "VGGT's depth head fits without a projection"


def test_the_grid_has_the_images_aspect_and_the_learned_queries_on_its_longer_side():
    config = find_transformer_preset("omnigen2")
    assert plan_depth(config, (1024, 1024)) == ((37, 37), (518, 518))
    assert plan_depth(config, (768, 1024)) == ((28, 37), (388, 518))
    assert plan_depth(config, (1000, 250)) == ((37, 9), (518, 130))
    assert plan_depth(config, (4000, 8)) == ((37, 1), (518, 1))


@pytest.mark.parametrize("size", [(64, 64), (40, 60), (300, 20)])
def test_a_view_has_the_aspect_and_a_row_for_each_prompt(build, draw, size):
    network = build()
    view = infer_view(network, network.config, draw(network.config, (4, 6)), size)
    plan = plan_depth(network.config, size)
    assert view.depth.shape == (2, *plan.size) and view.mask.all() and view.units == "relative"
    assert view.confidence.shape == view.depth.shape and (view.confidence > 1).all()
    assert abs(view.depth.shape[2] / view.depth.shape[1] * size[0] / size[1] - 1) < 0.08


def test_prompts_and_images_go_together_one_by_one_or_one_for_all(build, draw):
    network = build()
    images = torch.rand(2, 30, 30, 3, generator=torch.Generator().manual_seed(0))
    infer = lambda semantic, image: infer_view(network, network.config, semantic, (30, 30), image)  # noqa: E731
    one, two, three = (draw(network.config, (5,) * count) for count in (1, 2, 3))
    row = lambda state, index: state._replace(  # noqa: E731
        keys={layer: tensor[index : index + 1] for layer, tensor in state.keys.items()},
        values={layer: tensor[index : index + 1] for layer, tensor in state.values.items()},
        lengths=state.lengths[index : index + 1],
    )
    together = infer(two, images).depth
    for index in range(2):
        alone = infer(row(two, index), images[index : index + 1]).depth[0]
        assert (alone - together[index]).abs().max() < 1e-4 * together.max()
    assert len(infer(one, images)) == 2 and len(infer(three, images[:1])) == 3
    shared = infer(row(two, 1), images).depth
    assert (shared[1] - together[1]).abs().max() < 1e-4 * together.max()
    assert (together[0] - together[1]).abs().max() > 1e-3 and (shared[0] - together[0]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="got 3 prompts and 2 images. Change one"):
        infer(three, images)


def test_the_image_counts_by_its_dinov2_features(build, draw):
    """The encoder sees ImageNet's normalization at 14 pixels for each query; features are projected."""
    network, seen = build(), []
    network.image_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    features = torch.randn(1, 9, 16)
    semantic = draw(network.config, (5,))
    gray = torch.tensor([0.485, 0.456, 0.406]).expand(1, 50, 50, 3) + torch.tensor([0.229, 0, 0.225])
    infer_view(network, network.config, semantic, (50, 50), gray)
    want = torch.tensor([1.0, 0, 1]).view(1, 3, 1, 1).expand(1, 3, 42, 42)
    assert torch.allclose(seen[0], want, atol=1e-5)
    network.image_encoder.forward = lambda image, on_block: (features, None)
    embedded = network.embed((3, 3), torch.zeros(1, 3, 42, 42))
    by_hand = network.queries + features @ network.image_proj.weight.T + network.image_proj.bias
    assert torch.allclose(embedded, by_hand, atol=1e-6)
    assert torch.equal(network.embed((3, 3)), network.queries)


def test_progress_counts_layers_and_blocks(build, draw):
    network, calls = build(), []
    semantic = draw(network.config, (5,))
    network(semantic, (3, 3), (42, 42), on_layer=lambda: calls.append(1))
    assert len(calls) == 4
    network(semantic, (3, 3), (42, 42), image=torch.zeros(1, 3, 42, 42), on_layer=lambda: calls.append(1))
    assert len(calls) == 4 + 4 + 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 37}, "at most mllm_layers layers, 36, got 37"),
        ({"layers": 0}, "layers as a whole number from 1"),
        ({"layers": 10**6}, "layers as a whole number from 1 to 1024"),
        ({"width": True}, "width as a whole number"),
        ({"heads": 15}, "heads as a multiple of kv_heads, 2, got 15"),
        ({"encoder_heads": 7}, "encoder_width as a multiple of encoder_heads"),
        ({"mrope_section": (16, 24, 25)}, "whose sum is head_dim / 2, 64, got"),
        ({"mrope_section": (32, 32)}, "three whole numbers"),
        ({"pairing": "random"}, "one of uniform, shallow, deep"),
        ({"dpt_layers": (1, 4, 6, 10)}, "four entries from 0 to 9"),
        ({"dpt_out_channels": (6, 8, 8, 8)}, "four multiples of 4"),
        ({"dpt_features": 12}, "multiple of 8"),
        ({"rope_theta": float("inf")}, "rope_theta as a finite number"),
        ({"mllm": ""}, "mllm as a name"),
        ({"encoder_registers": -1}, "encoder_registers as a whole number from 0"),
    ],
)
def test_a_config_is_checked_when_it_is_built(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SpatialTransformerConfig(), **changes)


def test_a_config_survives_json_and_takes_no_other_keys():
    for config in TRANSFORMER_PRESETS.values():
        assert SpatialTransformerConfig.from_json(config.to_json()) == config
    values = SpatialTransformerConfig().to_json()
    with pytest.raises(ValueError, match=r"got others: \['depth', 'layers'\]"):
        SpatialTransformerConfig.from_json({k: v for k, v in values.items() if k != "layers"} | {"depth": 1})
    with pytest.raises(ValueError, match="Expected a preset from omnigen2, tiny, got 'huge'"):
        find_transformer_preset("huge")
