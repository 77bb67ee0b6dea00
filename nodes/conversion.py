"""VIEWs from and to ComfyUI's own types: depth images, masks, MoGe's and Depth Anything 3's geometry."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.core.geometry.depth_image import view_from_image
from ..models.core.geometry.packets import from_da3, from_moge, to_da3, to_moge
from .sockets import Da3Geometry, MogeGeometry, View, fov_input, units_input


class ViewFromImage(io.ComfyNode):
    """A VIEW from an IMAGE of depth values."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewFromImage",
            display_name="View from Depth Image",
            category="SpatialWeave/Geometry",
            description="Converts a grayscale depth image to a VIEW. You state what its values mean; nothing "
            "is guessed from their range.",
            search_aliases=[
                "image to depth", "depth map", "load depth image", "disparity", "convert depth", "rgbd",
                "marigold", "midas",
            ],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The grayscale depth image. Transparent pixels of an RGBA image have no depth.",
                ),
                io.Combo.Input(
                    "values",
                    options=["white is near, disparity", "white is near", "white is far", "depth as it is"],
                    default="white is near, disparity",
                    tooltip="white is near, disparity: linear in 1 / depth, as MiDaS and depth ControlNets "
                    "have it. white is near, white is far: linear in depth. depth as it is: the values are "
                    "depths and may exceed 1, as from DA3Render's raw mode.",
                ),
                units_input(),
                io.Float.Input(
                    "near", default=1.0, min=0.0, max=100000.0, step=0.0001, round=0.0001,
                    tooltip="Depth at the near end of the scale, in the chosen unit. Not used for depth as "
                    "it is.",
                ),
                io.Float.Input(
                    "far", default=10.0, min=0.0, max=100000.0, step=0.0001, round=0.0001,
                    tooltip="Depth at the far end of the scale, in the chosen unit. Not used for depth as it "
                    "is.",
                ),
                io.Float.Input(
                    "fov_degrees", default=0.0, min=0.0, max=170.0, step=0.0001, advanced=True,
                    tooltip="Horizontal field of view of the camera in degrees; 0 if unknown.",
                ),
                io.Image.Input(
                    "picture", optional=True,
                    tooltip="The image that the depth belongs to, of the same size.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Where the depth is valid: white is valid, black has no depth, such as sky.",
                ),
            ],
            outputs=[
                View.Output(
                    "view", display_name="VIEW", tooltip="The depth with its unit, larger = farther.",
                ),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="Size, range, unit, and which pixels are invalid and why.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, values, units, near, far, fov_degrees, picture=None, mask=None) -> io.NodeOutput:
        scale = {"meaning": values, "units": units, "near": near, "far": far}
        others = {"mask": mask, "picture": picture, "fov_degrees": fov_degrees or None}
        view, notice = view_from_image(image, **scale, **others)
        text = view.require_valid().describe()
        return io.NodeOutput(view, text if notice is None else f"{text}\n{notice}")


class ViewToMask(io.ComfyNode):
    """The validity and sky masks of a VIEW."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewToMask",
            display_name="View to Masks",
            category="SpatialWeave/Geometry",
            description="The masks of a VIEW: where its depth is valid, and where it is known to be sky.",
            search_aliases=["depth mask", "valid mask", "sky mask", "hole mask", "convert view to mask"],
            inputs=[View.Input("view", tooltip="Any VIEW.")],
            outputs=[
                io.Mask.Output(
                    "valid", display_name="valid",
                    tooltip="White where the depth is valid, black in holes and sky.",
                ),
                io.Mask.Output(
                    "sky", display_name="sky", tooltip="White where the depth is known to be infinite.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view) -> io.NodeOutput:
        valid = view.mask.float()
        return io.NodeOutput(valid, valid * 0 if view.sky is None else view.sky.float())


class ViewFromMoge(io.ComfyNode):
    """A VIEW from ComfyUI's MoGe nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewFromMoge",
            display_name="View from MoGe Geometry",
            category="SpatialWeave/Geometry",
            description="Converts the geometry of MoGe Inference to a VIEW: depth, camera, normals, mask and "
            "image.",
            search_aliases=["moge", "moge to depth", "moge geometry", "convert moge", "metric depth"],
            inputs=[MogeGeometry.Input(
                "moge_geometry", tooltip="From MoGe Inference. A panorama is refused: it has no z-depth.",
            ), units_input()],
            outputs=[View.Output(
                "view", display_name="VIEW", tooltip="The same geometry; pixels of infinite depth are sky.",
            )],
        )  # fmt: skip

    @classmethod
    def execute(cls, moge_geometry, units) -> io.NodeOutput:
        return io.NodeOutput(from_moge(moge_geometry, units))


class ViewToMoge(io.ComfyNode):
    """A VIEW for ComfyUI's MoGe nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewToMoge",
            display_name="View to MoGe Geometry",
            category="SpatialWeave/Geometry",
            description="Converts a VIEW for ComfyUI's MoGe nodes: render, mesh, field of view.",
            search_aliases=["moge", "depth to moge", "moge geometry", "point map", "depth to mesh"],
            inputs=[View.Input(
                "view",
                tooltip="Any VIEW. Pose, confidence and unit are dropped: MoGe's geometry does not hold "
                "them.",
            ), fov_input()],
            outputs=[
                MogeGeometry.Output(
                    "moge_geometry", display_name="MOGE_GEOMETRY",
                    tooltip="Depth, points, camera, mask, normals and image.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view, fov_degrees) -> io.NodeOutput:
        return io.NodeOutput(to_moge(view.require_valid(), fov_degrees))


class ViewFromDa3(io.ComfyNode):
    """A VIEW from ComfyUI's Depth Anything 3 nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewFromDa3",
            display_name="View from DA3 Geometry",
            category="SpatialWeave/Geometry",
            description="Converts the geometry of Depth Anything 3 to a VIEW: depth, sky, confidence, and "
            "cameras in multi-view mode.",
            search_aliases=["depth anything", "da3", "da3 to depth", "depth anything v3", "convert da3"],
            inputs=[Da3Geometry.Input(
                "da3_geometry", tooltip="From Run Depth Anything 3, mono or multiview.",
            ), units_input()],
            outputs=[View.Output(
                "view", display_name="VIEW",
                tooltip="The same geometry; pixels that are probably sky count as sky.",
            )],
        )  # fmt: skip

    @classmethod
    def execute(cls, da3_geometry, units) -> io.NodeOutput:
        return io.NodeOutput(from_da3(da3_geometry, units))


class ViewToDa3(io.ComfyNode):
    """A VIEW for ComfyUI's Depth Anything 3 nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewToDa3",
            display_name="View to DA3 Geometry",
            category="SpatialWeave/Geometry",
            description="Converts a VIEW for ComfyUI's Depth Anything 3 nodes: render and mesh.",
            search_aliases=["depth anything", "da3", "depth to da3", "da3 geometry", "depth to mesh"],
            inputs=[View.Input(
                "view",
                tooltip="Any VIEW. Without a camera, ComfyUI assumes a field of view of about 60 degrees; "
                "normals are dropped.",
            )],
            outputs=[
                Da3Geometry.Output(
                    "da3_geometry", display_name="DA3_GEOMETRY",
                    tooltip="Depth, image, sky, confidence, camera and pose.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, view) -> io.NodeOutput:
        return io.NodeOutput(to_da3(view.require_valid()))
