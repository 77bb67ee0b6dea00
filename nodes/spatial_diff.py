"""SpatialDiff: geometry tokens in the sequence of an image editor."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..models.core.pictures import read_pictures
from ..models.spatial_diff.grammar import explain_instruction
from ..models.spatial_diff.instructions import (
    DIRECTIONS,
    DISTANCES,
    RELATIONS,
    Instruction,
    bounds_of_box,
    bounds_of_mask,
    move_along,
    move_beside,
    move_between,
    move_to_point,
)
from ..models.spatial_diff.seen_colors import explain_absent
from .host.shared.notes import tell
from .host.shared.shipped import TINY
from .host.spatial_diff.connector import (
    describe_connector,
    find_connector_fault,
    list_connector_files,
    load_connector_file,
)
from .host.spatial_diff.fusion import Setting
from .host.spatial_diff.run import add_tokens
from .host.spatial_diff.tiny_editor import load_tiny_editor
from .sockets import GeometryConnector, GeometryTokens

CATEGORY = "SpatialWeave/SpatialDiff"
LARGEST_SIDE = 16384  # pixels


def point_inputs() -> list[io.Input]:
    """Where an object shall stand, and the scale of its image."""
    tips = {"x": "Column of the point in pixels.", "y": "Row of the point in pixels: the object's foot."}
    return [
        *(io.Int.Input(name, default=0, min=0, max=LARGEST_SIDE, tooltip=tip) for name, tip in tips.items()),
        io.Float.Input(
            "height", default=0.9, min=0.01, max=100.0, step=0.01,
            tooltip="How high the object is, in metres: the scale of the distance.",
        ),
    ]  # fmt: skip


def destination_options() -> list[io.DynamicCombo.Option]:
    """The ways to say where an object shall go."""
    direction = [
        io.Combo.Input("direction", options=list(DIRECTIONS), tooltip="As the viewer sees it."),
        io.Combo.Input("distance", options=list(DISTANCES.values()), tooltip="Along the ground."),
    ]
    relation = [
        io.Combo.Input("relation", options=list(RELATIONS), tooltip="As the viewer sees it."),
        io.String.Input("reference", default="the blue box", tooltip="The object that stays."),
    ]
    between = [
        io.String.Input("first", default="the blue box", tooltip="One of the two that stay."),
        io.String.Input("second", default="the green cone", tooltip="The other one."),
    ]
    box = io.BoundingBox.Input(
        "bounding_box", force_input=True, tooltip="Around the object, from core's Create Bounding Boxes.",
    )  # fmt: skip
    mask = io.Mask.Input("mask", tooltip="White where the object is; its bounding box counts.")
    return [
        io.DynamicCombo.Option("direction", direction),
        io.DynamicCombo.Option("relation", relation),
        io.DynamicCombo.Option("between", between),
        io.DynamicCombo.Option("point, by box", [box, *point_inputs()]),
        io.DynamicCombo.Option("point, by mask", [mask, *point_inputs()]),
    ]


def write_instruction(name: str, destination: dict) -> Instruction:
    """The sentence of the node's widgets."""
    kind = destination["destination"]
    if kind == "direction":
        return Instruction(move_along(name, destination["direction"], destination["distance"]))
    if kind == "relation":
        return Instruction(move_beside(name, destination["relation"], destination["reference"]))
    if kind == "between":
        return Instruction(move_between(name, destination["first"], destination["second"]))
    point = destination["x"], destination["y"]
    if kind == "point, by box":
        box = bounds_of_box(destination["bounding_box"])
    else:
        box = bounds_of_mask(destination["mask"], point)
    return move_to_point(name, box, point, destination["height"])


def check_tiny_edit(text: str, image: Tensor) -> None:
    """ValueError for what the tiny editor cannot read, or names no object of these images (b, h, w, c)."""
    fault = explain_instruction(text)
    for each in read_pictures(image).rgb:
        fault = fault or explain_absent(text, each)
    if fault:
        raise ValueError(fault)


