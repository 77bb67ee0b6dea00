"""Depth that leaves ComfyUI: point clouds, meshes and cameras for core's 3D nodes, and files of depth, which come back."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

from comfy_api.latest import Types, io
from torch import Tensor

from ..models.core.export.depth_files import fingerprint_depth, load_depth
from ..models.core.export.files import UnstatedError
from ..models.core.export.ply import encode_point_cloud
from ..models.core.export.png_scales import OVER_RANGE, SCALES, TYPED_OR_FILE, TYPED_OR_FILLED, scale_to_read, scale_to_write
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
# by what is missing from a file: what it would say, and the widgets that say it instead
WANTED = {
    ("scale", "units"): "its scale and units, got neither. Set png_scale_preset or png_scale, and units",
    ("scale",): "its scale, got none. Set png_scale_preset or png_scale",
    ("units",): "its units, got none. Set units to metric (metres) or relative",
}
_UPLOAD = "image"  # the upload button's value: graphs saved before png_scale_preset have it in that place


class PointCloud(io.ComfyNode):
    """Points in space, for core's viewer and its savers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_PointCloud",
            display_name="Point Cloud from Depth",
            category="SpatialWeave/Export",
            description="Turns a depth into a coloured point cloud for Preview Point Cloud and Save Point Cloud: upright, and to scale.",
            search_aliases=["point cloud", "pointcloud", "ply", "depth to points", "unproject", "3d", "blender"],
            inputs=[
                View.Input("view", tooltip="The depth; its picture gives the colours, its normals go along."),
                index_input(),
                fov_input(),
                edge_input(),
                io.Int.Input(
                    "max_points", default=1200000, min=1, max=100000000, advanced=True,
                    tooltip="Of more points than this, so many are chosen at random, always the same ones.",
                ),
                frame_input(),
            ],
            outputs=[
                io.File3DPointCloudAny.Output("model_3d", display_name="point_cloud", tooltip="A PLY, in metres if the depth is metric."),
                io.Mask.Output("holes", display_name="holes", tooltip="White where no point stands: invalid pixels, sky and depth edges."),
                io.Load3DCamera.Output(
                    "camera_info", display_name="camera_info",
                    tooltip="The VIEW's camera for Preview Point Cloud, which centres every cloud and shows it one unit in radius.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, index, fov_degrees, edge_threshold, max_points, frame) -> io.NodeOutput:
        (view,) = each_picture([view[index].require_valid()])
        (cloud,) = view_to_point_cloud(view, fov_degrees=fov_degrees, edge_rtol=edge_threshold, max_points=max_points)
        data = encode_point_cloud(cloud, viewer_pose(view, frame)[0], comments=[f"units: {view.units}"])
        camera = point_cloud_camera(view, cloud, fov_degrees=fov_degrees, frame=frame)
        return io.NodeOutput(Types.File3D(BytesIO(data), "ply"), (~solid_pixels(view, edge_threshold)).float(), camera)


class DepthMesh(io.ComfyNode):
    """A surface, for core's mesh nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_DepthMesh",
            display_name="Mesh from Depth",
            category="SpatialWeave/Export",
            description="A textured mesh of a depth for core's mesh nodes and Save 3D Model: upright, to scale, torn at depth edges.",
            search_aliases=["mesh", "depth to mesh", "glb", "gltf", "displacement", "3d", "relief", "blender"],
            inputs=[
                View.Input("view", tooltip="The depth; its picture becomes the texture."),
                index_input(),
                fov_input(),
                edge_input(),
                io.Int.Input(
                    "stride", default=1, min=1, max=64,
                    tooltip="1: a vertex for every pixel. 2: for every second one, a quarter of the triangles. And so on.",
                ),
                frame_input(),
                io.Combo.Input(
                    "shading", options=["unlit", "lit"], default="unlit", optional=True,
                    tooltip="unlit: the picture's own colours, whatever lights stand in the scene. lit: the picture is the colour of the "
                    "surface, and lights fall on it once more.",
                ),
            ],
            outputs=[io.Mesh.Output("mesh", display_name="MESH", tooltip="One mesh, in metres if the depth is metric.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, index, fov_degrees, edge_threshold, stride, frame, shading="unlit") -> io.NodeOutput:
        (view,) = each_picture([view[index].require_valid()])
        (mesh,) = view_to_mesh(view, fov_degrees=fov_degrees, edge_rtol=edge_threshold, stride=stride)
        vertices = transform_points(mesh.require_faces().vertices, viewer_pose(view, frame)[0])
        parts = (part.unsqueeze(0) for part in (vertices, mesh.faces, mesh.uvs))
        return io.NodeOutput(Types.MESH(*parts, texture=view.image, **glow(view.image if shading == "unlit" else None)))


def glow(image: Tensor | None) -> dict[str, Any]:
    """The part of a MESH that shows its texture ``1 h w 3`` as it is: a surface that throws back no light and shines by itself.

    glTF says the same by KHR_materials_unlit, but core's writer does so for coloured vertices only.
    """
    black = {"base_color_factor": [0.0, 0.0, 0.0, 1.0], "metallic_factor": 1.0, "roughness_factor": 1.0}
    return {} if image is None else {"emissive": image, "material": black}


class ViewCamera(io.ComfyNode):
    """The camera that took the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewCamera",
            display_name="Camera of View",
            category="SpatialWeave/Export",
            description="The camera of a VIEW for core's 3D nodes: from it, the point cloud and the mesh look like the picture.",
            search_aliases=["camera info", "load3d camera", "fov", "field of view", "focal length", "intrinsics", "extrinsics"],
            inputs=[
                View.Input("view", tooltip="A VIEW with a camera, or any and the field of view below."),
                index_input(),
                fov_input(),
                frame_input(),
            ],
            outputs=[
                io.Load3DCamera.Output(
                    "camera_info", display_name="camera_info",
                    tooltip="For Preview 3D, which shows meshes as they are. Preview Point Cloud needs that of Point Cloud from Depth.",
                ),
                io.Float.Output("fov_x", display_name="fov_x", tooltip="Horizontal field of view in degrees."),
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
    """For Blender, Nuke, numpy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SaveDepth",
            display_name="Save Depth",
            category="SpatialWeave/Export",
            description="Saves a depth to the output folder as numbers that stay numbers: 16-bit PNG, linear float EXR, or NPZ. Unit, "
            "camera and the graph are written into the file.",
            search_aliases=["save depth", "export depth", "exr", "16 bit png", "npz", "depth map", "blender", "z channel"],
            is_output_node=True,
            inputs=[
                View.Input("view", tooltip="The depth, with all that belongs to it."),
                io.String.Input(
                    "filename_prefix", default="depth/SpatialWeave",
                    tooltip="Folder and name in the output folder, a counter follows. %width%, %year% and the like are filled in.",
                ),
                io.Combo.Input(
                    "format", options=["exr", "png", "npz"], default="exr",
                    tooltip="exr: 32-bit float in the channel Z, sky infinite, holes 0. png: 16-bit grey, 0 is invalid, scale and unit "
                    "in its text and in a JSON beside it. npz: all of the VIEW, batch included.",
                ),
                io.Float.Input(
                    "png_scale", default=0.0, min=0.0, max=1000.0, step=1e-12, round=1e-12, advanced=True,
                    tooltip="The depth of one step of the PNG: 0.001 writes metres as millimetres; 1/256 may be typed as it stands here. "
                    "0: as png_scale_preset says.",
                ),
                io.Boolean.Input(
                    "exr_picture", default=True, advanced=True,
                    tooltip="Put the VIEW's picture into the EXR's R, G and B, in linear light.",
                ),
                io.Combo.Input(
                    "png_scale_preset", options=[TYPED_OR_FILLED, *SCALES, OVER_RANGE], default=TYPED_OR_FILLED,
                    optional=True, advanced=True,
                    tooltip="The depth of one step of the PNG by name, with png_scale 0. as typed: png_scale, and with 0 the depth's own "
                    "range fills the steps. 16-bit over a range: png_scale is the depth of the last step, 65535; 0: the depth's own range.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, filename_prefix, format, png_scale, exr_picture, png_scale_preset=TYPED_OR_FILLED) -> io.NodeOutput:
        view = view.require_valid()
        notes = graph_notes(cls.hidden)
        scale = scale_to_write(png_scale_preset, png_scale) if format == "png" else None
        files = save_depth(view, filename_prefix, format, scale=scale, picture=exr_picture, notes=notes)
        names = ", ".join("/".join(filter(None, (file["subfolder"], file["filename"]))) for file in files)
        if format != "png":
            return io.NodeOutput(ui={"files": files, "text": (f"{view.describe()}\n{names}",)})
        steps = f"one step is {scale:.10g}" if scale else "the steps fill the depth's own range, as the file says"
        return io.NodeOutput(ui={"images": files, "text": (f"{view.describe()}\n{names}: {steps}",)})


class LoadDepth(io.ComfyNode):
    """Back from Save Depth, or from elsewhere."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadDepth",
            display_name="Load Depth",
            category="SpatialWeave/Export",
            description="Loads a depth from the input folder: 16-bit PNG, EXR or NPZ. Files of Save Depth say what they are.",
            search_aliases=["load depth", "import depth", "exr", "16 bit png", "npz", "depth map", "open depth"],
            inputs=[
                io.Combo.Input(
                    "file", options=list_depth_files(), upload=io.UploadType.image,
                    tooltip="A .png, .exr or .npz in ComfyUI's input folder. The upload button takes what the browser counts as a "
                    "picture, a 16-bit PNG for one; put EXR and NPZ into the folder by hand.",
                ),
                io.Combo.Input(
                    "units", options=[AS_FILE, "metric", "relative"], default=AS_FILE,
                    tooltip="What the numbers are, for files that do not say it: metres, or right up to one unknown scale.",
                ),
                io.Float.Input(
                    "png_scale", default=0.0, min=0.0, max=1000.0, step=1e-12, round=1e-12, advanced=True,
                    tooltip="The depth of one step of a PNG that does not say it: 0.001 for millimetres; 1/256 may be typed as it stands "
                    "here. 0: as png_scale_preset says.",
                ),
                io.String.Input(
                    "exr_channel", default="", advanced=True,
                    tooltip="The channel of an EXR that holds the depth. Empty: Z, the one of a layer Depth, or the only one there is.",
                ),
                io.Float.Input(
                    "background_at", default=0.0, min=0.0, max=1e12, step=0.0001, round=0.0001, optional=True, advanced=True,
                    tooltip="From this depth on all is background, infinitely far, as sky. Blender's Z pass writes 10000000000 where "
                    "nothing is, and 65504, the largest half float, into a half EXR; 10000000000 takes both. 0: nothing is background "
                    "but what the file says is.",
                ),
                io.Combo.Input(
                    "png_scale_preset", options=[TYPED_OR_FILE, *SCALES, OVER_RANGE], default=TYPED_OR_FILE,
                    optional=True, advanced=True,
                    tooltip="The depth of one step of the PNG by name, with png_scale 0. as typed: png_scale, and with 0 what the file "
                    "says. 16-bit over a range: png_scale is the depth of the last step, 65535.",
                ),
            ],
            outputs=[
                View.Output("view", display_name="VIEW", tooltip="The depth with its unit."),
                io.String.Output("text", display_name="STRING", tooltip="Size, range, unit, direction and invalid pixels, in one line."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, file, units, png_scale, exr_channel, background_at=0.0, png_scale_preset=TYPED_OR_FILE) -> io.NodeOutput:
        fault = cls.validate_inputs(file, png_scale_preset)  # what came through a link is seen here for the first time
        if fault is not True:
            raise ValueError(fault)
        path, stated = input_file(file), None if units == AS_FILE else units
        scale = scale_to_read(TYPED_OR_FILE if png_scale_preset == _UPLOAD else png_scale_preset, png_scale, path)
        try:
            view, notes = load_depth(path, units=stated, scale=scale, channel=exr_channel or None, background=background_at or None)
        except UnstatedError as error:
            raise ValueError(f"Expected {file} to say {WANTED[error.missing]}.") from error
        return io.NodeOutput(view, "\n".join([view.require_valid().describe(), *notes]))

    @classmethod
    def validate_inputs(cls, file, png_scale_preset=None) -> bool | str:
        known = (None, TYPED_OR_FILE, *SCALES, OVER_RANGE, _UPLOAD)  # None: as with file
        if png_scale_preset not in known:
            return f"Expected a png_scale_preset of {list(known[1:-1])}, got {png_scale_preset!r}. Choose one."
        if file is None or is_input_file(file):  # None: it comes through a link, and is not known before the run
            return True
        return f"There is no file {file!r} in the input folder; put it there, or choose another."

    @classmethod
    def fingerprint_inputs(cls, file, **_) -> str | float:
        if file is None:
            return math.nan  # equal to nothing: read anew in every run
        return fingerprint_depth(input_file(file))
