"""The loss against its formulas: noise levels by numeric integration, terms by hand, the start, and one batch
learned by heart.
"""

import math
from dataclasses import replace

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.training.draws import seed_slice
from spatialweave.models.modality_forcing.config import ModalityForcingConfig
from spatialweave.models.modality_forcing.depth_code import depth_to_net, net_to_depth
from spatialweave.models.modality_forcing.network import ModalityForcing
from spatialweave.models.modality_forcing.training import loss as training
from spatialweave.models.modality_forcing.training import noise as training_noise
from spatialweave.models.modality_forcing.training.loss import LossSettings, TrainedModel
from spatialweave.models.modality_forcing.training.start import (
    init_from_text_to_image,
    init_weights,
    widen_depth_head,
)
from spatialweave.models.modality_forcing.weights import is_image_text

MINI = ModalityForcingConfig(
    in_channels=4, context_in_dim=6, hidden_size=48, num_heads=3, axes_dim=(4, 4, 4, 4), num_double_blocks=2,
    num_single_blocks=1,
    num_depth_decoder_blocks=1, mlp_ratio=2.0, depth_patch=4, depth_channels=16, time_embed_dim=32,
)  # fmt: skip
MU, SIGMA = 1.1, 1.0


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def logit_normal_density(t, mu, sigma):
    logit = torch.log(t / (1 - t))
    return torch.exp(-((logit - mu) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi) * t * (1 - t))


def make_batch(batch=4, grid=(2, 2), config=MINI, seed=0):
    generator, p = seeded(seed), config.depth_patch
    depth = torch.rand(batch, 1, grid[0] * p, grid[1] * p, generator=generator) * 3 + 0.5
    return {
        "latent": torch.randn(batch, config.in_channels, *grid, generator=generator),
        "depth_net": depth_to_net(depth),
        "mask": torch.ones_like(depth, dtype=torch.bool),
        "context": torch.randn(batch, 3, config.context_in_dim, generator=generator),
        "empty_context": torch.zeros(3, config.context_in_dim),
    }


# Noise levels


def test_plateau_has_the_published_constants():
    mode, density, below, total = training_noise.plateau(1.1, 1.0)
    assert (round(mode, 4), round(density, 3), round(below, 4), round(total, 4)) == (
        0.8607,
        2.566,
        0.7647,
        1.1220,
    )


@pytest.mark.parametrize(("mu", "sigma"), [(1.1, 1.0), (0.0, 0.7), (-0.5, 1.3)])
@pytest.mark.parametrize("kind", ["logit_normal", "plateau"])
def test_drawn_times_follow_their_density(kind, mu, sigma):
    """u -> t must invert the distribution function, here the density integrated numerically."""
    grid = torch.linspace(1e-9, 1 - 1e-9, 400_001, dtype=torch.float64)
    density = logit_normal_density(grid, mu, sigma)
    if kind == "plateau":
        peak = int(density.argmax())
        density[peak:] = density[peak]
    cumulative = torch.cumulative_trapezoid(density, grid)
    cumulative = torch.cat((torch.zeros(1, dtype=torch.float64), cumulative / cumulative[-1]))
    at = torch.linspace(1000, 399_000, 200).long()
    draw = training_noise.draw_plateau if kind == "plateau" else training_noise.draw_logit_normal
    drawn = draw(cumulative[at].clamp(1e-12, 1 - 1e-12), mu, sigma)
    sure = (cumulative[at] > 1e-6) & (cumulative[at] < 1 - 1e-6)
    assert sure.sum() > 100
    assert_close(drawn[sure], grid[at][sure], atol=1e-5)


def test_modes_have_their_shares_and_clean_streams_are_exactly_clean():
    t_rgb, t_depth = training.draw_times(200_000, seeded(), LossSettings())
    assert (t_rgb == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)
    assert (t_depth == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)
    assert not ((t_rgb == 0) & (t_depth == 0)).any() and t_rgb.dtype == torch.float32
    both = torch.stack([t_rgb, t_depth])[:, (t_rgb > 0) & (t_depth > 0)]
    assert abs(torch.corrcoef(both)[0, 1].item()) < 0.01


# The terms


