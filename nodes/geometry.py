"""Preview, alignment, normals and stereo views of a depth map."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..models.core.geometry.align import align_view
from ..models.core.geometry.normals import normals_to_image, view_with_normals
from ..models.core.geometry.stereo import stereo_pair
from ..models.core.geometry.upscale import upscale_view
from ..models.core.visualize.depth_preview import explain_depth, picture_depth
from .host.shared.picture_previews import preview_images
from .host.shared.progress import each_picture
from .sockets import View, edge_input, fit_options, fov_input, quantity_input


class PreviewDepth(io.ComfyNode):
    """A depth map as an image, with a legend, and for ControlNets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_PreviewDepth",
            display_name="Preview Depth",
            category="SpatialWeave/Geometry",
            description="Shows a depth map beside its image, with unit, direction and range, and outputs it "
            "as an image: in colors, or with near white for ControlNets.",
            search_aliases=[
                "depth map", "show depth", "colour depth", "depth controlnet", "disparity", "view",
            ],
            is_output_node=True,
            inputs=[
                View.Input("view", tooltip="A depth map, for example from Decode Joint Latent."),
                io.Combo.Input(
                    "style", options=["colour", "control"], default="colour",
                    tooltip="colour: bright is near, dark is far, on a logarithmic scale of depth. control: "
                    "white is near, black is far, linear in disparity, as MiDaS and most depth ControlNets "
                    "expect.",
                ),
                io.Float.Input(
                    "near_percentile", default=0.0, min=0.0, max=49.0, step=0.01, advanced=True,
                    tooltip="Percentage of the valid pixels that may be nearer than the near end of the "
                    "scale.",
                ),
                io.Float.Input(
                    "far_percentile", default=100.0, min=51.0, max=100.0, step=0.01, advanced=True,
                    tooltip="Percentage of the valid pixels that lie before the far end of the scale.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="IMAGE",
                    tooltip="The depth in the chosen style, without the legend, at its own resolution. The "
                    "scale is lost: keep the VIEW for measuring.",
                ),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="Size, range, unit, direction and number of invalid pixels, in one line.",
                ),
                io.Image.Output(
                    "control", display_name="control (near white)",
                    tooltip="For depth ControlNets, whatever style is shown: white is near, black is far, "
                    "between the same percentiles.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, style, near_percentile, far_percentile) -> io.NodeOutput:
        ends = {"near_percentile": near_percentile, "far_percentile": far_percentile}
        images, controls, sheets = [], [], []
        for one in each_picture(list(view.require_valid())):
            shown = picture_depth(one, style, **ends)
            control = shown if style == "control" else picture_depth(one, "control", **ends)
            images += [rendered.image for rendered in shown]
            controls += [rendered.image for rendered in control]
            sheets.append(explain_depth(one, shown, style))
        preview = preview_images(torch.cat(sheets), cls)
        return io.NodeOutput(torch.stack(images), view.describe(), torch.stack(controls), ui=preview)


class AlignDepth(io.ComfyNode):
    """Alignment to the scale of another depth map."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_AlignDepth",
            display_name="Align Depth",
            category="SpatialWeave/Geometry",
            description="Aligns a depth map to a reference by scale, or scale and shift; the result has the "
            "reference's unit.",
            search_aliases=[
                "align depth", "scale and shift", "metric depth", "match depth", "fit depth", "depth scale",
            ],
            inputs=[
                View.Input("view", tooltip="The depth map to align."),
                View.Input(
                    "reference", tooltip="The depth map to align to, of the same size; it may be sparse.",
                ),
                io.Combo.Input(
                    "method", options=fit_options(), default="scale",
                    tooltip="scale: equal medians. scale and shift: least squares. robust: least absolute "
                    "error, for data with outliers.",
                ),
                quantity_input(),
            ],
            outputs=[
                View.Output(
                    "view", display_name="VIEW", tooltip="The aligned depth map in the reference's unit.",
                ),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="Scale and shift of each image, and a summary of the aligned depth.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, reference, method, quantity) -> io.NodeOutput:
        pair = view.require_valid(), reference.require_valid()
        aligned, alignment = align_view(*pair, method, quantity, each=each_picture)
        return io.NodeOutput(aligned, f"{alignment.describe()}\n{aligned.require_valid().describe()}")


class NormalsFromDepth(io.ComfyNode):
    """Surface normals computed from depth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_NormalsFromDepth",
            display_name="Normals from Depth",
            category="SpatialWeave/Geometry",
            description="Computes surface normals from a depth map: as a normal map for ControlNets and 3D "
            "programs, and in the VIEW.",
            search_aliases=[
                "normal map", "normals", "depth to normal", "normal controlnet", "bump", "opengl", "directx",
            ],
            inputs=[
                View.Input("view", tooltip="The depth map."),
                io.Combo.Input(
                    "style", options=["opengl", "directx"], default="opengl",
                    tooltip="opengl: green is up, for Blender, Unity, ControlNets. directx: green is down, "
                    "for Unreal. Red is right, blue faces the viewer in both.",
                ),
                fov_input(),
                edge_input(),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="IMAGE",
                    tooltip="The normal map; black where no normal can be computed.",
                ),
                View.Output("view", display_name="VIEW", tooltip="The same VIEW with these normals."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, style, fov_degrees, edge_threshold) -> io.NodeOutput:
        options = {"fov_degrees": fov_degrees, "edge_rtol": edge_threshold}
        views = each_picture(list(view.require_valid()))
        normals = torch.cat([view_with_normals(one, **options).normals for one in views])
        return io.NodeOutput(normals_to_image(normals, style), replace(view, normals=normals))


class UpscaleDepth(io.ComfyNode):
    """A depth map at the size of a larger image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_UpscaleDepth",
            display_name="Upscale Depth",
            category="SpatialWeave/Geometry",
            description="Brings a depth map to the size of a larger version of its image, with outlines that "
            "follow that image.",
            search_aliases=[
                "upscale depth", "resize depth", "sharpen depth", "guided upsampling", "joint bilateral",
                "depth super resolution", "depth map 4k",
            ],
            inputs=[
                View.Input("view", tooltip="The depth map."),
                io.Image.Input(
                    "image",
                    tooltip="What the depth map shows, at the size wanted: for example the original of a "
                    "scaled image, or the upscaled one. Of the same aspect ratio; one, or one for each depth "
                    "map.",
                ),
            ],
            outputs=[
                View.Output(
                    "view", display_name="VIEW",
                    tooltip="The depth at the image's size, in the same unit, with the image and a camera "
                    "that fits it.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, image) -> io.NodeOutput:
        return io.NodeOutput(upscale_view(view.require_valid(), image[..., :3], each=each_picture))


class StereoPair(io.ComfyNode):
    """Two shifted views of one image, for the left and the right eye."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_StereoPair",
            display_name="Stereo Pair from Depth",
            category="SpatialWeave/Geometry",
            description="Shifts an image sideways by its depth: the views of the left and the right eye, "
            "with masks of the regions that the image does not show.",
            search_aliases=[
                "stereo", "parallax", "3d photo", "side by side", "anaglyph", "vr", "disparity warp",
                "depthflow",
            ],
            inputs=[
                View.Input("view", tooltip="A depth map with its image; sky may be infinite."),
                io.Float.Input(
                    "parallax", default=3.0, min=0.0, max=30.0, step=0.001, round=0.001,
                    tooltip="Range of the shift between the eyes, from infinity to the nearest depth, in "
                    "percent of the image width. 2 to 4 are comfortable.",
                ),
                io.Float.Input(
                    "screen", default=0.5, min=0.0, max=1.0, step=0.001, round=0.001,
                    tooltip="Depth that appears in the plane of the screen. 0: infinity, everything is in "
                    "front. 1: the nearest depth, everything is behind. Linear in 1 / depth in between.",
                ),
                edge_input(),
            ],
            outputs=[
                io.Image.Output(
                    "left", display_name="left", tooltip="View of the left eye; black in the holes.",
                ),
                io.Image.Output(
                    "right", display_name="right", tooltip="View of the right eye; black in the holes.",
                ),
                io.Mask.Output(
                    "left_holes", display_name="left_holes", tooltip="White in the holes of the left view.",
                ),
                io.Mask.Output(
                    "right_holes", display_name="right_holes",
                    tooltip="White in the holes of the right view.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, parallax, screen, edge_threshold) -> io.NodeOutput:
        options = {"parallax": parallax, "screen": screen, "edge_rtol": edge_threshold}
        pairs = [stereo_pair(one, **options) for one in each_picture(list(view.require_valid()))]
        eyes = list(zip(*pairs))
        images = [torch.cat([one.image for one in eye]) for eye in eyes]
        holes = [torch.cat([one.holes for one in eye]).float() for eye in eyes]
        return io.NodeOutput(*images, *holes)
