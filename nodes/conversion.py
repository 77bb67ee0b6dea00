"""Views from and to what core's own nodes make: depth pictures, masks, MoGe's and Depth Anything 3's geometry."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.core.geometry.depth_image import view_from_image
from ..models.core.geometry.packets import from_da3, from_moge, to_da3, to_moge
from .sockets import Da3Geometry, MogeGeometry, View, fov_input, units_input


class ViewFromImage(io.ComfyNode):
    """Depth that comes as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewFromImage",
            display_name="View from Depth Image",
            category="SpatialWeave/Geometry",
            description="Makes a VIEW of a grey depth picture. You say what its values mean; nothing is guessed from their range.",
            search_aliases=["image to depth", "depth map", "load depth image", "disparity", "convert depth", "rgbd", "marigold", "midas"],
            inputs=[
                io.Image.Input("image", tooltip="The grey depth picture. Transparent pixels of an RGBA picture have no depth."),
                io.Combo.Input(
                    "values", options=["white is near, disparity", "white is near", "white is far", "depth as it is"],
                    default="white is near, disparity",
                    tooltip="white is near, disparity: equal steps of 1 / depth, as MiDaS and depth ControlNets. white is near, white is "
                    "far: equal steps of depth. depth as it is: the values are depths, above 1 too, as from DA3Render's raw mode.",
                ),
                units_input(),
                io.Float.Input(
                    "near", default=1.0, min=0.0, max=100000.0, step=0.0001, round=0.0001,
                    tooltip="The depth of the near end of the scale, in the unit chosen. Not used for depth as it is.",
                ),
                io.Float.Input(
                    "far", default=10.0, min=0.0, max=100000.0, step=0.0001, round=0.0001,
                    tooltip="The depth of the far end of the scale, in the unit chosen. Not used for depth as it is.",
                ),
                io.Float.Input(
                    "fov_degrees", default=0.0, min=0.0, max=170.0, step=0.0001, advanced=True,
                    tooltip="Horizontal field of view of the camera in degrees; 0 if it is not known.",
                ),
                io.Image.Input("picture", optional=True, tooltip="The picture the depth belongs to, of the same size."),
                io.Mask.Input("mask", optional=True, tooltip="Where the depth is valid: white counts, black has no depth, such as sky."),
            ],
            outputs=[
                View.Output("view", display_name="VIEW", tooltip="The depth with its unit, larger = farther."),
                io.String.Output("text", display_name="STRING", tooltip="Size, range, unit, and which pixels are invalid and why."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, values, units, near, far, fov_degrees, picture=None, mask=None) -> io.NodeOutput:
        camera = fov_degrees or None
        view, notice = view_from_image(
            image, meaning=values, units=units, near=near, far=far, mask=mask, picture=picture, fov_degrees=camera
        )  # fmt: skip
        text = view.require_valid().describe()
        return io.NodeOutput(view, text if notice is None else f"{text}\n{notice}")


class ViewToMask(io.ComfyNode):
    """Where there is depth, and where sky."""

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
                io.Mask.Output("valid", display_name="valid", tooltip="White where there is a depth, black in holes and sky."),
                io.Mask.Output("sky", display_name="sky", tooltip="White where the depth is known to be infinite."),
            ],
        )

    @classmethod
    def execute(cls, view) -> io.NodeOutput:
        valid = view.mask.float()
        return io.NodeOutput(valid, valid * 0 if view.sky is None else view.sky.float())


class ViewFromMoge(io.ComfyNode):
    """From core's MoGe nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewFromMoge",
            display_name="View from MoGe Geometry",
            category="SpatialWeave/Geometry",
            description="Makes a VIEW of what MoGe Inference measured: depth, camera, normals, mask and picture.",
            search_aliases=["moge", "moge to depth", "moge geometry", "convert moge", "metric depth"],
            inputs=[MogeGeometry.Input("moge_geometry", tooltip="From MoGe Inference. A panorama has no z-depth."), units_input()],
            outputs=[View.Output("view", display_name="VIEW", tooltip="The same geometry; infinite depth is sky.")],
        )

    @classmethod
    def execute(cls, moge_geometry, units) -> io.NodeOutput:
        return io.NodeOutput(from_moge(moge_geometry, units))


class ViewToMoge(io.ComfyNode):
    """To core's MoGe nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewToMoge",
            display_name="View to MoGe Geometry",
            category="SpatialWeave/Geometry",
            description="Hands a VIEW to the nodes that core made for MoGe: render, mesh, field of view.",
            search_aliases=["moge", "depth to moge", "moge geometry", "point map", "depth to mesh"],
            inputs=[View.Input("view", tooltip="Any VIEW. Pose, confidence and unit have no place in the packet."), fov_input()],
            outputs=[
                MogeGeometry.Output("moge_geometry", display_name="MOGE_GEOMETRY", tooltip="Depth, points, camera, mask, normals, picture.")
            ],
        )

    @classmethod
    def execute(cls, view, fov_degrees) -> io.NodeOutput:
        return io.NodeOutput(to_moge(view.require_valid(), fov_degrees))


class ViewFromDa3(io.ComfyNode):
    """From core's Depth Anything 3 nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewFromDa3",
            display_name="View from DA3 Geometry",
            category="SpatialWeave/Geometry",
            description="Makes a VIEW of what Depth Anything 3 estimated: depth, sky, confidence, and cameras in multi-view mode.",
            search_aliases=["depth anything", "da3", "da3 to depth", "depth anything v3", "convert da3"],
            inputs=[Da3Geometry.Input("da3_geometry", tooltip="From Run Depth Anything 3, mono or multiview."), units_input()],
            outputs=[View.Output("view", display_name="VIEW", tooltip="The same geometry; what is probably sky is sky.")],
        )

    @classmethod
    def execute(cls, da3_geometry, units) -> io.NodeOutput:
        return io.NodeOutput(from_da3(da3_geometry, units))


class ViewToDa3(io.ComfyNode):
    """To core's Depth Anything 3 nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ViewToDa3",
            display_name="View to DA3 Geometry",
            category="SpatialWeave/Geometry",
            description="Hands a VIEW to the nodes that core made for Depth Anything 3: render and mesh.",
            search_aliases=["depth anything", "da3", "depth to da3", "da3 geometry", "depth to mesh"],
            inputs=[View.Input("view", tooltip="Any VIEW. Without a camera core assumes one of about 60 degrees; normals have no place.")],
            outputs=[
                Da3Geometry.Output("da3_geometry", display_name="DA3_GEOMETRY", tooltip="Depth, picture, sky, confidence, camera and pose.")
            ],
        )

    @classmethod
    def execute(cls, view) -> io.NodeOutput:
        return io.NodeOutput(to_da3(view.require_valid()))