def test_depth_loss_is_the_velocity_error_over_known_pixels():
    generator = seeded()
    x0, target, noise = (torch.randn(3, 1, 4, 4, generator=generator) for _ in range(3))
    t = torch.tensor([0.3, 0.9, 0.0])
    known = torch.rand(3, 1, 4, 4, generator=generator) < 0.6
    errors = []
    for i in (0, 1):
        x_t = (1 - t[i]) * target[i] + t[i] * noise[i]
        v_mine, v = (x0[i] - x_t) / t[i], target[i] - noise[i]  # the paper's sign: v = x0 - eps
        errors.append((v_mine - v)[known[i]].square().mean())
    assert_close(training.depth_loss(x0, target, known, t, 0.05), sum(errors) / 2)


def test_depth_loss_has_a_floor_under_t_and_ignores_unknown_pixels():
    x0, target, known = (
        torch.ones(1, 1, 2, 2),
        torch.zeros(1, 1, 2, 2),
        torch.tensor([[[[True, False], [False, False]]]]),
    )
    assert training.depth_loss(x0, target, known, torch.tensor([0.01]), 0.05).item() == pytest.approx(
        1 / 0.05**2
    )
    wild = torch.where(known, target, float("nan"))
    assert training.depth_loss(x0, wild, known, torch.tensor([0.5]), 0.05).item() == pytest.approx(4)
    assert training.depth_loss(x0, target, torch.zeros_like(known), torch.tensor([0.5]), 0.05).item() == 0


def test_gradient_loss_of_a_slope_and_of_a_seam():
    """Closed forms: steps of 1, 2, 4 and 8 pixels add up to 15 slopes, and a seam is seen by as many pairs as
    a step is long.
    """
    target = torch.randn(1, 1, 32, 32, generator=seeded())
    everywhere, t = torch.ones_like(target, dtype=torch.bool), torch.tensor([0.5])
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    slope = target + 7 + 0.25 * columns - 0.5 * rows
    assert training.gradient_loss(slope, target, everywhere, t).item() == pytest.approx(15 * 0.75, rel=1e-4)
    seam = target + (columns >= 16)
    assert training.gradient_loss(seam, target, everywhere, t).item() == pytest.approx(
        sum(s / (32 - s) for s in (1, 2, 4, 8)), rel=1e-4
    )


def test_gradient_loss_knows_nothing_of_unknown_pixels_and_clean_streams():
    generator = seeded()
    x0, target = torch.randn(2, 1, 2, 16, 16, generator=generator)
    known = torch.rand(1, 1, 16, 16, generator=generator) < 0.5
    half = torch.tensor([0.5])
    wild = torch.where(known, target, float("nan"))
    x0.requires_grad_()
    first = training.gradient_loss(x0[:1], wild, known, half)
    first.backward()
    assert first.item() == training.gradient_loss(x0[:1], target, known, half).item() > 0
    assert torch.equal(x0.grad[:1] != 0, known & (x0.grad[:1] != 0)) and x0.grad.isfinite().all()
    both = torch.cat(
        [known, torch.zeros_like(known)]
    )  # nothing is known of the second picture, so the first decides
    assert_close(training.gradient_loss(x0, target.expand(2, -1, -1, -1), both, half.expand(2)), first)
    assert training.gradient_loss(x0[:1], target, known, torch.zeros(1)).item() == 0


def test_gradient_loss_is_asked_for():
    network = ModalityForcing(MINI)
    init_weights(network, seeded())
    model, batch = TrainedModel(network), make_batch()
    without, parts = training.loss(model, batch, seeded(), settings=LossSettings())
    value, more = training.loss(model, batch, seeded(), settings=LossSettings(depth_gradient=0.5))
    assert set(more) - set(parts) == {"gradient"} and more["gradient"] > 0
    assert_close(value.detach(), without.detach() + more["gradient"])


def test_velocity_loss_leaves_clean_pictures_out():
    velocity, wanted = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], [[[100.0, 100.0]]]])
    assert training.velocity_loss(velocity, wanted, torch.tensor([True, False])).item() == 5
    assert training.velocity_loss(velocity, wanted, torch.tensor([False, False])).item() == 0


