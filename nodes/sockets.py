"""Our socket types, and what travels through core's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from comfy_api.latest import io
from torch import Tensor

View = io.Custom("SPATIALWEAVE_VIEW")  # models/core/geometry/view.py: depth with its unit, mask and camera


def stack_pictures(pictures: Iterable[Tensor]) -> Tensor:
    """Pictures h w 3 in [0, 1] as an IMAGE, b h w 3."""
    return torch.stack(list(pictures))
