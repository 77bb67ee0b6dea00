"""Looking at geometry, and working on it."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io, ui

from ..models.core.geometry.align import align_view
from ..models.core.geometry.normals import normals_to_image, view_with_normals
from ..models.core.geometry.stereo import stereo_pair
from ..models.core.visualize.depth_preview import explain_depth, picture_depth
from .host.shared.progress import each_picture
from .sockets import View, edge_input, fit_options, fov_input, quantity_input, stack_pictures


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
                    "near_percentile", default=0.0, min=0.0, max=49.0, step=0.01, advanced=True,
                    tooltip="This percent of the valid pixels may be nearer than the near end of the scale.",
                ),
                io.Float.Input(
                    "far_percentile", default=100.0, min=51.0, max=100.0, step=0.01, advanced=True,
                    tooltip="This percent of the valid pixels lies before the far end of the scale.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="IMAGE",
                    tooltip="The picture in that style without the legend, of the depth's own size. The scale is lost: keep the VIEW for "
                    "measuring.",
                ),
                io.String.Output("text", display_name="STRING", tooltip="Size, range, unit, direction and invalid pixels, in one line."),
                io.Image.Output(
                    "control", display_name="control (near white)",
                    tooltip="For depth ControlNets, whatever style is shown: white is near, black is far, between the same percentiles.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, style, near_percentile, far_percentile) -> io.NodeOutput:
        ends = {"near_percentile": near_percentile, "far_percentile": far_percentile}
        pictures, controls, sheets = [], [], []
        for one in each_picture(list(view.require_valid())):
            shown = picture_depth(one, style, **ends)
            control = shown if style == "control" else picture_depth(one, "control", **ends)
            pictures += [picture.image for picture in shown]
            controls += [picture.image for picture in control]
            sheets.append(explain_depth(one, shown, style))
        preview = ui.PreviewImage(torch.cat(sheets), cls=cls)
        return io.NodeOutput(stack_pictures(pictures), view.describe(), stack_pictures(controls), ui=preview)


class AlignDepth(io.ComfyNode):
    """Into the scale of another depth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_AlignDepth",
            display_name="Align Depth",
            category="SpatialWeave/Geometry",
            description="Fits a depth to a reference by scale, or scale and shift, and gives it the reference's unit.",
            search_aliases=["align depth", "scale and shift", "metric depth", "match depth", "fit depth", "depth scale"],
            inputs=[
                View.Input("view", tooltip="The depth to fit."),
                View.Input("reference", tooltip="The depth to fit it to, of the same size; it may be sparse."),
                io.Combo.Input(
                    "method", options=fit_options(), default="scale",
                    tooltip="scale: the medians agree. scale and shift: least squares. robust: by absolute error, for outliers.",
                ),
                quantity_input(),
            ],
            outputs=[
                View.Output("view", display_name="VIEW", tooltip="The fitted depth in the reference's unit."),
                io.String.Output("text", display_name="STRING", tooltip="Scale and shift of each picture, and what the depth is now."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, reference, method, quantity) -> io.NodeOutput:
        aligned, found = align_view(view.require_valid(), reference.require_valid(), method, quantity, each=each_picture)
        return io.NodeOutput(aligned, f"{found.describe()}\n{aligned.require_valid().describe()}")


class NormalsFromDepth(io.ComfyNode):
    """Which way surfaces face."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_NormalsFromDepth",
            display_name="Normals from Depth",
            category="SpatialWeave/Geometry",
            description="Measures the surface normals of a depth: as a normal map for ControlNets and 3D programs, and in the VIEW.",
            search_aliases=["normal map", "normals", "depth to normal", "normal controlnet", "bump", "opengl", "directx"],
            inputs=[
                View.Input("view", tooltip="The depth."),
                io.Combo.Input(
                    "style", options=["opengl", "directx"], default="opengl",
                    tooltip="opengl: green is up, for Blender, Unity, ControlNets. directx: green is down, for Unreal. Red is right, blue "
                    "faces the viewer in both.",
                ),
                fov_input(),
                edge_input(),
            ],
            outputs=[
                io.Image.Output("image", display_name="IMAGE", tooltip="The normal map; black where no normal can be measured."),
                View.Output("view", display_name="VIEW", tooltip="The same VIEW with these normals."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, style, fov_degrees, edge_threshold) -> io.NodeOutput:
        options = {"fov_degrees": fov_degrees, "edge_rtol": edge_threshold}
        normals = torch.cat([view_with_normals(one, **options).normals for one in each_picture(list(view.require_valid()))])
        return io.NodeOutput(normals_to_image(normals, style), replace(view, normals=normals))


class StereoPair(io.ComfyNode):
    """One picture for two eyes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_StereoPair",
            display_name="Stereo Pair from Depth",
            category="SpatialWeave/Geometry",
            description="A picture moved sideways by its depth: what the left and the right eye see, with masks of what the photo lacks.",
            search_aliases=["stereo", "parallax", "3d photo", "side by side", "anaglyph", "vr", "disparity warp", "depthflow"],
            inputs=[
                View.Input("view", tooltip="A depth with its picture; sky may be infinite."),
                io.Float.Input(
                    "parallax", default=3.0, min=0.0, max=30.0, step=0.001, round=0.001,
                    tooltip="Shift between the eyes from infinity to the nearest depth, in percent of the width. 2 to 4 are comfortable.",
                ),
                io.Float.Input(
                    "screen", default=0.5, min=0.0, max=1.0, step=0.001, round=0.001,
                    tooltip="What appears in the plane of the screen. 0: infinity, all stands out. 1: the nearest depth, all lies behind. "
                    "In between in equal steps of 1 / depth.",
                ),
                edge_input(),
            ],
            outputs=[
                io.Image.Output("left", display_name="left", tooltip="What the left eye sees; black in the holes."),
                io.Image.Output("right", display_name="right", tooltip="What the right eye sees; black in the holes."),
                io.Mask.Output("left_holes", display_name="left_holes", tooltip="White where the left picture is not known."),
                io.Mask.Output("right_holes", display_name="right_holes", tooltip="White where the right picture is not known."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, parallax, screen, edge_threshold) -> io.NodeOutput:
        options = {"parallax": parallax, "screen": screen, "edge_rtol": edge_threshold}
        pairs = [stereo_pair(one, **options) for one in each_picture(list(view.require_valid()))]
        eyes = list(zip(*pairs))
        pictures = [torch.cat([one.image for one in eye]) for eye in eyes]
        holes = [torch.cat([one.holes for one in eye]).float() for eye in eyes]
        return io.NodeOutput(*pictures, *holes)