class Recorder(torch.nn.Module):
    """Answers zeros and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def forward(self, img, depth, context, t_rgb, t_depth):
        self.asked = {"img": img, "depth": depth, "context": context, "t_rgb": t_rgb, "t_depth": t_depth}
        return img * self.zero, depth * self.zero

    def forward_image(self, img, context, t_rgb):
        self.asked = {"img": img, "context": context, "t_rgb": t_rgb}
        return torch.ones_like(img)


def test_network_sees_clean_conditions_and_noise_where_depth_is_missing():
    batch = make_batch(64, grid=(4, 4))
    batch["mask"] = torch.rand(batch["mask"].shape, generator=seeded(5)) < 0.7
    batch["depth_net"] = torch.where(batch["mask"], batch["depth_net"], float("nan"))
    network = Recorder()
    settings = LossSettings(sparse=0.0, caption_dropout=0.0)
    value, parts = training.loss(TrainedModel(network), batch, seeded(), settings=settings)
    seen = network.asked
    assert torch.isfinite(value) and set(parts) == {"rgb", "depth"} and value == sum(parts.values())
    given, from_depth = seen["t_rgb"] == 0, seen["t_depth"] == 0
    assert given.any() and from_depth.any()
    assert torch.equal(seen["img"][given], batch["latent"][given])
    mask = batch["mask"]
    assert torch.equal(
        seen["depth"][from_depth][mask[from_depth]], batch["depth_net"][from_depth][mask[from_depth]]
    )
    filled = seen["depth"][~mask]
    assert abs(filled.mean().item()) < 0.03 and filled.std().item() == pytest.approx(1, abs=0.03)


def test_sparse_pictures_keep_few_pixels_and_their_own_unit_mean():
    batch = make_batch(400, grid=(4, 4), seed=2)
    net = batch["depth_net"].clone()
    net[:, :, :2] = 2.0  # infinitely far, at any scale
    settings = LossSettings(sparse=0.5, sparse_keep=(0.05, 0.4))
    known, target = training.drop_depth(net, batch["mask"], seeded(), settings)
    share = known.flatten(1).float().mean(dim=1)
    thinned = share < 1
    assert thinned.float().mean().item() == pytest.approx(0.5, abs=0.07)
    assert share[thinned].max() < 0.6 and torch.equal(target[~thinned], net[~thinned])
    finite = known & (net < 2)
    depth = net_to_depth(target, z_max=None)
    for i in thinned.nonzero()[:20, 0]:
        if finite[i].any():
            assert depth[i][finite[i]].mean().item() == pytest.approx(1, abs=1e-4)
    assert (target[known & (net == 2)] == 2).all()


def test_distillation_weighs_by_the_depth_time():
    batch, network, teacher = make_batch(16), Recorder(), Recorder()
    settings = LossSettings(caption_dropout=0.0, distill_high=1.0, distill_low=0.1)
    value, parts = training.loss(
        TrainedModel(network), batch, seeded(), settings=settings, teacher=TrainedModel(teacher)
    )
    t_rgb, t_depth = network.asked["t_rgb"], network.asked["t_depth"]
    expected = (t_depth + 0.1 * (1 - t_depth))[
        t_rgb > 0
    ].mean()  # the teacher says 1 everywhere, the network 0
    assert_close(parts["distill"], expected)
    assert torch.equal(teacher.asked["img"], network.asked["img"]) and torch.equal(
        teacher.asked["t_rgb"], t_rgb
    )


def test_text_to_image_stage_uses_no_depth():
    batch = make_batch(2000)
    network = Recorder()
    value, parts = training.loss(
        TrainedModel(network),
        batch,
        seeded(),
        settings=LossSettings(kind="text_to_image", caption_dropout=0.25),
    )
    assert (
        set(network.asked) == {"img", "context", "t_rgb"}
        and (network.asked["t_rgb"] > 0).all()
        and set(parts) == {"rgb"}
    )
    empty = (network.asked["context"] == 0).flatten(1).all(dim=1)
    assert empty.float().mean().item() == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("kind", ["text_to_image", "modality_forcing"])
def test_alignment_reads_the_image_rows_of_its_block(kind):
    config = replace(MINI, num_single_blocks=2)
    torch.manual_seed(0)
    network = ModalityForcing(config)
    init_weights(network, seeded())
    rows = {}

    class Listener(torch.nn.Module):
        def forward(self, given, cells):
            rows["given"], rows["cells"] = given, cells
            return given.sum()

    model = TrainedModel(network, aligner=Listener())
    batch = make_batch() | {"cells": torch.zeros(4, 2, 4, 4, dtype=torch.int8)}
    outputs = []
    network.single_blocks[1].register_forward_hook(lambda module, given, x: outputs.append(x))
    settings = LossSettings(kind=kind, align=0.25, align_block=1)
    value, parts = training.loss(model, batch, seeded(), settings=settings)
    text = batch["context"].shape[1]
    assert torch.equal(rows["given"], outputs[0][:, text : text + 4]) and rows["cells"] is batch["cells"]
    assert_close(parts["align"], 0.25 * rows["given"].detach().sum())
    assert_close(value.detach(), sum(parts.values()))
    assert not network.single_blocks[1]._forward_hooks.keys() - {
        next(iter(network.single_blocks[1]._forward_hooks))
    }

    alone, _ = training.loss(TrainedModel(network), batch, seeded(), settings=settings)
    assert_close(alone.detach(), value.detach() - parts["align"])


def test_one_of_several_captions_is_drawn():
    tokens = torch.arange(3)[None, :, None].expand(3000, 3, 2)
    words = training.draw_captions({"tokens": tokens, "empty_tokens": torch.tensor([9, 9])}, seeded(), 0.1)
    shares = [(words == value).all(dim=1).float().mean().item() for value in (0, 1, 2, 9)]
    assert shares == pytest.approx([0.3, 0.3, 0.3, 0.1], abs=0.03)


def test_dropping_captions_needs_the_empty_one():
    with pytest.raises(
        ValueError, match="Expected empty_tokens in the batch for caption_dropout 0.1, got none"
    ):
        training.draw_captions({"tokens": torch.zeros(1, 2)}, seeded(), 0.1)


def test_loss_is_a_function_of_its_generator():
    model = TrainedModel(ModalityForcing(MINI))
    init_weights(model.network, seeded(1))
    values = [
        training.loss(model, make_batch(), seed_slice(0, step, 0), settings=LossSettings())[0].item()
        for step in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"kind": "other"},
            "Expected one of modality_forcing, text_to_image as kind of the recipe's loss, got 'other'",
        ),
        (
            {"joint": 0.7},
            "Expected shares that add up to 1 for the loss's joint, image_to_depth and "
            r"depth_to_image, got \(0.7, 0.2, 0.2\)",
        ),
        (
            {"shift_sigma": 2.0},
            r"Expected the loss's shift_sigma to be above 0 and at most sqrt\(2\): beyond it the "
            "density has two modes, got 2.0",
        ),
        ({"t_min": 0}, r"Expected the loss's t_min to be above 0: the depth weight is 1/t\^2, got 0"),
        ({"depth_gradient": -1}, "Expected the loss's depth_gradient to be at least 0, got -1"),
        ({"rgb_weight": -1}, "Expected the loss's rgb_weight to be at least 0, got -1"),
        ({"sparse": 1.5}, "Expected the loss's sparse to be from 0 to 1, got 1.5"),
        (
            {"sparse_keep": [0.5, 0.1]},
            "Expected the loss's sparse_keep to be two rising shares above 0, at most 1, got "
            r"\(0.5, 0.1\)",
        ),
        (
            {"depth_wight": 1},
            r"in the recipe's loss, got the unknown keys 'depth_wight' \(did you mean " r"'depth_weight'\?\)",
        ),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        LossSettings.from_json(change)


# The start


def test_new_network_says_nothing_and_can_learn():
    network = ModalityForcing(MINI)
    init_weights(network, seeded())
    batch = make_batch()
    t = torch.full((4,), 0.5)
    velocity, x0 = network(batch["latent"], batch["depth_net"], batch["context"], t, t)
    assert not velocity.any() and not x0.any()
    spread = network.single_blocks[0].linear1.weight.std().item() * MINI.hidden_size**0.5
    assert spread == pytest.approx(0.9, abs=0.15)


def test_start_from_text_to_image_copies_the_image_stream():
    source, network = ModalityForcing(MINI), ModalityForcing(MINI)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_(generator=seeded(parameter.numel()))
    base = {name: value for name, value in source.state_dict().items() if is_image_text(name)}
    init_from_text_to_image(network, base, seeded())
    batch, t = make_batch(), torch.full((4,), 0.5)
    assert torch.equal(
        network.forward_image(batch["latent"], batch["context"], t),
        source.forward_image(batch["latent"], batch["context"], t),
    )
    for mine, theirs in zip(network.double_blocks, source.double_blocks, strict=True):
        assert torch.equal(mine.depth_attn.qkv.weight, theirs.img_attn.qkv.weight)
        assert torch.equal(mine.depth_attn.norm.key_norm.scale, theirs.img_attn.norm.key_norm.scale)
        assert torch.equal(mine.depth_mlp[2].weight, theirs.img_mlp[2].weight)
    assert torch.equal(
        network.double_stream_modulation_depth.lin.weight, source.double_stream_modulation_img.lin.weight
    )
    assert torch.equal(
        network.single_stream_modulation_depth.lin.weight, source.single_stream_modulation.lin.weight
    )
    assert network.cross_alpha_img.item() == network.cross_alpha_depth.item() == 0
    assert (
        network.time_in_rgb_to_depth.in_layer.weight.any()
        and not network.depth_final_layer.linear.weight.any()
    )
    with pytest.raises(
        ValueError,
        match="Expected text-to-image weights of this network, got 1 tensors that it does not have, "
        "the first nose",
    ):
        init_from_text_to_image(network, {"nose": torch.zeros(1)}, seeded())


def test_one_batch_is_learned_by_heart():
    """On noise that never changes, both losses must fall far below what any constant answer reaches."""
    torch.manual_seed(0)
    model = TrainedModel(ModalityForcing(replace(MINI, hidden_size=96, axes_dim=(8, 8, 8, 8))))
    init_weights(model.network, seeded())
    batch, settings = make_batch(4), LossSettings(caption_dropout=0.0, sparse=0.0, t_min=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    history = []
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20, (150 - step) / 60)
        value, parts = training.loss(model, batch, seeded(7), settings=settings)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: part.item() for name, part in parts.items()})
    assert history[-1]["rgb"] < 0.02 * history[0]["rgb"], history[-1]
    assert history[-1]["depth"] < 0.02 * history[0]["depth"], history[-1]


# The wider depth head


def test_a_widened_depth_head_computes_what_it_computed():
    torch.manual_seed(0)
    network = ModalityForcing(MINI)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    wide = widen_depth_head(network, replace(MINI, depth_head_kernel=3))
    assert wide.depth_final_layer.linear.weight.shape == (16, 48 * 9)
    batch = make_batch(grid=(3, 4))
    inputs = (
        batch["latent"],
        batch["depth_net"],
        batch["context"],
        torch.full((4,), 0.3),
        torch.full((4,), 0.7),
    )
    for got, want in zip(wide(*inputs), network(*inputs), strict=True):
        assert_close(got, want)


def test_a_depth_head_is_never_narrowed():
    with pytest.raises(ValueError, match="at most 1, got 3"):
        widen_depth_head(ModalityForcing(replace(MINI, depth_head_kernel=3)), MINI)


def test_the_border_loss_is_the_mean_step_of_the_error_between_patches():
    target, known = torch.zeros(1, 1, 4, 8), torch.ones(1, 1, 4, 8, dtype=torch.bool)
    x0 = target.clone()
    x0[..., 4:] = 2.0  # a step of 2 at the only border of columns; there is none of rows
    x0[..., 1] = 5.0  # a step inside a patch, which does not count
    t = torch.tensor([0.5])
    assert float(training.border_loss(x0, target, known, t, 4)) == 2.0
    known[..., :2, 4] = False  # half of the pairs are unknown
    x0[..., 2, 4] = 4.0  # of the two pairs left, one has a step of 4
    assert float(training.border_loss(x0, target, known, t, 4)) == 3.0
    assert float(training.border_loss(x0, target, known, torch.zeros(1), 4)) == 0.0
