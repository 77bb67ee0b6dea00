"""Looking at geometry."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models.demo.depth_preview import explain_depth, picture_depth
from .sockets import View, stack_pictures


class PreviewDepth(io.ComfyNode):
    """Depth for people and for ControlNets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_PreviewDepth",
            display_name="Preview Depth",
            category="SpatialWeave/Geometry",
            description="Shows a depth beside its picture, with unit, direction and range, and hands it on as a picture: in colours, or "
            "near-white for ControlNets.",
            search_aliases=["depth map", "show depth", "colour depth", "depth controlnet", "disparity", "view"],
            is_output_node=True,
            inputs=[
                View.Input("view", tooltip="A depth, from Decode Joint Latent."),
                io.Combo.Input(
                    "style", options=["colour", "control"], default="colour",
                    tooltip="colour: bright is near, dark is far, in equal steps of ratio. control: white is near, black is far, in "
                    "steps of disparity, as MiDaS and most depth ControlNets expect.",
                ),
                io.Float.Input(
                    "near_percentile", default=0.0, min=0.0, max=49.0, step=0.5, advanced=True,
                    tooltip="This percent of the valid pixels may be nearer than the near end of the scale.",
                ),
                io.Float.Input(
                    "far_percentile", default=100.0, min=51.0, max=100.0, step=0.5, advanced=True,
                    tooltip="This percent of the valid pixels lies before the far end of the scale.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="IMAGE",
                    tooltip="The picture without the legend, of the depth's own size. The scale is lost: keep the VIEW for measuring.",
                ),
                io.String.Output("text", display_name="STRING", tooltip="Size, range, unit, direction and invalid pixels, in one line."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, style, near_percentile, far_percentile) -> io.NodeOutput:
        shown = picture_depth(view, style, near_percentile=near_percentile, far_percentile=far_percentile)
        pictures = stack_pictures(picture.image for picture in shown)
        return io.NodeOutput(pictures, view.describe(), ui=ui.PreviewImage(explain_depth(view, shown, style), cls=cls))
