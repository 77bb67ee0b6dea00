"""A perceptual distance of images for the intrinsic VAE's loss, on VGG16 features.

The form of Zhang et al. 2018 (LPIPS, equation 1) with every channel weight 1: their learned weights are not
used. The network is torchvision's; its weights come from a file named in the recipe, and nothing is
downloaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.weights.files import fill_module, read_tensors

TAPS = (3, 8, 15, 22, 29)  # the last ReLU at each resolution: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]
PREFIX = "features."


class PerceptualDistance(nn.Module):
    """a, b (b, 3, h, w) in [-1, 1], sides of at least 16 pixels, to (b,): 0 for equal features."""

    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.layers = layers
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = ((torch.cat([a, b]) + 1) / 2 - self.mean) / self.std
        total = 0.0
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in TAPS:
                features_a, features_b = F.normalize(x, dim=1).chunk(2)
                total = total + (features_a - features_b).square().sum(dim=1).mean(dim=(1, 2))
        return total


def load_perceptual(path: str | Path) -> PerceptualDistance:
    """From a safetensors file with torchvision's names (features.0.weight ...).

    Other tensors in the file, such as the classifier's, are ignored.
    """
    try:
        from torchvision.models import vgg16
    except ImportError as error:
        raise ImportError(
            "Expected torchvision for perceptual_weights in the recipe's loss, got none installed. Run: pip "
            "install torchvision, or leave them out."
        ) from error
    with torch.device("meta"):
        layers = vgg16(weights=None).features[: TAPS[-1] + 1]
    tensors = {
        name.removeprefix(PREFIX): value
        for name, value in read_tensors(path).items()
        if name.startswith(PREFIX)
    }
    layers = fill_module(layers, tensors, what=f"{path}, as torchvision's VGG16,")
    return PerceptualDistance(layers).requires_grad_(False).train(False)
