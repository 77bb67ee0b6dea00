"""Socket types, and the inputs and outputs that several nodes share."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..models.core.geometry.align import Fit
from ..models.core.geometry.camera import ASSUMED_FOV

View = io.Custom("SPATIALWEAVE_VIEW")  # models/core/geometry/view.py: depth with its unit, mask and camera
FusedCloud = io.Custom("SPATIALWEAVE_CLOUD")  # models/core/geometry/fusion.py: points with their views
MogeGeometry = io.Custom("MOGE_GEOMETRY")  # ComfyUI's, converted by models/core/geometry/packets.py
Da3Geometry = io.Custom("DA3_GEOMETRY")
Framing = io.Custom("SPATIALWEAVE_FRAMING")  # models/joyai_edit/restore.py: an image, its bucket
VggtNetwork = io.Custom("SPATIALWEAVE_VGGT")  # nodes/host/vggt/model.py: the network under core's management
GeometryTokens = io.Custom("SPATIALWEAVE_GEOMETRY_TOKENS")  # models/vggt/pipeline.py: tokens on a patch grid
GeometryConnector = io.Custom("SPATIALWEAVE_GEOMETRY_CONNECTOR")  # nodes/host/spatial_diff/connector.py
DepthAdapterFile = io.Custom("SPATIALWEAVE_DEPTH_ADAPTER")  # models/spatial_fusion/network.py
SpatialTransformer = io.Custom("SPATIALWEAVE_SPATIAL_TRANSFORMER")  # nodes/host/spatial_fusion/transformer.py


def index_input() -> io.Int.Input:
    """The batch index, for nodes whose result is made from one image."""
    return io.Int.Input(
        "index", default=0, min=0, max=4095,
        tooltip="Index of the image in the batch, from 0.",
    )


def fov_input() -> io.Float.Input:
    """The field of view assumed for a VIEW without a camera."""
    return io.Float.Input(
        "fov_degrees", default=ASSUMED_FOV, min=1.0, max=170.0, step=0.0001,
        tooltip="Horizontal field of view in degrees. Used only when the VIEW has no camera of its own.",
    )  # fmt: skip


def units_input() -> io.Combo.Input:
    """The unit of a depth, which neither a geometry packet nor an image states."""
    return io.Combo.Input(
        "units", options=["relative", "metric"], default="relative",
        tooltip="metric: the values are metres. relative: they are correct up to one unknown scale. The "
        "input does not state it: choose metric for MoGe 2 and later and DA3 Metric, relative for MoGe 1 and "
        "the other DA3 models.",
    )  # fmt: skip


def frame_input() -> io.Combo.Input:
    """The coordinate frame of a cloud, mesh or camera; those of one frame fit together."""
    return io.Combo.Input(
        "frame", options=["camera", "world"], default="camera", advanced=True,
        tooltip="camera: the camera is at the origin and looks down -z, y up. world: placed by the VIEW's "
        "pose, so that several views fit together. Use the same for cloud, mesh and camera.",
    )  # fmt: skip


def edge_input() -> io.Float.Input:
    """The relative depth change that counts as an edge."""
    return io.Float.Input(
        "edge_threshold", default=0.04, min=0.0, max=1.0, step=0.0001, round=0.0001,
        tooltip="Relative change of depth between neighboring pixels above which they count as a depth edge, "
        "where the surface ends. 0: no edges.",
    )  # fmt: skip


def fit_options() -> list[str]:
    """The methods that align one depth map to another."""
    return list(get_args(Fit))


def quantity_input() -> io.Combo.Input:
    """The quantity in which two depth maps are aligned."""
    return io.Combo.Input(
        "quantity", options=["depth", "disparity"], default="depth", advanced=True,
        tooltip="What is aligned: depth, or disparity (1 / depth), which gives near pixels more weight.",
    )  # fmt: skip


def transparent_output(of: str, *, display_name: str = "transparent") -> io.Mask.Output:
    """The alpha of an image input, which the models do not see."""
    return io.Mask.Output(
        "transparent", display_name=display_name,
        tooltip=f"The alpha of {of}, as a ComfyUI MASK: white where transparent, all black without an alpha "
        "channel.",
    )  # fmt: skip


def notes_output() -> io.String.Output:
    """What was done to the inputs, a line each; also shown under the node and in the log."""
    return io.String.Output(
        "notes", display_name="STRING",
        tooltip="What was done to the inputs: padding, clamped colors, alpha, missing depth with count and "
        "percentage.",
    )  # fmt: skip
