"""The predictor estimates depth, normals, segmentation and lines of an image of the world, rendered or
generated.

Trained on ground truth of the train split (predictor_training.py), evaluated on the test split
(predictor_evaluation.py). No model that it judges was trained with it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from scipy.ndimage import label
from torch import Tensor

from ...core.weights.files import check_fit, describe, fill_module, read_header, read_tensors
from .predictor_network import ALIGN, FIRST_COLOR, HEADS, SKY, PredictorNetwork
from .scene_maps import SceneMaps
from .scorer_network import MEAN_LOG_DEPTH

WEIGHTS = Path(__file__).with_name("predictor.safetensors")
SMALLEST = 0.002  # fraction of the image, 32 pixels of 128 x 128: smaller regions of one color are ignored


class Predictor:
    """Estimates maps of images (b, h, w, 3) in [0, 1], on the device of its network; trained at 128 x 128
    pixels."""

    def __init__(self, network: PredictorNetwork):
        self.network = network.train(False)

    @classmethod
    def from_pretrained(cls, path: str | Path = WEIGHTS, *, device: str | torch.device = "cpu") -> Predictor:
        """The shipped weights, or others of the same shapes; stored in float16, used in float32.

        WeightsError.
        """
        network = PredictorNetwork(device="meta")
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        header = read_header(path)
        check_fit(expected, header.shapes, f"{path} for the world's predictor, which is {describe(header)}")
        return cls(fill_module(network, read_tensors(path), what=str(path), device=device))

    @torch.no_grad()
    def read(self, image: Tensor) -> SceneMaps:
        """The maps of each image, on the CPU."""
        if image.ndim != 4 or image.shape[3] != 3 or any(side % ALIGN for side in image.shape[1:3]):
            raise ValueError(
                f"Expected images (b, h, w, 3) with sides divisible by {ALIGN}, got {tuple(image.shape)}. "
                "Resize or crop them."
            )
        device = next(self.network.parameters()).device
        pixels = rearrange(image, "b h w c -> b c h w").to(device, torch.float32).clamp(0, 1)
        return decode_outputs({name: value.float().cpu() for name, value in self.network(pixels).items()})


def decode_outputs(guess: dict[str, Tensor]) -> SceneMaps:
    """The network's outputs (b, c, h, w) as maps. Disparity and normals are 0 in the sky."""
    kind = guess["kind"].argmax(1)
    sky = kind == SKY
    disparity = torch.exp(-(guess["log_depth"][:, 0] + MEAN_LOG_DEPTH))
    normals = F.normalize(guess["normals"], dim=1).movedim(1, -1)
    return SceneMaps(
        disparity.masked_fill(sky, 0.0),
        normals.masked_fill(sky[..., None], 0.0),
        find_segments(kind),
        guess["line"][:, 0] > 0,
    )


def find_segments(kind: Tensor) -> Tensor:
    """Label each connected region of a solid's color in kind (b, h, w), 0 for the rest.

    Two solids of one color that touch are one segment.
    """
    found = np.zeros(tuple(kind.shape), dtype=np.int64)
    for labels, out in zip(kind.numpy(), found, strict=True):
        for color in range(FIRST_COLOR, HEADS["kind"]):
            regions, count = label(labels == color)
            for region in range(1, count + 1):
                inside = regions == region
                if inside.mean() >= SMALLEST:
                    out[inside] = out.max() + 1
    return torch.from_numpy(found)
