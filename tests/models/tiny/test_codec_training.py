"""The codec's loss: its sum, and the statistics that it leaves behind."""

import pytest
import torch

from spatialweave.kernels.testing import assert_close
from spatialweave.models.core.training.alignment import Aligner
from spatialweave.models.tiny.codec import TinyCodec
from spatialweave.models.tiny.codec_training import CodecLoss, TrainedCodec, codec_loss


@pytest.fixture
def trained():
    torch.manual_seed(0)
    return TrainedCodec(TinyCodec(), Aligner(32, (6, 8), 4))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(0, 6, (2, 2, 8, 8), generator=generator).to(torch.int8)
    return {"image": torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1, "cells": cells}


def test_every_part_of_the_loss_is_in_its_sum(trained, batch):
    loss, logs = codec_loss(trained, batch, torch.Generator().manual_seed(2), CodecLoss())
    assert set(logs) == {"pixel", "edges", "coarse", "align", "psnr"}
    assert_close(loss.detach(), sum(value for name, value in logs.items() if name != "psnr"))


def test_running_statistics_follow_the_batch(trained, batch):
    codec = trained.codec
    raw = codec.encoder(batch["image"]).detach()
    codec_loss(trained, batch, torch.Generator().manual_seed(2), CodecLoss(momentum=0.5))
    assert_close(codec.latent_mean, 0.5 * raw.mean((0, 2, 3)))


def test_without_noise_the_loss_sees_what_the_codec_makes_of_its_own_statistics(trained, batch):
    _, logs = codec_loss(trained, batch, torch.Generator().manual_seed(2), CodecLoss(momentum=1.0, noise=0.0))
    picture = trained.codec.decode(trained.codec.encode(batch["image"]))
    assert_close(logs["pixel"], (picture - batch["image"]).abs().mean().detach())
