"""The prompts of JoyAI-Image's spatial edits: move an object, turn it, move the camera."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.joyai_edit.boxes import BOX_SIDES
from ..models.joyai_edit.cameras import change_between
from ..models.joyai_edit.moving import (
    boxes_from_frames,
    boxes_from_mask_batches,
    boxes_from_numbers,
    prepare_moves,
    reference_sizes,
    split_images,
)
from ..models.joyai_edit.prompts import (
    ANGLE_FORMS,
    VIEW_FORMS,
    VIEWS,
    ZOOMS,
    camera_change,
    name_notes,
    rotate_prompt,
)
from .host.joyai_edit.graph import check_encoders_after
from .host.shared.notes import tell
from .sockets import Framing

CATEGORY = "SpatialWeave/JoyAI-Image"


def name_input() -> io.String.Input:
    """The object, as the model reads it."""
    return io.String.Input(
        "object", default="",
        tooltip="The object, as you would say it: the red mug on the left. It goes into the prompt as it is, "
        "with its own article or none.",
    )  # fmt: skip


def prompt_output(*, is_list: bool = False) -> io.String.Output:
    """The prompt, which must reach core's node by a link: its widget would expand braces."""
    return io.String.Output(
        "prompt", display_name="prompt", is_output_list=is_list,
        tooltip="The exact prompt. Link it to the prompt of TextEncodeJoyImageEdit.",
    )  # fmt: skip


def box_options() -> list[io.DynamicCombo.Option]:
    """The three ways to give a box; equal boxes give equal results."""
    tips = {
        "x": "Left edge of the box, in pixels.", "y": "Top edge of the box, in pixels.",
        "width": "Width of the box, in pixels.", "height": "Height of the box, in pixels.",
    }  # fmt: skip
    sides = [io.Int.Input(name, default=0, min=-16384, max=16384, tooltip=tips[name]) for name in BOX_SIDES]
    box = io.BoundingBox.Input(
        "bounding_box", force_input=True,
        tooltip="From core's Create Bounding Boxes or Bounding Box, or a detector's; one box for each image.",
    )  # fmt: skip
    mask = io.Mask.Input("mask", tooltip="White where the object shall go; its bounding box counts.")
    return [
        io.DynamicCombo.Option("numbers", sides),
        io.DynamicCombo.Option("bounding box", [box]),
        io.DynamicCombo.Option("mask", [mask]),
    ]


def motion_options() -> list[io.DynamicCombo.Option]:
    """Angles, or two cameras of core's."""
    angles = [
        io.Float.Input(
            "yaw", default=45.0, min=-3600.0, max=3600.0, step=0.1, round=0.1,
            tooltip="Degrees around the scene. + moves the camera to your right, so that you see more of the "
            "right side; 0 changes nothing. Trained in steps of 45.",
        ),
        io.Float.Input(
            "pitch", default=0.0, min=-360.0, max=360.0, step=0.1, round=0.1,
            tooltip="Degrees up. + raises the camera, which then looks down. Trained in steps of 15 from -75 "
            "to 75; beyond 90 is refused.",
        ),
        io.Combo.Input(
            "zoom", options=list(ZOOMS), default="unchanged",
            tooltip="The distance of the camera, at the same lens. in: closer. out: farther away.",
        ),
    ]  # fmt: skip
    cameras = [
        io.Load3DCamera.Input("before", tooltip="The camera of the image, from Create Camera Info."),
        io.Load3DCamera.Input(
            "after", tooltip="The camera that is wanted, with the same target, field of view and zoom.",
        ),
    ]  # fmt: skip
    return [io.DynamicCombo.Option("angles", angles), io.DynamicCombo.Option("two cameras", cameras)]


