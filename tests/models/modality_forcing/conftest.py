"""Small random networks, the same every time, none of whose parameters is without effect."""

import pytest
import torch

from spatialweave.models.modality_forcing.config import ModalityForcingConfig
from spatialweave.models.modality_forcing.network import ModalityForcing

SMALL = ModalityForcingConfig(
    in_channels=12, context_in_dim=10, hidden_size=48, num_heads=3, axes_dim=(2, 6, 4, 4),
    num_double_blocks=2, num_single_blocks=2,
    num_depth_decoder_blocks=1, mlp_ratio=2.0, depth_patch=4, depth_channels=16, time_embed_dim=32,
)  # fmt: skip


def randomise(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        spread = 1 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.5
        with torch.no_grad():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * spread + (parameter.ndim == 1)
            )
    return network


@pytest.fixture(scope="session")
def small_config():
    return SMALL


@pytest.fixture(scope="session")
def make_network():
    """make_network(config=SMALL, **constructor arguments) -> a network with random weights."""

    def make(config=SMALL, **arguments):
        return randomise(ModalityForcing(config, **arguments))

    return make


@pytest.fixture(scope="session")
def make_inputs():
    """make_inputs(config=SMALL, batch=2, grid=(2, 3), text=5) -> the five inputs of forward."""

    def make(config=SMALL, batch=2, grid=(2, 3), text=5, seed=1):
        generator = torch.Generator().manual_seed(seed)
        p = config.depth_patch
        shapes = (
            (batch, config.in_channels, *grid), (batch, 1, grid[0] * p, grid[1] * p),
            (batch, text, config.context_in_dim),
        )
        tensors = [torch.randn(shape, generator=generator) for shape in shapes]
        return *tensors, torch.rand(batch, generator=generator), torch.rand(batch, generator=generator)

    return make
