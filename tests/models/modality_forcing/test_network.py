"""The network: counts of the published sizes, what each output depends on, precision."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.layers import positions
from spatialweave.models.core.layers.attention import attend
from spatialweave.models.modality_forcing.config import PRESETS
from spatialweave.models.modality_forcing.network import (
    FinalLayer,
    ModalityForcing,
    RMSScale,
    depth_to_tokens,
    tokens_to_depth,
)
from spatialweave.models.modality_forcing.weights import is_image_text, network_shapes


def count(shapes, keep=lambda name: True):
    return sum(torch.Size(shape).numel() for name, shape in shapes.items() if keep(name))


def test_klein_9b_is_the_published_size():
    shapes = network_shapes(PRESETS["klein_9b"])
    assert len(shapes) == 279
    assert count(shapes) == 11_986_285_570
    assert count(shapes, is_image_text) == 9_078_581_248  # FLUX.2 klein 9B
    assert shapes["double_blocks.7.depth_mlp.0.weight"] == (24576, 4096)
    assert shapes["single_blocks.23.linear1.weight"] == (36864, 4096)


def test_klein_4b_has_the_sizes_of_its_base():
    shapes = network_shapes(PRESETS["klein_4b"])
    assert shapes["img_in.weight"] == (3072, 128) and shapes["txt_in.weight"] == (3072, 7680)
    assert 3.8e9 < count(shapes, is_image_text) < 4.0e9
    assert {name.split(".")[1] for name in shapes if name.startswith("single_blocks.")} == {
        str(i) for i in range(20)
    }


def test_tokens_of_depth_are_patches_row_by_row():
    depth = torch.arange(24.0).reshape(1, 1, 4, 6)
    tokens = depth_to_tokens(depth, 2)
    assert tokens[0].tolist() == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
        [12, 13, 18, 19],
        [14, 15, 20, 21],
        [16, 17, 22, 23],
    ]
    assert torch.equal(tokens_to_depth(tokens, (2, 3), 2), depth)


def test_outputs_have_the_shapes_of_their_inputs(make_network, make_inputs):
    inputs = make_inputs(grid=(3, 2), text=1, batch=1)
    velocity, x0 = make_network()(*inputs)
    assert velocity.shape == inputs[0].shape and x0.shape == inputs[1].shape


def test_every_parameter_and_every_input_reaches_the_outputs(make_network, make_inputs):
    network = make_network()
    inputs = [x.requires_grad_() for x in make_inputs()]
    velocity, x0 = network(*inputs)
    (velocity.square().sum() + x0.square().sum()).backward()
    assert not [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6
    ]
    for output in (velocity, x0):
        for given in torch.autograd.grad(network(*inputs)[output is x0].square().sum(), inputs):
            assert given.abs().max() > 1e-6


def test_pictures_of_a_batch_do_not_mix(make_network, make_inputs):
    network, inputs = make_network(), make_inputs(batch=3)
    together = network(*inputs)
    for i in range(3):
        alone = network(*(x[i : i + 1] for x in inputs))
        for a, b in zip(alone, together, strict=True):
            assert_close(a[0], b[i])


def test_without_cross_terms_and_attention_the_streams_are_strangers(make_network, make_inputs):
    """The image's time reaches the depth only through attention and the cross embedders."""
    network = make_network()
    with torch.no_grad():
        network.cross_alpha_depth.zero_()

    def see_nothing(q, k, v):
        return torch.zeros_like(v).transpose(1, 2).flatten(2)

    img, depth, context, t_rgb, t_depth = make_inputs()
    _, before = network(img, depth, context, t_rgb, t_depth, attend=see_nothing)
    _, after = network(img + 1, depth, context + 1, 1 - t_rgb, t_depth, attend=see_nothing)
    assert torch.equal(before, after)
    _, after = network(img, depth, context, t_rgb, 1 - t_depth, attend=see_nothing)
    assert not torch.allclose(before, after)


def test_attention_is_the_callable_it_is_given(make_network, make_inputs, small_config):
    calls = []

    def watch(q, k, v):
        calls.append((tuple(q.shape), k.shape == q.shape == v.shape))
        return attend(q, k, v)

    network, inputs = make_network(), make_inputs(grid=(2, 3), text=5)
    for watched, plain in zip(network(*inputs, attend=watch), network(*inputs), strict=True):
        assert torch.equal(watched, plain)
    everything, depth_only = (2, small_config.num_heads, 5 + 6 + 6, 16), (2, small_config.num_heads, 6, 16)
    assert calls == [(everything, True)] * 4 + [(depth_only, True)]


def test_layers_come_from_the_operations_given(small_config):
    made, layers = [], torch.nn

    def linear(*sizes, bias, device, dtype):
        made.append(bias)
        return layers.Linear(*sizes, bias=bias, device=device, dtype=dtype)

    network = ModalityForcing(small_config, operations=SimpleNamespace(Linear=linear), device="meta")
    assert len(made) == sum(name.endswith(".weight") for name in network.state_dict()) and not any(made)


