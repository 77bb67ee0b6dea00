"""The predictor reads depth, normals, segments and lines off a picture of the world, without knowing how it was made.

Trained on ground truth of the train split alone (predictor_training.py), measured on the test split (predictor_evaluation.py). No model
that it judges has seen it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor

from ...core.weights.files import check_fit, describe, fill_module, read_header, read_tensors
from .predictor_network import ALIGN, FIRST_COLOR, HEADS, SKY, PredictorNetwork
from .scene_maps import SceneMaps
from .scorer_network import MEAN_LOG_DEPTH

WEIGHTS = Path(__file__).with_name("predictor.safetensors")
SMALLEST = 0.002  # of a picture: regions of one colour below that are specks, 32 pixels of 128 x 128


class Predictor:
    """Reads pictures b h w 3 in [0, 1], trained on 128 x 128 pixels, on the device of its network."""

    def __init__(self, network: PredictorNetwork):
        self.network = network.train(False)

    @classmethod
    def from_pretrained(cls, path: str | Path = WEIGHTS, *, device: str | torch.device = "cpu") -> Predictor:
        """The weights beside the code, or others of the same shape; stored in float16, used in float32. WeightsError."""
        network = PredictorNetwork(device="meta")
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        header = read_header(path)
        check_fit(wanted, header.shapes, f"{path} is {describe(header)}, which as the world's predictor")
        return cls(fill_module(network, read_tensors(path), what=str(path), device=device))

    @torch.no_grad()
    def read(self, image: Tensor) -> SceneMaps:
        """What each picture shows, on the CPU."""
        if image.ndim != 4 or image.shape[3] != 3 or any(side % ALIGN for side in image.shape[1:3]):
            raise ValueError(f"The predictor reads pictures b h w 3 with sides that {ALIGN} divides; it was given {tuple(image.shape)}.")
        picture = image.permute(0, 3, 1, 2).to(next(self.network.parameters()).device, torch.float32).clamp(0, 1)
        return understand({name: value.float().cpu() for name, value in self.network(picture).items()})


def understand(guess: dict[str, Tensor]) -> SceneMaps:
    """The network's words b c h w as maps. Where it sees sky there is neither disparity nor normal."""
    kind = guess["kind"].argmax(1)
    sky = kind == SKY
    disparity = torch.exp(-(guess["log_depth"][:, 0] + MEAN_LOG_DEPTH))
    normals = F.normalize(guess["normals"], dim=1).movedim(1, -1)
    return SceneMaps(
        disparity.masked_fill(sky, 0.0), normals.masked_fill(sky[..., None], 0.0), find_segments(kind), guess["line"][:, 0] > 0
    )


def find_segments(kind: Tensor) -> Tensor:
    """Each connected region of a solid's colour in kind b h w as a number, 0 for the rest; two solids that touch in one colour are one."""
    found = np.zeros(tuple(kind.shape), dtype=np.int64)
    for picture, out in zip(kind.numpy(), found, strict=True):
        for color in range(FIRST_COLOR, HEADS["kind"]):
            regions, count = label(picture == color)
            for region in range(1, count + 1):
                inside = regions == region
                if inside.mean() >= SMALLEST:
                    out[inside] = out.max() + 1
    return torch.from_numpy(found)
