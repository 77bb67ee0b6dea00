"""Depth as point clouds, meshes and cameras for ComfyUI's 3D nodes, and as files that can be loaded again."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

from comfy_api.latest import Types, io
from torch import Tensor

from ..models.core.export.depth_files import fingerprint_depth, load_depth
from ..models.core.export.files import UnstatedError
from ..models.core.export.ply import encode_point_cloud
from ..models.core.export.png_scales import (
    OVER_RANGE,
    SCALES,
    TYPED_OR_FILE,
    TYPED_OR_FILLED,
    scale_to_read,
    scale_to_write,
)
from ..models.core.geometry.camera import fov_from_intrinsics, transform_points
from ..models.core.geometry.mesh import view_to_mesh
from ..models.core.geometry.points import (
    find_intrinsics,
    point_cloud_camera,
    solid_pixels,
    view_camera,
    view_to_point_cloud,
    viewer_pose,
)
from .host.shared.folders import graph_notes, input_file, is_input_file, list_depth_files, save_depth
from .host.shared.progress import each_picture
from .sockets import View, edge_input, fov_input, frame_input, index_input

AS_FILE = "as the file says"
# by what a file does not state: the end of the error message, which names the widgets that state it instead
UNSTATED = {
    ("scale", "units"): "its scale and units, got neither. Set png_scale_preset or png_scale, and units",
    ("scale",): "its scale, got none. Set png_scale_preset or png_scale",
    ("units",): "its units, got none. Set units to metric (metres) or relative",
}
_UPLOAD = "image"  # the upload button's value, which older workflows have at png_scale_preset's index


class PointCloud(io.ComfyNode):
    """A colored point cloud for ComfyUI's viewer and savers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_PointCloud",
            display_name="Point Cloud from Depth",
            category="SpatialWeave/Export",
            description="Converts a depth map to a colored point cloud for Preview Point Cloud and Save "
            "Point Cloud, upright and to scale.",
            search_aliases=[
                "point cloud", "pointcloud", "ply", "depth to points", "unproject", "3d", "blender",
            ],
            inputs=[
                View.Input(
                    "view", tooltip="The depth map; its image gives the colors, and its normals are kept.",
                ),
                index_input(),
                fov_input(),
                edge_input(),
                io.Int.Input(
                    "max_points", default=1200000, min=1, max=100000000, advanced=True,
                    tooltip="Larger clouds are randomly subsampled to this many points, always the same "
                    "ones.",
                ),
                frame_input(),
            ],
            outputs=[
                io.File3DPointCloudAny.Output(
                    "model_3d", display_name="point_cloud",
                    tooltip="A PLY file, in metres if the depth is metric.",
                ),
                io.Mask.Output(
                    "holes", display_name="holes",
                    tooltip="White where there is no point: invalid pixels, sky and depth edges.",
                ),
                io.Load3DCamera.Output(
                    "camera_info", display_name="camera_info",
                    tooltip="The VIEW's camera for Preview Point Cloud, which centers every cloud and scales "
                    "it to a radius of 1.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, index, fov_degrees, edge_threshold, max_points, frame) -> io.NodeOutput:
        (view,) = each_picture([view[index].require_valid()])
        options = {"fov_degrees": fov_degrees, "edge_rtol": edge_threshold, "max_points": max_points}
        (cloud,) = view_to_point_cloud(view, **options)
        data = encode_point_cloud(cloud, viewer_pose(view, frame)[0], comments=[f"units: {view.units}"])
        camera = point_cloud_camera(view, cloud, fov_degrees=fov_degrees, frame=frame)
        holes = (~solid_pixels(view, edge_threshold)).float()
        return io.NodeOutput(Types.File3D(BytesIO(data), "ply"), holes, camera)


class DepthMesh(io.ComfyNode):
    """A textured mesh for ComfyUI's mesh nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_DepthMesh",
            display_name="Mesh from Depth",
            category="SpatialWeave/Export",
            description="Converts a depth map to a textured mesh for ComfyUI's mesh nodes and Save 3D Model, "
            "upright and to scale, cut at depth edges.",
            search_aliases=[
                "mesh", "depth to mesh", "glb", "gltf", "displacement", "3d", "relief", "blender",
            ],
            inputs=[
                View.Input("view", tooltip="The depth map; its image becomes the texture."),
                index_input(),
                fov_input(),
                edge_input(),
                io.Int.Input(
                    "stride", default=1, min=1, max=64,
                    tooltip="1: a vertex for every pixel. 2: for every second pixel, a quarter of the "
                    "triangles. And so on.",
                ),
                frame_input(),
                io.Combo.Input(
                    "shading", options=["unlit", "lit"], default="unlit", optional=True,
                    tooltip="unlit: the image's own colors, whatever the lights of the scene. lit: the image "
                    "is the base color, and the lights of the scene shade it.",
                ),
            ],
            outputs=[
                io.Mesh.Output(
                    "mesh", display_name="MESH", tooltip="One mesh, in metres if the depth is metric.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, view, index, fov_degrees, edge_threshold, stride, frame, shading="unlit"
    ) -> io.NodeOutput:
        (view,) = each_picture([view[index].require_valid()])
        (mesh,) = view_to_mesh(view, fov_degrees=fov_degrees, edge_rtol=edge_threshold, stride=stride)
        vertices = transform_points(mesh.require_faces().vertices, viewer_pose(view, frame)[0])
        batch = (tensor.unsqueeze(0) for tensor in (vertices, mesh.faces, mesh.uvs))
        material = unlit_material(view.image) if shading == "unlit" and view.image is not None else {}
        return io.NodeOutput(Types.MESH(*batch, texture=view.image, **material))


def unlit_material(image: Tensor) -> dict[str, Any]:
    """The fields of a MESH that show its texture ``(1, h, w, 3)`` without lighting: emissive on black.

    This stands for glTF's KHR_materials_unlit, which ComfyUI's writer uses for vertex colors only.
    """
    black = {"base_color_factor": [0.0, 0.0, 0.0, 1.0], "metallic_factor": 1.0, "roughness_factor": 1.0}
    return {"emissive": image, "material": black}


class ViewCamera(io.ComfyNode):
    """The camera of a VIEW."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewCamera",
            display_name="Camera of View",
            category="SpatialWeave/Export",
            description="The camera of a VIEW for ComfyUI's 3D nodes: seen from it, point cloud and mesh "
            "match the image.",
            search_aliases=[
                "camera info", "load3d camera", "fov", "field of view", "focal length", "intrinsics",
                "extrinsics",
            ],
            inputs=[
                View.Input(
                    "view", tooltip="A VIEW with a camera, or any VIEW with the field of view set below.",
                ),
                index_input(),
                fov_input(),
                frame_input(),
            ],
            outputs=[
                io.Load3DCamera.Output(
                    "camera_info", display_name="camera_info",
                    tooltip="For Preview 3D, which shows meshes as they are. For Preview Point Cloud use the "
                    "camera_info of Point Cloud from Depth.",
                ),
                io.Float.Output(
                    "fov_x", display_name="fov_x", tooltip="Horizontal field of view in degrees.",
                ),
                io.Float.Output("fov_y", display_name="fov_y", tooltip="Vertical field of view in degrees."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, index, fov_degrees, frame) -> io.NodeOutput:
        view = view[index].require_valid()
        height, width = view.depth.shape[-2:]
        angles = fov_from_intrinsics(find_intrinsics(view, fov_degrees)[0], width, height)
        return io.NodeOutput(view_camera(view, fov_degrees=fov_degrees, frame=frame), *map(float, angles))


class SaveDepth(io.ComfyNode):
    """Files of depth for Blender, Nuke and numpy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SaveDepth",
            display_name="Save Depth",
            category="SpatialWeave/Export",
            description="Saves the values of a depth map to the output folder: 16-bit PNG, linear float EXR, "
            "or NPZ. Unit, camera and workflow are written into the file.",
            search_aliases=[
                "save depth", "export depth", "exr", "16 bit png", "npz", "depth map", "blender", "z channel",
            ],
            is_output_node=True,
            inputs=[
                View.Input("view", tooltip="The depth map, with everything that the VIEW holds."),
                io.String.Input(
                    "filename_prefix", default="depth/SpatialWeave",
                    tooltip="Subfolder and file name in the output folder; a counter is added. %width%, "
                    "%year% and the like are filled in.",
                ),
                io.Combo.Input(
                    "format", options=["exr", "png", "npz"], default="exr",
                    tooltip="exr: 32-bit float in the channel Z, sky infinite, holes 0. png: 16-bit "
                    "grayscale, 0 is invalid, scale and unit in its text chunks and in a JSON file beside "
                    "it. npz: the whole VIEW, batch included.",
                ),
                io.Float.Input(
                    "png_scale", default=0.0, min=0.0, max=1000.0, step=1e-12, round=1e-12, advanced=True,
                    tooltip="Depth per step of the PNG: 0.001 writes metres as millimetres; a fraction like "
                    "1/256 can be typed. 0: as set by png_scale_preset.",
                ),
                io.Boolean.Input(
                    "exr_picture", default=True, advanced=True,
                    tooltip="Write the VIEW's image to the EXR's R, G and B, in linear light.",
                ),
                io.Combo.Input(
                    "png_scale_preset", options=[TYPED_OR_FILLED, *SCALES, OVER_RANGE],
                    default=TYPED_OR_FILLED, optional=True, advanced=True,
                    tooltip="Named depth per step of the PNG, with png_scale at 0. as typed: png_scale, or "
                    "with 0 the depth's own range fills the steps. 16-bit over a range: png_scale is the "
                    "depth of the last step, 65535; 0: the depth's own range.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, view, filename_prefix, format, png_scale, exr_picture, png_scale_preset=TYPED_OR_FILLED
    ) -> io.NodeOutput:
        view = view.require_valid()
        notes = graph_notes(cls.hidden)
        scale = scale_to_write(png_scale_preset, png_scale) if format == "png" else None
        files = save_depth(view, filename_prefix, format, scale=scale, picture=exr_picture, notes=notes)
        names = ", ".join("/".join(filter(None, (file["subfolder"], file["filename"]))) for file in files)
        if format != "png":
            return io.NodeOutput(ui={"files": files, "text": (f"{view.describe()}\n{names}",)})
        filled = "the steps fill the depth's own range, as the file says"
        steps = f"one step is {scale:.10g}" if scale else filled
        return io.NodeOutput(ui={"images": files, "text": (f"{view.describe()}\n{names}: {steps}",)})


class LoadDepth(io.ComfyNode):
    """Files of depth, from Save Depth or other programs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadDepth",
            display_name="Load Depth",
            category="SpatialWeave/Export",
            description="Loads a depth map from the input or output folder: 16-bit PNG, EXR or NPZ. Files of "
            "Save Depth state their scale and unit themselves.",
            search_aliases=[
                "load depth", "import depth", "exr", "16 bit png", "npz", "depth map", "open depth",
            ],
            inputs=[
                io.Combo.Input(
                    "file", options=list_depth_files(), upload=io.UploadType.image,
                    tooltip="A 16-bit gray PNG, an EXR or NPZ file in ComfyUI's input folder, or in its "
                    "output folder and subfolders, where Save Depth writes. The upload button accepts files "
                    "that the browser counts as images, such as a 16-bit PNG; copy EXR and NPZ files into "
                    "the input folder.",
                ),
                io.Combo.Input(
                    "units", options=[AS_FILE, "metric", "relative"], default=AS_FILE,
                    tooltip="Unit of a file that does not state it. metric: metres. relative: correct up to "
                    "one unknown scale.",
                ),
                io.Float.Input(
                    "png_scale", default=0.0, min=0.0, max=1000.0, step=1e-12, round=1e-12, advanced=True,
                    tooltip="Depth per step of a PNG that does not state it: 0.001 for millimetres; a "
                    "fraction like 1/256 can be typed. 0: as set by png_scale_preset.",
                ),
                io.String.Input(
                    "exr_channel", default="", advanced=True,
                    tooltip="Channel of the EXR that holds the depth. Empty: Z, the channel of a layer named "
                    "Depth, or the only channel.",
                ),
                io.Float.Input(
                    "background_at", default=0.0, min=0.0, max=1e12, step=0.0001, round=0.0001, optional=True,
                    advanced=True,
                    tooltip="From this depth on, everything is background: infinitely far, like sky. "
                    "Blender's Z pass has 10000000000 where there is nothing, or 65504, the largest half "
                    "float, in a half-float EXR; 10000000000 covers both. 0: only what the file marks as "
                    "background.",
                ),
                io.Combo.Input(
                    "png_scale_preset", options=[TYPED_OR_FILE, *SCALES, OVER_RANGE], default=TYPED_OR_FILE,
                    optional=True, advanced=True,
                    tooltip="Named depth per step of the PNG, with png_scale at 0. as typed: png_scale, or "
                    "with 0 what the file states. 16-bit over a range: png_scale is the depth of the last "
                    "step, 65535.",
                ),
            ],
            outputs=[
                View.Output("view", display_name="VIEW", tooltip="The depth map with its unit."),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="Size, range, unit, direction and number of invalid pixels, in one line.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, file, units, png_scale, exr_channel, background_at=0.0, png_scale_preset=TYPED_OR_FILE
    ) -> io.NodeOutput:
        fault = cls.validate_inputs(file, png_scale_preset)  # linked values are first known here
        if fault is not True:
            raise ValueError(fault)
        path, stated = input_file(file), None if units == AS_FILE else units
        preset = TYPED_OR_FILE if png_scale_preset == _UPLOAD else png_scale_preset
        scale = scale_to_read(preset, png_scale, path)
        options = {"channel": exr_channel or None, "background": background_at or None}
        try:
            view, notes = load_depth(path, units=stated, scale=scale, **options)
        except UnstatedError as error:
            raise ValueError(f"Expected {file} to say {UNSTATED[error.missing]}.") from error
        return io.NodeOutput(view, "\n".join([view.require_valid().describe(), *notes]))

    @classmethod
    def validate_inputs(cls, file, png_scale_preset=None) -> bool | str:
        presets = [TYPED_OR_FILE, *SCALES, OVER_RANGE]
        if png_scale_preset not in (None, *presets, _UPLOAD):  # None: a link, as below
            return f"Expected a png_scale_preset of {presets}, got {png_scale_preset!r}. Choose one."
        if file is None or is_input_file(file):
            return True
        missing = f"got {file!r}, which is not in ComfyUI's input folder"
        return f"Expected a depth file at file, {missing}. Put it there, or choose another."

    @classmethod
    def fingerprint_inputs(cls, file, **_) -> str | float:
        if file is None:
            return math.nan  # equal to nothing: read again in every run
        return fingerprint_depth(input_file(file))
