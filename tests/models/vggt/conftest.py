"""A small random VGGT, with numbers large enough for errors to show."""

import pytest
import torch

from spatialweave.models.vggt.config import VggtConfig
from spatialweave.models.vggt.network import Vggt

SMALL = VggtConfig(
    img_size=56, patch_size=14, embed_dim=64, depth=4, num_heads=2, backbone_depth=2, backbone_num_heads=2,
    dpt_features=16, dpt_out_channels=(16, 16, 24, 32), dpt_layers=(0, 1, 2, 3),
    camera_trunk_depth=1, camera_num_heads=4,
)  # fmt: skip


def build_network(config, seed=0):
    network = Vggt(config).train(False).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        if value.ndim > 1:
            value.normal_(0, 0.6 * value[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("weight", "gamma")):
            value.fill_(1.0 if name.endswith("weight") else 0.3)
        else:
            value.normal_(0, 0.05, generator=generator)
    if "camera" in config.heads:  # quaternions near the identity, fields of view near one radian
        network.camera_head.pose_branch.fc2.bias.copy_(torch.tensor([0.1, 0, 0, 0, 0, 0, 0.3, 0.25, 0.25]))
    return network


@pytest.fixture
def build():
    return build_network


@pytest.fixture
def small():
    return build_network(SMALL)


@pytest.fixture
def images():
    """Three images of random cells (3, 40, 61, 3), no two alike."""
    cells = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(cells, size=(40, 61), mode="bicubic").movedim(1, -1).clamp(0, 1)