def test_bfloat16_body_keeps_a_float32_depth_head(make_network, make_inputs):
    full, half = make_network(), make_network(dtype=torch.bfloat16)
    assert {name for name, p in half.named_parameters() if p.dtype == torch.float32} == {
        "depth_final_layer.linear.weight", "depth_final_layer.adaLN_modulation.1.weight",
    }  # fmt: skip
    img, *rest = make_inputs()
    velocity, x0 = half(img.bfloat16(), *rest)
    assert velocity.dtype == torch.bfloat16 and x0.dtype == torch.float32
    assert not torch.equal(x0, x0.bfloat16().float())  # not merely cast at the end
    for a, b in zip((velocity, x0), full(img, *rest, time_dtype=torch.bfloat16), strict=True):
        assert (a.float() - b).abs().mean() < 0.05


def test_time_is_rounded_with_the_body_unless_told_otherwise(make_network, make_inputs):
    half, (img, *rest) = make_network(dtype=torch.bfloat16), make_inputs()
    default = half(img.bfloat16(), *rest)
    assert torch.equal(default[1], half(img.bfloat16(), *rest, time_dtype=torch.bfloat16)[1])
    assert not torch.equal(default[1], half(img.bfloat16(), *rest, time_dtype=torch.float32)[1])


def test_float32_agrees_with_float64(make_network, make_inputs):
    """Rotary angles and time embedding stay float32 in both; everything between does not."""
    single, double = make_network(), make_network(dtype=torch.float64)
    img, *rest = make_inputs()
    # the depth head is float32 in either network
    assert_close(
        single(img, *rest)[0], double(img.double(), *rest, time_dtype=torch.float32)[0], dtype=torch.float32
    )


def test_wrong_shapes_are_shown_beside_the_right_ones(make_network, make_inputs):
    img, depth, context, *times = make_inputs(grid=(2, 3), text=5)
    for inputs in (
        (img, depth[..., :-1], context),
        (img[:, 1:], depth, context),
        (img, depth, context[:1]),
        (img, depth, context[..., 1:]),
    ):
        with pytest.raises(
            ValueError,
            match=r"Expected image latent, depth and context of shapes \(\(2, 12, 2, 3\), \(2, 1, 8, "
            r"12\), \(2, 5, 10\)\), got",
        ):
            make_network()(*inputs, *times)


def test_the_network_traces_to_one_graph(small_config, make_network, make_inputs):
    """No graph break, einops included, and the numbers of the eager network, at two sizes."""
    network = make_network(replace(small_config, num_double_blocks=1, num_single_blocks=1))
    torch.compiler.reset()
    traced = torch.compile(network, fullgraph=True, backend="eager", dynamic=True)
    for grid in ((2, 3), (3, 2)):
        inputs = make_inputs(grid=grid)
        with torch.no_grad():
            for ours, eager in zip(traced(*inputs), network(*inputs), strict=True):
                assert torch.equal(ours, eager)


def test_a_depth_head_with_a_kernel_is_a_convolution_over_the_token_grid():
    torch.manual_seed(0)
    layer, plain = FinalLayer(6, 4, kernel=3), FinalLayer(6, 4)
    x, vec, grid = torch.randn(2, 15, 6), torch.randn(2, 6), (3, 5)
    plain.adaLN_modulation.load_state_dict(layer.adaLN_modulation.state_dict())
    plain.linear = torch.nn.Identity()  # what the projection reads
    rows = plain(x, vec).reshape(2, *grid, 6).permute(0, 3, 1, 2)
    want = F.conv2d(rows, layer.linear.weight.reshape(4, 6, 3, 3), padding=1)
    got = layer(x, vec, grid).reshape(2, *grid, 4).permute(0, 3, 1, 2)
    assert_close(got, want)


def test_without_gradients_the_last_single_block_leaves_out_the_text(make_network, make_inputs):
    network, inputs = make_network(), make_inputs(grid=(3, 2), text=5, batch=2)
    tokens = {}

    def look(module, given, out):
        tokens[torch.is_grad_enabled()] = (given[0].shape[1], out.shape[1])

    network.single_blocks[-1].register_forward_hook(look)
    with_gradients = network(*inputs)
    with torch.no_grad():
        without = network(*inputs)
        image = network.forward_image(inputs[0], inputs[2], inputs[3])
    assert tokens == {True: (17, 17), False: (11, 6)}, "five of text, then six of each stream"
    assert torch.equal(image, network.forward_image(inputs[0], inputs[2], inputs[3]))
    for one, other in zip(with_gradients, without, strict=True):
        assert_close(one, other, atol=1e-6)


def test_position_tables_are_kept_between_steps_and_serve_training_after_inference(
    make_network, make_inputs, monkeypatch
):
    network, inputs = make_network(), make_inputs(grid=(2, 5), text=3, batch=1)
    made, plain = [], positions.joint_table
    monkeypatch.setattr(positions, "joint_table", lambda *given: (made.append(given), plain(*given))[1])
    positions._kept.cache_clear()
    with torch.inference_mode():
        for _ in range(3):
            network(*inputs)
    assert len(made) == 1
    sum(out.sum() for out in network(*inputs)).backward()
    assert len(made) == 1
    positions._kept.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_of_queries_is_taken_in_float32_and_then_scaled(dtype):
    norm = RMSScale(16)
    generator = torch.Generator().manual_seed(2)
    norm.scale.data = torch.randn(16, generator=generator)
    x = torch.randn(2, 7, 3, 16, generator=generator).to(dtype)
    want = (x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(dtype)
    assert torch.equal(norm(x), want * norm.scale.to(dtype))
