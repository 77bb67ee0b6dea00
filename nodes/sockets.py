"""Our socket types, and what travels through core's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import torch
from comfy_api.latest import io
from torch import Tensor

from ..models.core.geometry.align import Fit
from ..models.core.geometry.camera import ASSUMED_FOV

View = io.Custom("SPATIALWEAVE_VIEW")  # models/core/geometry/view.py: depth with its unit, mask and camera
MogeGeometry = io.Custom("MOGE_GEOMETRY")  # core's, converted by models/core/geometry/packets.py
Da3Geometry = io.Custom("DA3_GEOMETRY")


def stack_pictures(pictures: Iterable[Tensor]) -> Tensor:
    """Pictures h w 3 in [0, 1] as an IMAGE, b h w 3."""
    return torch.stack(list(pictures))


def index_input() -> io.Int.Input:
    """Which picture of a batch, for nodes that make one thing of one picture."""
    return io.Int.Input("index", default=0, min=0, max=4095, tooltip="Which picture of the batch, counted from 0.")


def fov_input() -> io.Float.Input:
    """The camera of a view that has none."""
    return io.Float.Input(
        "fov_degrees", default=ASSUMED_FOV, min=1.0, max=170.0, step=0.0001,
        tooltip="Horizontal field of view in degrees. Used only when the VIEW has no camera of its own.",
    )  # fmt: skip


def units_input() -> io.Combo.Input:
    """Asked for, because no packet or picture says it and no range of values gives it away."""
    return io.Combo.Input(
        "units", options=["relative", "metric"], default="relative",
        tooltip="metric: the numbers are metres. relative: they are right up to one unknown scale. The source does not say, so you do: "
        "MoGe 2 and later and DA3 Metric are metric; MoGe 1 and the other DA3 models are relative.",
    )  # fmt: skip


def frame_input() -> io.Combo.Input:
    """Where the things made of a view stand; cloud, mesh and camera of one frame fit together."""
    return io.Combo.Input(
        "frame", options=["camera", "world"], default="camera", advanced=True,
        tooltip="camera: the camera stands in the origin and looks down -z, y up. world: as the VIEW's pose says, so that several views "
        "fit together. Use the same for cloud, mesh and camera.",
    )  # fmt: skip


def edge_input() -> io.Float.Input:
    """Where surfaces end."""
    return io.Float.Input(
        "edge_threshold", default=0.04, min=0.0, max=1.0, step=0.0001, round=0.0001,
        tooltip="Where depth jumps by more than this share of itself from pixel to pixel, an edge runs and the surface ends. 0: no edges.",
    )  # fmt: skip


def fit_options() -> list[str]:
    """The ways of fitting one depth to another."""
    return list(get_args(Fit))


def quantity_input() -> io.Combo.Input:
    """In which quantity two depths are fitted."""
    return io.Combo.Input(
        "quantity", options=["depth", "disparity"], default="depth", advanced=True,
        tooltip="What is fitted: depth, or 1 / depth, which weighs near things more.",
    )  # fmt: skip
