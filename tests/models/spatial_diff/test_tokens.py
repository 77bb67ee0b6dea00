"""Geometry tokens' ids and weights, and their fusion in diffusers' Flux."""

import contextlib

import numpy as np
import pytest
import torch

from spatialweave.models.spatial_diff.tokens import (
    fits_image,
    fuse_tokens,
    grid_weights,
    holds_first_axis,
    key_bias,
    spread_ids,
)


def target_ids(height, width, first=0.0, axes=3):
    ids = torch.zeros(height, width, axes)
    ids[..., 0] = first
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.reshape(-1, axes)


def test_ids_are_whole_numbers_at_the_trained_size():
    assert torch.equal(spread_ids(target_ids(32, 32), (32, 32), 2.0), target_ids(32, 32, 2.0))
    assert torch.equal(spread_ids(target_ids(4, 6, axes=4), (4, 6), 2.0), target_ids(4, 6, 2.0, axes=4))


@pytest.mark.parametrize("height, width", [(64, 64), (48, 80), (7, 5), (1, 1)])
def test_ids_are_the_centers_of_equal_cells_of_any_target(height, width):
    ids = spread_ids(target_ids(height, width), (8, 4), 2.0).reshape(8, 4, 3)
    np.testing.assert_allclose(ids[:, 0, 1], (np.arange(8) + 0.5) * height / 8 - 0.5, atol=1e-5)
    np.testing.assert_allclose(ids[0, :, 2], (np.arange(4) + 0.5) * width / 4 - 0.5, atol=1e-5)
    assert torch.equal(ids[:, 0, 1], ids[:, 3, 1]) and (ids[..., 0] == 2).all()


def test_a_first_id_that_is_taken_is_found():
    assert holds_first_axis(target_ids(2, 2, 2.0)[None], 2.0)
    assert not holds_first_axis(target_ids(3, 3)[None], 2.0)  # rows and columns do not count


def test_weights_of_a_mask_are_its_mean_over_each_cell():
    mask = torch.rand(2, 12, 20)
    expected = mask.reshape(2, 3, 4, 5, 4).mean((2, 4)).reshape(2, -1)
    torch.testing.assert_close(grid_weights(mask, (3, 5)), expected)


def test_a_bias_multiplies_attention_weights():
    weights = torch.tensor([[1.0, 0.25], [0.0, 3.0]])
    bias = key_bias(weights, 3, 6)
    assert bias.shape == (2, 1, 1, 6)
    factors = bias.exp()[:, 0, 0]
    torch.testing.assert_close(
        factors, torch.tensor([[1, 1, 1, 1, 0.25, 1], [1, 1, 1, 0, 3, 1.0]]), atol=1e-6, rtol=0
    )
    assert bias.isfinite().all()


@pytest.mark.parametrize(
    "size, latent, fits",
    [
        ((512, 512), (64, 64), True),
        ((1000, 1000), (128, 128), True),  # scaled before it was encoded
        ((519, 777), (64, 97), True),  # cropped to multiples of 8 by the VAE
        ((1080, 1920), (96, 168), True),  # FluxKontextImageScale
        ((512, 768), (64, 64), False),
        ((768, 512), (64, 96), False),
        ((640, 480), (64, 96), False),
    ],
)
def test_a_latent_is_of_an_image_of_its_proportions(size, latent, fits):
    assert fits_image(size, latent, 8) is fits


@pytest.fixture(scope="module")
def flux():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=48, pooled_projection_dim=24, guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    return model.requires_grad_(False).train(False)


def run(model, tokens=None, *, count=2, weights=None, rows=None, references=1):
    """One call with a reference, target 4 x 6; tokens on a grid of 2 x 3."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    ids = torch.cat([target_ids(4, 6, float(first)) for first in range(1 + references)])
    inputs = {
        "hidden_states": draw(count, len(ids), 64), "encoder_hidden_states": draw(count, 7, 48),
        "pooled_projections": draw(count, 24), "timestep": torch.full((count,), 0.7),
        "guidance": torch.full((count,), 3.5), "img_ids": ids, "txt_ids": torch.zeros(7, 3),
    }  # fmt: skip
    fused = contextlib.nullcontext()
    if tokens is not None:
        fused = fuse_tokens(
            model, tokens, grid=(2, 3), first_axis=2.0, target_tokens=24, weights=weights
        )  # fmt: skip
    with fused as left:
        out = model(**inputs, return_dict=False)[0]
    if rows is not None:
        rows.extend(left.rows)
    return out


def test_fusion_appends_reads_and_crops(flux):
    tokens, rows = torch.randn(1, 6, 64), []
    base, out = run(flux), run(flux, tokens, rows=rows)
    assert out.shape == base.shape and (out - base).abs().max() > 0.01
    assert len(rows) == 1 and rows[0].shape == (2, 6, 64)
    assert torch.equal(run(flux), base), "a hook stayed behind"


def test_fusion_equals_tokens_in_the_sequence_written_out(flux):
    """The same tokens as six more image tokens, whose input projection is undone."""
    tokens = torch.randn(2, 6, 64)
    inverse = torch.linalg.pinv(flux.x_embedder.weight)
    raw = (tokens - flux.x_embedder.bias) @ inverse.T
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    own = spread_ids(target_ids(4, 6), (2, 3), 2.0)
    ids = torch.cat([target_ids(4, 6), target_ids(4, 6, 1.0), own])
    states = torch.cat([draw(2, 48, 64), raw], dim=1)
    out = flux(
        hidden_states=states, encoder_hidden_states=draw(2, 7, 48), pooled_projections=draw(2, 24),
        timestep=torch.full((2,), 0.7), guidance=torch.full((2,), 3.5), img_ids=ids,
        txt_ids=torch.zeros(7, 3), return_dict=False,
    )[0]  # fmt: skip
    torch.testing.assert_close(run(flux, tokens), out[:, :48], atol=1e-4, rtol=0)


def test_weights_close_and_open_tokens(flux):
    tokens = torch.randn(1, 6, 64)
    base, full = run(flux), run(flux, tokens)
    near = lambda weights: run(flux, tokens, weights=torch.full((1, 6), weights))  # noqa: E731
    assert (near(1e-6) - base).abs().max() < 1e-4
    torch.testing.assert_close(near(1.0), full, atol=1e-5, rtol=0)
    assert (near(0.5) - base).abs().max() > 1e-3 and (near(0.5) - full).abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_tokens(flux, checkpointing):
    tokens = torch.randn(1, 6, 64, requires_grad=True)
    rows = []
    if checkpointing:
        flux.enable_gradient_checkpointing()
        flux.train()
    try:
        out = run(flux, tokens, rows=rows)
        (out.square().mean() + 0.01 * rows[-1].square().mean()).backward()
    finally:
        flux.disable_gradient_checkpointing()
        flux.train(False)
    expected = torch.autograd.grad(run(flux, tokens, rows=(plain := [])).square().mean(), tokens)[0]
    assert tokens.grad.abs().min() > 0 and plain and not torch.equal(tokens.grad, expected)


def test_a_taken_first_id_is_refused_and_no_hook_stays(flux):
    base = run(flux)
    with pytest.raises(ValueError, match="first id 2"):
        run(flux, torch.randn(1, 6, 64), references=2)
    assert torch.equal(run(flux), base)
