"""Several views of one scene: their scale, one point cloud, and folders for Gaussian-splat trainers."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from comfy_api.latest import Types, io

from ..models.core.export.ply import encode_point_cloud
from ..models.core.geometry.fusion import FusionSettings, fuse_views
from ..models.core.geometry.points import camera_beside_cloud, view_camera
from ..models.core.geometry.posed_views import (
    PickedPixel,
    ViewScale,
    find_scale_by_cameras,
    find_scale_by_depth,
    find_scale_by_points,
    scale_views,
)
from .host.shared.folders import save_scene
from .host.shared.notes import show
from .host.shared.progress import each_picture
from .sockets import FusedCloud, View, edge_input, fov_input

BY_DEPTH, BY_POINTS, BY_CAMERAS = "metric depth", "distance of two points", "distance of two cameras"
_BOTH = ((0, "first"), (1, "second"))


def distance_input() -> io.Float.Input:
    return io.Float.Input(
        "distance", default=1.0, min=0.0, max=100000.0, step=0.0001, round=0.0001,
        tooltip="The known distance in metres.",
    )  # fmt: skip


def view_input(name: str, what: str, default: int = 0) -> io.Int.Input:
    return io.Int.Input(
        name, default=default, min=0, max=4095, tooltip=f"Index of {what} in the batch, from 0.",
    )  # fmt: skip


def pixel_inputs(which: str, view: int) -> list[io.Int.Input]:
    """View, column and row of one point."""
    places = [
        io.Int.Input(
            f"{which}_{name}", default=0, min=0, max=16383,
            tooltip=f"{name.capitalize()} of the {which} point's pixel, from 0, counted from the {side}.",
        )
        for name, side in (("column", "left"), ("row", "top"))
    ]  # fmt: skip
    return [view_input(f"{which}_view", f"the view that shows the {which} point", view), *places]


def scale_options() -> list[io.DynamicCombo.Option]:
    """The ways to a scale, each with its own widgets."""
    cameras = [view_input(f"{which}_camera", f"the {which} camera's view", i) for i, which in _BOTH]
    points = [widget for i, which in _BOTH for widget in pixel_inputs(which, i)]
    return [
        io.DynamicCombo.Option(
            BY_DEPTH, [view_input("metric_view", "the view that a single metric depth belongs to")]
        ),
        io.DynamicCombo.Option(BY_POINTS, [distance_input(), *points]),
        io.DynamicCombo.Option(BY_CAMERAS, [distance_input(), *cameras]),
    ]


class ScaleViews(io.ComfyNode):
    """Relative views to metres, cameras included."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ScaleViews",
            display_name="Scale Views",
            category="SpatialWeave/Geometry",
            description="Scales several views of one scene to metres, depth and cameras alike: by a metric "
            "depth, or by a known distance between two points or two cameras.",
            search_aliases=[
                "metric scale", "scale scene", "real world scale", "vggt scale", "relative to metric",
                "multi view", "measure",
            ],
            inputs=[
                View.Input("view", tooltip="Views of one scene with poses in one common frame."),
                io.DynamicCombo.Input(
                    "method", options=scale_options(),
                    tooltip="metric depth: the median ratio to the depth at metric. distance of two points, "
                    "of two cameras: you measured how far they are apart.",
                ),
                fov_input(),
                View.Input(
                    "metric", optional=True,
                    tooltip="For metric depth: a depth in metres of one of the views, or of all, of the same "
                    "size.",
                ),
            ],
            outputs=[
                View.Output(
                    "view", display_name="VIEW", tooltip="The views in metres, cameras included.",
                ),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="The scale, how it was found, and a summary of the scaled depth.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, method, fov_degrees, metric=None) -> io.NodeOutput:
        view = view.require_valid()
        scale = find_scale(view, method, metric, fov_degrees)
        scaled = scale_views(view, scale.factor)
        text = f"scale {scale.factor:.8g}, by {scale.found_by}\n{scaled.describe()}"
        show(text, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(scaled, text)


def find_scale(view: Any, method: dict[str, Any], metric: Any, fov_degrees: float) -> ViewScale:
    """The scale by the chosen method and its widgets."""
    way = method["method"]
    if way == BY_CAMERAS:
        cameras = method["first_camera"], method["second_camera"]
        return find_scale_by_cameras(view, *cameras, method["distance"])
    if way == BY_POINTS:
        names = ("view", "column", "row")
        first, second = (PickedPixel(*(method[f"{which}_{name}"] for name in names)) for _, which in _BOTH)
        return find_scale_by_points(view, first, second, method["distance"], fov_degrees=fov_degrees)
    if metric is None:
        raise ValueError(
            "Expected a metric depth at metric, got none. Connect one, or choose a method by a known "
            "distance."
        )
    return find_scale_by_depth(view, metric.require_valid(), method["metric_view"])


def confidence_inputs() -> list[io.Float.Input]:
    """The thresholds of a VIEW's confidence."""
    return [
        io.Float.Input(
            "min_confidence", default=0.0, min=0.0, max=100000.0, step=0.001, round=0.001,
            tooltip="Pixels of lower confidence are left out, in the unit of the model that "
            "estimated it. 0: all.",
        ),
        io.Float.Input(
            "drop_percent", default=0.0, min=0.0, max=99.0, step=0.1,
            tooltip="Percentage of the pixels, over all views, to leave out as the least confident. "
            "0: none.",
        ),
    ]  # fmt: skip


class FuseViews(io.ComfyNode):
    """One point cloud of many views."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_FuseViews",
            display_name="Fuse Views",
            category="SpatialWeave/Geometry",
            description="Fuses several views of one scene, or the frames of a video, to one point cloud, "
            "without what other views see through.",
            search_aliases=[
                "point cloud", "merge views", "multi view", "fusion", "reconstruct", "vggt", "da3", "video",
            ],
            inputs=[
                View.Input("view", tooltip="Views of one scene with poses in one common frame."),
                io.Int.Input(
                    "every", default=1, min=1, max=1000,
                    tooltip="1: every view. 2: every second view, and so on, for the frames of a video.",
                ),
                *confidence_inputs(),
                edge_input(),
                io.Float.Input(
                    "tolerance", default=0.03, min=0.0, max=0.99, step=0.0001, round=0.0001,
                    tooltip="Relative difference of depth up to which two views agree. A point is dropped if "
                    "more views see through it than agree with it. 0: no check across views.",
                ),
                io.Int.Input(
                    "min_views", default=1, min=1, max=100,
                    tooltip="Number of views that must see a point, its own included.",
                ),
                io.Float.Input(
                    "voxel_size", default=0.0, min=0.0, max=1000.0, step=0.0001, round=0.0001,
                    tooltip="Points in one cube of this size become their mean, in the unit of the views. 0: "
                    "no merging.",
                ),
                io.Int.Input(
                    "max_points", default=1200000, min=1, max=100000000, advanced=True,
                    tooltip="Larger clouds are randomly subsampled to this many points, always the same "
                    "ones.",
                ),
                fov_input(),
            ],
            outputs=[
                io.File3DPointCloudAny.Output(
                    "model_3d", display_name="point_cloud",
                    tooltip="A PLY file in the world of the views, in metres if they are metric.",
                ),
                FusedCloud.Output(
                    "cloud", display_name="CLOUD",
                    tooltip="The points with their views, for Save COLMAP.",
                ),
                io.Load3DCamera.Output(
                    "camera_info", display_name="camera_info",
                    tooltip="The first view's camera for Preview Point Cloud.",
                ),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="Number of points, what was left out and why, and views that do not overlap.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, view, every, min_confidence, drop_percent, edge_threshold, tolerance, min_views, voxel_size,
        max_points, fov_degrees,
    ) -> io.NodeOutput:  # fmt: skip
        settings = FusionSettings(
            every, min_confidence, drop_percent, edge_threshold, tolerance, min_views, voxel_size, max_points
        )
        fused = fuse_views(view.require_valid(), settings, fov_degrees=fov_degrees, each=each_picture)
        points = fused.cloud.points
        data = encode_point_cloud(fused.cloud, points.new_ones(4).diag(), comments=[f"units: {view.units}"])
        camera = camera_beside_cloud(view_camera(fused.views[0], frame="world"), points)
        text = fused.describe()
        show(text, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(Types.File3D(BytesIO(data), "ply"), fused, camera, text)


class SaveColmap(io.ComfyNode):
    """A folder that a Gaussian-splat trainer starts from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SaveColmap",
            display_name="Save COLMAP",
            category="SpatialWeave/Export",
            description="Saves fused views as a folder for Gaussian-splat and NeRF trainers: images, a "
            "COLMAP model with tracks, and nerfstudio's transforms.json, each image with its own camera.",
            search_aliases=[
                "colmap", "nerfstudio", "gaussian splatting", "3dgs", "splat", "transforms.json",
                "cameras.txt", "export cameras", "nerf",
            ],
            is_output_node=True,
            inputs=[
                FusedCloud.Input("cloud", tooltip="From Fuse Views; its views need images."),
                io.String.Input(
                    "filename_prefix", default="colmap/SpatialWeave",
                    tooltip="Subfolder and folder name in the output folder; a counter is added, and no "
                    "folder is overwritten. %width%, %year% and the like are filled in.",
                ),
                io.Combo.Input(
                    "layout", options=["both", "colmap", "nerfstudio"], default="both",
                    tooltip="colmap: sparse/0 with cameras.txt, images.txt and points3D.txt. nerfstudio: "
                    "transforms.json and sparse_pc.ply, with z up. The images are written with either.",
                ),
                io.Combo.Input(
                    "units", options=["as they are", "metric"], default="as they are",
                    tooltip="metric: refuse views that are not in metres. Trainers take either.",
                ),
                io.Int.Input(
                    "max_points", default=100000, min=1, max=100000000, advanced=True,
                    tooltip="Larger clouds are randomly subsampled to this many points; trainers start well "
                    "from 100,000.",
                ),
                io.Image.Input(
                    "images", optional=True,
                    tooltip="Images to save in place of the VIEW's own, one for each of its views, in the "
                    "same proportions: the full-size frames of a video. The cameras count in their pixels.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "folder", display_name="folder", tooltip="The path of the folder that was written.",
                ),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="The folder, and how many images, points and observations it has.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, cloud, filename_prefix, layout, units, max_points, images=None) -> io.NodeOutput:
        stated = cloud.views.units
        if units == "metric" and stated != "metric":
            raise ValueError(
                f"Expected views in metres, got {stated} ones. Scale them with Scale Views first, or set "
                "units to 'as they are'."
            )
        written, files = save_scene(cloud.thin(max_points), filename_prefix, layout, images)
        counts = f"{len(cloud.views)} images, {written.points} points, {written.observations} observations"
        text = f"{written.folder}\n{counts}, units: {stated}"
        return io.NodeOutput(str(written.folder), text, ui={"files": files, "text": (text,)})
