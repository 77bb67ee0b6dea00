"""Measurement of an edited image against the image before, and whether the edit is the requested one."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..models.core.evaluation.edit_batch import check_edits, describe_edits, edits_to_json
from ..models.core.evaluation.edit_check import EditReport
from ..models.core.evaluation.edit_verdict import EditRequest
from ..models.core.visualize.edit_sheet import edit_sheet, resize_masks
from .host.shared.picture_previews import preview_images
from .host.shared.progress import each_picture
from .sockets import View

_REGIONS = ("changed", "object_after")  # fields of a report that are output as masks


def edit_options() -> list[io.DynamicCombo.Option]:
    """The kinds of edit with their parameters."""
    camera = [
        io.Float.Input(
            "yaw_degrees", default=45.0, min=-180.0, max=180.0, step=0.1,
            tooltip="The yaw of the prompt, in degrees: positive orbits to the viewer's right.",
        ),
        io.Float.Input(
            "pitch_degrees", default=0.0, min=-90.0, max=90.0, step=0.1,
            tooltip="The pitch of the prompt, in degrees: positive goes up and looks down.",
        ),
        io.Combo.Input(
            "zoom", options=["unchanged", "in", "out"], default="unchanged",
            tooltip="The zoom of the prompt.",
        ),
    ]  # fmt: skip
    return [
        io.DynamicCombo.Option("move object", []),
        io.DynamicCombo.Option("rotate object", []),
        io.DynamicCombo.Option("move camera", camera),
        io.DynamicCombo.Option("anything", []),
    ]


def optional_inputs() -> list[io.Input]:
    """Masks and a second depth, each of which makes the check more reliable."""
    return [
        io.Mask.Input(
            "object_mask", optional=True,
            tooltip="The object in the image before. Not connected: it is looked for among the "
            "changed pixels, which is less certain.",
        ),
        io.Mask.Input(
            "target_mask", optional=True,
            tooltip="Where the object was to go: the inside of the red box. Only for move object.",
        ),
        io.Mask.Input(
            "object_mask_after", optional=True,
            tooltip="The object in the image after. Not connected: it is found by its colors.",
        ),
        View.Input(
            "view_after", optional=True,
            tooltip="The depth of the image after. With it the object's turn is measured in degrees, "
            "and its motion in depth exactly.",
        ),
    ]  # fmt: skip


class CheckEdit(io.ComfyNode):
    """Whether an edit is the requested one, measured in pixels, metres and degrees."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_CheckEdit",
            display_name="Check Edit",
            category="SpatialWeave/Evaluation",
            description="Measures from the images before and after whether an object moved or turned, or the "
            "camera did, what else changed, and whether a red box or the original was left behind.",
            search_aliases=[
                "was it done", "verify edit", "compare images", "object displacement", "camera motion", "yaw",
                "pitch", "joyimage", "spatial edit", "score",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input("before", tooltip="The image before the edit, without the red box."),
                io.Image.Input("after", tooltip="The edited image, of the same size and framing."),
                View.Input(
                    "view", tooltip="The depth of the image before, with its camera; any VIEW will do.",
                ),
                io.DynamicCombo.Input(
                    "edit", options=edit_options(),
                    tooltip="What was asked for. anything: only measures, without a verdict.",
                ),
                io.Float.Input(
                    "fov_degrees", default=0.0, min=0.0, max=170.0, step=0.0001, advanced=True,
                    tooltip="Horizontal field of view in degrees, for a VIEW without a camera of its own. 0: "
                    "the VIEW has to have one.",
                ),
                *optional_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="IMAGE",
                    tooltip="Before and after side by side, with outlines, an arrow and the verdict.",
                ),
                io.Boolean.Output(
                    "done", display_name="done", tooltip="Whether all images of the batch pass.",
                ),
                io.String.Output(
                    "text", display_name="STRING", tooltip="The verdicts, a line for each image.",
                ),
                io.String.Output(
                    "json", display_name="json", tooltip="Everything that was measured, for scripts.",
                ),
                io.Mask.Output(
                    "changed", display_name="changed", tooltip="White where the image changed.",
                ),
                io.Mask.Output(
                    "object_after", display_name="object_after",
                    tooltip="White where the object is in the image after.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, before, after, view, edit, fov_degrees, object_mask=None, target_mask=None,
        object_mask_after=None, view_after=None,
    ) -> io.NodeOutput:  # fmt: skip
        masks = {"object_before": object_mask, "target": target_mask, "object_after": object_mask_after}
        options = {"view_after": view_after, "fov_degrees": fov_degrees or None, "each": each_picture}
        reports = check_edits(before, after, view, read_request(edit), **masks, **options)
        sheets = torch.stack([draw_report(report) for report in reports])
        done = all(report.verdict.is_done for report in reports)
        size = before.shape[1:3]
        regions = (resize_masks([getattr(report, name) for report in reports], size) for name in _REGIONS)
        words = describe_edits(reports), edits_to_json(reports)
        return io.NodeOutput(sheets, done, *words, *regions, ui=preview_images(sheets, cls))


def read_request(edit: dict[str, Any]) -> EditRequest:
    """The request from the widgets of `edit`."""
    numbers = {name: value for name, value in edit.items() if name != "edit"}
    return EditRequest(edit["edit"], **numbers)


def draw_report(report: EditReport) -> torch.Tensor:
    """The comparison sheet (h, w, 3) of one checked edit."""
    names = ("object_before", "object_after", "changed", "target")
    masks = {name: getattr(report, name) for name in names}
    verdict = {"sentence": report.verdict.sentence, "is_done": report.verdict.is_done}
    return edit_sheet(report.before, report.after, **masks, **verdict)
