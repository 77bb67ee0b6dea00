"""The codec's loss: who learns from which part, and what a decoder trained on a finished encoder leaves alone."""

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.training.alignment import Aligner
from spatialweave.models.demo.codec import TinyCodec
from spatialweave.models.demo.discriminator import PatchDiscriminator, adversarial_losses
from spatialweave.models.demo.training import CodecLoss, TrainedCodec, codec_loss


@pytest.fixture
def trained():
    torch.manual_seed(0)
    return TrainedCodec(TinyCodec(), Aligner(32, (6, 8), 4), PatchDiscriminator(8))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(0, 6, (2, 2, 8, 8), generator=generator).to(torch.int8)
    return {"image": torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1, "cells": cells}


def test_fool_reaches_the_picture_alone_and_tell_the_discriminator_alone(batch):
    torch.manual_seed(0)
    model, made = PatchDiscriminator(8), torch.rand(2, 3, 32, 32, requires_grad=True)
    losses = adversarial_losses(model, made, batch["image"], torch.zeros(2, 3, 32, 32), smooth=1.0)
    losses["fool"].backward(retain_graph=True)
    assert made.grad.abs().sum() > 0 and all(p.grad is None for p in model.parameters())
    made.grad = None
    losses["tell"].backward()
    assert made.grad is None and all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_adversarial_losses_are_the_logistic_ones(batch):
    torch.manual_seed(0)
    model, made, noise = PatchDiscriminator(8), torch.rand(2, 3, 32, 32), 0.1 * torch.randn(2, 3, 32, 32)
    losses = adversarial_losses(model, made, batch["image"], noise, smooth=3.0)
    told, true, moved = (model(x).double() for x in (made, batch["image"], batch["image"] + noise))
    assert told.shape == (2, 1, 4, 4)
    assert_close(losses["fool"], -torch.log(torch.sigmoid(told)).mean().float())
    tell = -torch.log(1 - torch.sigmoid(told)).mean() - torch.log(torch.sigmoid(true)).mean() + 3 * ((moved - true) ** 2).mean()
    assert_close(losses["tell"], tell.float())


def test_every_part_of_the_loss_is_in_its_sum(trained, batch):
    loss, logs = codec_loss(trained, batch, torch.Generator().manual_seed(2), CodecLoss(adversarial=0.1))
    assert set(logs) == {"pixel", "edges", "coarse", "align", "fool", "tell", "psnr"}
    assert_close(loss.detach(), sum(value for name, value in logs.items() if name != "psnr"))


def test_running_statistics_follow_the_batch_or_stay(trained, batch):
    codec = trained.codec
    raw = codec.encoder(batch["image"]).detach()
    codec_loss(trained, batch, torch.Generator().manual_seed(2), CodecLoss(momentum=0.5))
    assert_close(codec.latent_mean, 0.5 * raw.mean((0, 2, 3)))
    before = codec.latent_mean.clone(), codec.latent_std.clone()
    _, logs = codec_loss(trained, batch, torch.Generator().manual_seed(2), CodecLoss(momentum=0.0, noise=0.0))
    assert torch.equal(codec.latent_mean, before[0]) and torch.equal(codec.latent_std, before[1])
    picture = codec.decode(codec.encode(batch["image"]))  # what the kept statistics make is what the codec itself makes
    assert_close(logs["pixel"], (picture - batch["image"]).abs().mean().detach())
