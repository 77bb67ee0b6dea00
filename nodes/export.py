"""Depth that leaves ComfyUI: point clouds, meshes and cameras for core's 3D nodes, and files of depth."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from comfy_api.latest import Types, io
from torch import Tensor

from ..models.core.export.ply import encode_point_cloud
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
from .host.shared.progress import each_picture
from .sockets import View, edge_input, fov_input, frame_input, index_input


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