class LoadTinyEditor(io.ComfyNode):
    """An editor for trying geometry tokens without a download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadTinyEditor",
            display_name="Load Tiny Editor",
            category="SpatialWeave/Loaders",
            description="Loads the tiny image editor that ships with the pack: Flux-Kontext's network in a "
            "small configuration, for images of 128 x 128 pixels with colored solids, one of which an "
            "instruction moves. It takes the place of the three loaders in a Flux-Kontext workflow.",
            search_aliases=["spatialdiff", "tiny kontext", "move object", "edit model", "no download"],
            inputs=[
                io.Float.Input(
                    "lora_strength", default=1.0, min=0.0, max=2.0, step=0.01,
                    tooltip="Of the LoRA that was trained with the tiny geometry connector. 1: for Geometry "
                    "Tokens. 0: the editor without it.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL", tooltip="For Geometry Tokens, or a KSampler alone.",
                ),
                io.Clip.Output(
                    "clip", display_name="CLIP",
                    tooltip="It reads the sentences of Move Object Instruction; any other word is an error "
                    "under the node that encodes it.",
                ),
                io.Vae.Output(
                    "vae", display_name="VAE", tooltip="For the image that is edited, and the edited one.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, lora_strength) -> io.NodeOutput:
        return io.NodeOutput(*load_tiny_editor(lora_strength))


class LoadGeometryConnector(io.ComfyNode):
    """A connector from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadGeometryConnector",
            display_name="Load Geometry Connector",
            category="SpatialWeave/Loaders",
            description="Loads a geometry connector of SpatialDiff, the network that turns geometry tokens "
            "of VGGT into tokens of an image editor's sequence: the tiny editor's, which ships with the "
            "pack, or a file from models/model_patches.",
            search_aliases=["spatialdiff", "connector", "geometry", "move object", "spatial tokens"],
            inputs=[
                io.Combo.Input(
                    "connector_name", options=list_connector_files(), default=TINY,
                    tooltip="The tiny one is for Load Tiny Editor and the tiny VGGT. A file is a connector "
                    "as SpatialDiff's training writes it, for one editor and one VGGT network.",
                ),
            ],
            outputs=[
                GeometryConnector.Output(
                    "connector", display_name="GEOMETRY_CONNECTOR", tooltip="For Geometry Tokens.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, connector_name) -> bool | str:
        return True if connector_name is None else find_connector_fault(connector_name) or True

    @classmethod
    def execute(cls, connector_name) -> io.NodeOutput:
        connector = load_connector_file(connector_name)
        tell(describe_connector(connector), cls.hidden)
        return io.NodeOutput(connector)


class AddGeometryTokens(io.ComfyNode):
    """An editor with the geometry of its reference image in its sequence."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_GeometryTokens",
            display_name="Geometry Tokens",
            category=CATEGORY,
            description="Gives an image editor (Flux-Kontext, FLUX.2) the geometry of the image it edits: "
            "tokens of VGGT, through a connector, join its sequence. For instructions that move objects.",
            search_aliases=["spatialdiff", "move object", "vggt", "spatial tokens", "kontext", "flux"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="Flux-Kontext or FLUX.2, of the width that the connector was trained "
                    "with. LoRAs, ControlNet and Flux KV Cache work as before.",
                ),
                GeometryTokens.Input(
                    "tokens", tooltip="Of the image that is edited, from VGGT Geometry Tokens: the image "
                    "that goes into VAE Encode. One image, or one for each image of the batch.",
                ),
                GeometryConnector.Input("connector", tooltip="From Load Geometry Connector."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=10.0, step=0.01,
                    tooltip="How much attention the tokens get: a factor on their attention weights before "
                    "these are normalized. 1: as trained. 0: the model without tokens, exactly.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001, advanced=True,
                    tooltip="Part of the steps, from 0 to 1, at which the tokens begin to act.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001, advanced=True,
                    tooltip="Part of the steps at which the tokens cease to act.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="White where tokens act, in the frame of the edited image; gray weakens them. "
                    "One mask, or one for each image of the batch.",
                ),
            ],
            outputs=[io.Model.Output("patched", display_name="MODEL", tooltip="The model with the tokens.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, tokens, connector, strength, start_percent, end_percent, mask=None
    ) -> io.NodeOutput:
        setting = Setting(strength, start_percent, end_percent, mask)
        patched, notes = add_tokens(model, tokens, connector, setting)
        tell(notes, cls.hidden)
        return io.NodeOutput(patched)


class MoveObjectInstruction(io.ComfyNode):
    """The sentence that moves an object."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_MoveObjectInstruction",
            display_name="Move Object Instruction",
            category=CATEGORY,
            description="Writes the instruction that moves an object, in the words that SpatialDiff is "
            "trained with: by a direction, a relation to another object, or a point of the image.",
            search_aliases=["spatialdiff", "move object", "instruction", "prompt", "drag", "reposition"],
            inputs=[
                io.String.Input(
                    "object", default="the red ball",
                    tooltip="The object in a few words, so that it is the only one they fit.",
                ),
                io.DynamicCombo.Input(
                    "destination", options=destination_options(),
                    tooltip="direction: by a distance. relation: beside another object. between: "
                    "to the middle of two. point: to a pixel of the image, from the object's box or mask.",
                ),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="Only for the tiny editor: the image that is edited. The instruction has to be "
                    "in the tiny editor's words, about colors that the image shows.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "instruction", display_name="STRING", tooltip="For the text encoder of the editor.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, object, destination, image=None) -> io.NodeOutput:
        instruction = write_instruction(object, destination)
        if image is not None:
            check_tiny_edit(instruction.text, image)
        tell([*instruction.notes, f'"{instruction.text}"'], cls.hidden)
        return io.NodeOutput(instruction.text)