class JoyMoveObject(io.ComfyNode):
    """Prompt and red box that move an object."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_JoyMoveObject",
            display_name="Joy: Move Object",
            category=CATEGORY,
            description="Moves an object with JoyAI-Image: gives the exact prompt, and the image with "
            "the red box that the object moves into.",
            search_aliases=[
                "joyai", "joyimage", "move object", "red box", "drag", "reposition", "spatial edit",
                "bounding box",
            ],
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "picture",
                    tooltip="The image from Joy: Fit. Any other works, too, but ComfyUI then crops it.",
                ),
                name_input(),
                io.DynamicCombo.Input(
                    "box", options=box_options(),
                    tooltip="Where the object shall go, in pixels of the image before Joy: Fit. One box "
                    "for each image, or one for all.",
                ),
                Framing.Input(
                    "framing", optional=True,
                    tooltip="From Joy: Fit. Places the box in the fitted image. Without it the box is "
                    "in pixels of picture itself.",
                ),
            ],
            outputs=[
                prompt_output(is_list=True),
                io.Image.Output(
                    "picture", display_name="picture", is_output_list=True,
                    tooltip="The image with its red box, one at a time. Link it to image0 of both "
                    "TextEncodeJoyImageEdit nodes, for the positive and the empty prompt.",
                ),
                io.BoundingBox.Output(
                    "bounding_box", display_name="BOUNDING_BOX", is_output_list=True,
                    tooltip="The box, in pixels of the image before Joy: Fit.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, picture, object, box, framing=None) -> io.NodeOutput:
        check_encoders_after(cls.hidden, image_too=True)
        images, notes = split_images(picture)
        kind = box["box"][0]
        if kind == "numbers":
            boxes = boxes_from_numbers([box[side] for side in BOX_SIDES], len(images))
        elif kind == "bounding box":
            boxes = boxes_from_frames(box["bounding_box"], len(images))
        else:
            boxes = boxes_from_mask_batches(box["mask"], reference_sizes(images, framing))
        moves = prepare_moves(object, images, boxes, framing)
        tell([*notes, *(note for move in moves for note in move.notes)], cls.hidden)
        return io.NodeOutput(
            [move.prompt for move in moves], [move.image for move in moves], [move.box for move in moves]
        )


class JoyRotateObject(io.ComfyNode):
    """The prompt that turns an object."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_JoyRotateObject",
            display_name="Joy: Rotate Object",
            category=CATEGORY,
            description="Turns an object with JoyAI-Image until the image shows one of eight views of "
            "it: gives the exact prompt.",
            search_aliases=[
                "joyai", "joyimage", "rotate object", "turn", "multi-angle", "side view", "spatial edit",
            ],
            inputs=[
                name_input(),
                io.Combo.Input(
                    "view", options=list(VIEWS),
                    tooltip="Where the front of the object points in the image. right: its nose to the "
                    "right edge. front: it faces you. rear: it faces away.",
                ),
                io.Combo.Input(
                    "form", options=list(VIEW_FORMS), advanced=True,
                    tooltip="benchmark: front view, as in the training data. readme: front side view, as "
                    "in the model's readme. Only front and rear differ.",
                ),
            ],
            outputs=[prompt_output()],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, object, view, form) -> io.NodeOutput:
        check_encoders_after(cls.hidden)
        prompt = rotate_prompt(object, view, form)
        tell(name_notes(object), cls.hidden)
        return io.NodeOutput(prompt)


class JoyMoveCamera(io.ComfyNode):
    """The prompt that moves the camera."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_JoyMoveCamera",
            display_name="Joy: Move Camera",
            category=CATEGORY,
            description="Shows the scene from another viewpoint with JoyAI-Image: gives the exact prompt "
            "of yaw, pitch and zoom, or of two cameras.",
            search_aliases=[
                "joyai", "joyimage", "camera angle", "orbit", "novel view", "viewpoint", "multi-angle",
                "yaw pitch",
            ],
            inputs=[
                io.DynamicCombo.Input(
                    "motion", options=motion_options(),
                    tooltip="angles: changes from the image's viewpoint. two cameras: the change from "
                    "one to the other.",
                ),
                io.Combo.Input(
                    "form", options=list(ANGLE_FORMS), advanced=True,
                    tooltip="one decimal: Yaw 45.0, as in the training data. integer: Yaw 45, as in the "
                    "model's readme.",
                ),
            ],
            outputs=[
                prompt_output(),
                io.Float.Output("yaw", display_name="yaw", tooltip="Degrees, as the prompt says it."),
                io.Float.Output("pitch", display_name="pitch", tooltip="Degrees, as the prompt says it."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, motion, form) -> io.NodeOutput:
        check_encoders_after(cls.hidden)
        if motion["motion"] == "angles":
            change = camera_change(motion["yaw"], motion["pitch"], motion["zoom"])
        else:
            change = change_between(motion["before"], motion["after"])
        tell(change.all_notes(form), cls.hidden)
        return io.NodeOutput(change.prompt(form), change.yaw, change.pitch)
