"""VGGT: depth, cameras and geometry tokens of several views of one scene."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.vggt.examples import list_examples, load_example
from .host.shared.notes import tell
from .host.shared.shipped import TINY
from .host.vggt.loading import find_vggt_fault, list_vggt_files, load_vggt
from .host.vggt.run import choose_images, images_to_tokens, reconstruct_images
from .sockets import GeometryTokens, VggtNetwork, View, transparent_output

CATEGORY = "SpatialWeave/VGGT"


def vggt_input() -> io.Custom.Input:
    """The network."""
    return VggtNetwork.Input("vggt", tooltip="A VGGT network, from Load VGGT.")


def images_input() -> io.Image.Input:
    """The views of one scene, in order."""
    return io.Image.Input(
        "image",
        tooltip="1 to 200 images of one still scene as a batch, of any size. Order matters: the first "
        "image's camera is the origin of the common frame.",
    )


def frames_input() -> io.MultiType.Input:
    """The views of one scene, in order, or a video of it."""
    return io.MultiType.Input(
        "image",
        types=[io.Image, io.Video],
        tooltip="A batch of images of one still scene, of any size, or a video of it; 1 to 200 of them are "
        "used, see every. Order matters: the first image's camera is the origin of the common frame.",
    )


def fit_input() -> io.Combo.Input:
    """How images are fitted to the network's input size."""
    return io.Combo.Input(
        "fit", options=["pad", "crop"], default="pad",
        tooltip="pad: every pixel is seen; the network's image is padded to multiples of its patch size. "
        "crop: as the published code, tall images lose their top and bottom, which then have no depth.",
    )  # fmt: skip


def longer_side_input() -> io.Int.Input:
    """The network's resolution."""
    return io.Int.Input(
        "longer_side", default=0, min=0, max=2048,
        tooltip="Longer side in pixels at which the network sees the images. 0: the size it was trained at, "
        "518 for VGGT-1B. Smaller takes less memory and time. The result has the images' own size.",
    )  # fmt: skip


def queries_input() -> io.Int.Input:
    """Chunk size of the global attention."""
    return io.Int.Input(
        "global_queries", default=0, min=0, max=1_000_000, advanced=True,
        tooltip="Attention over all views runs on this many tokens at a time. 0: all at once. About 4096 "
        "saves memory where ComfyUI's attention writes out its scores; the numbers stay the same.",
    )  # fmt: skip


def scene_notes_output() -> io.String.Output:
    """Notes on the inputs and on unreliable results, a line each."""
    return io.String.Output(
        "notes", display_name="STRING",
        tooltip="Views, size and memory; padding; views of low confidence or without overlap.",
    )  # fmt: skip


class LoadVggt(io.ComfyNode):
    """A VGGT network with its license."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadVggt",
            display_name="Load VGGT",
            category="SpatialWeave/Loaders",
            description="Loads a VGGT network, which finds depth and cameras of several views of one scene: "
            "the tiny network that ships with the pack, or VGGT-1B from models/geometry_estimation. Shows "
            "the license.",
            search_aliases=["vggt", "multi view", "reconstruction", "structure from motion", "camera pose"],
            inputs=[
                io.Combo.Input(
                    "model_name", options=list_vggt_files(), default=TINY,
                    tooltip="The tiny network needs no download and knows plain rendered solids. A file is "
                    "recognized by its tensors; a MoGe or Depth Anything file is refused by name.",
                ),
            ],
            outputs=[
                VggtNetwork.Output(
                    "vggt", display_name="VGGT", tooltip="The network, for VGGT Reconstruct.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, model_name) -> bool | str:
        return True if model_name is None else find_vggt_fault(model_name) or True

    @classmethod
    def execute(cls, model_name) -> io.NodeOutput:
        vggt = load_vggt(model_name)
        tell(vggt.notes, cls.hidden)
        return io.NodeOutput(vggt)


class LoadExampleViews(io.ComfyNode):
    """Example images: a few views of one rendered scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadExampleViews",
            display_name="Load Example Views",
            category="SpatialWeave/Loaders",
            description="Four rendered views of one still scene, which ship with the pack: to try VGGT "
            "Reconstruct without images of your own.",
            search_aliases=["vggt", "multi view", "example images", "sample images", "test images"],
            inputs=[
                io.Combo.Input(
                    "scene", options=list_examples(),
                    tooltip="A scene of plain rendered solids, in a room or outdoors. None of them was "
                    "among the tiny network's training images.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="IMAGE", tooltip="The four views as a batch, for VGGT Reconstruct.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, scene) -> io.NodeOutput:
        return io.NodeOutput(load_example(scene))


class VggtReconstruct(io.ComfyNode):
    """Images of one scene to VIEWs in one frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_VggtReconstruct",
            display_name="VGGT Reconstruct",
            category=CATEGORY,
            description="Finds depth, confidence and camera of each image of a batch, all in one common "
            "frame. The scale is relative: one unknown factor for all views together.",
            search_aliases=[
                "vggt", "multi view depth", "camera pose", "structure from motion", "video depth", "sfm",
                "point cloud",
            ],
            inputs=[
                vggt_input(),
                frames_input(),
                fit_input(),
                longer_side_input(),
                io.Combo.Input(
                    "source", options=["depth", "point"], default="depth", advanced=True,
                    tooltip="The head that the depth is from. depth: more exact, by VGGT's authors. point: "
                    "the point head, whose points become depth by the camera of their view.",
                ),
                queries_input(),
                io.Int.Input(
                    "every", default=1, min=1, max=1000, optional=True,
                    tooltip="1: every image. 2: every second image, and so on, for the frames of a video.",
                ),
            ],
            outputs=[
                View.Output(
                    "view", display_name="VIEW",
                    tooltip="One view for each image: depth, confidence, intrinsics and pose, in the frame "
                    "of the first camera.",
                ),
                transparent_output("the images", display_name="MASK"),
                scene_notes_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, vggt, image, fit, longer_side, source="depth", global_queries=0, every=1
    ) -> io.NodeOutput:
        chosen, said = choose_images(image, every)
        found = reconstruct_images(
            vggt, chosen, fit=fit, longer_side=longer_side, source=source, queries=global_queries
        )
        return io.NodeOutput(found.view, found.transparent, tell((*said, *found.notes), cls.hidden))


class VggtGeometryTokens(io.ComfyNode):
    """Images to the tokens of the aggregator's last entry."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_VggtGeometryTokens",
            display_name="VGGT Geometry Tokens",
            category=CATEGORY,
            description="The tokens of VGGT's last layer, without its heads: what SpatialDiff conditions an "
            "image model on.",
            search_aliases=["vggt", "geometry encoder", "features", "spatialdiff", "spatial tokens"],
            inputs=[vggt_input(), images_input(), fit_input(), longer_side_input(), queries_input()],
            outputs=[
                GeometryTokens.Output(
                    "tokens", display_name="GEOMETRY_TOKENS",
                    tooltip="Tokens (views, tokens, channels) with camera and registers first, the patch "
                    "grid, and where each image lies on it.",
                ),
                scene_notes_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, vggt, image, fit, longer_side, global_queries=0) -> io.NodeOutput:
        tokens, notes = images_to_tokens(
            vggt, image, fit=fit, longer_side=longer_side, queries=global_queries
        )
        return io.NodeOutput(tokens, tell(notes, cls.hidden))
