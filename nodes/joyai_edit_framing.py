"""The framing of JoyAI-Image's edits: an image in an exact bucket, and back pixel on pixel."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.core.pictures import read_pictures
from ..models.joyai_edit.buckets import BUCKET_ORDERS
from ..models.joyai_edit.framing import FIT_MODES, fit_images, plan_framing
from ..models.joyai_edit.moving import split_images, split_masks, stack_images
from ..models.joyai_edit.restore import THRESHOLD, FramedImage, restore_all
from .host.joyai_edit.graph import check_encoders_after, check_encoders_before
from .host.shared.notes import tell
from .sockets import Framing, transparent_output

CATEGORY = "SpatialWeave/JoyAI-Image"


class JoyFit(io.ComfyNode):
    """An image at the size of an exact bucket."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_JoyFit",
            display_name="Joy: Fit",
            category=CATEGORY,
            description="Fits an image to a size that JoyAI-Image edits at, by padding or by cropping, "
            "so that ComfyUI crops nothing. Joy: Restore undoes it pixel on pixel.",
            search_aliases=[
                "joyai", "joyimage", "bucket", "pad", "crop", "resize", "outpaint", "framing", "keep size",
            ],
            inputs=[
                io.Image.Input("picture", tooltip="The image, or a batch. Of any size; alpha is handed "
                "on."),
                io.Combo.Input(
                    "mode", options=list(FIT_MODES),
                    tooltip="pad: the whole image, edges repeated around it. crop: the middle of it, "
                    "without padding.",
                ),
                io.Combo.Input(
                    "buckets", options=list(BUCKET_ORDERS), advanced=True,
                    tooltip="Which size counts as nearest where two are equally near, as for 4:3. "
                    "comfyui: 1152 x 832, as ComfyUI and diffusers. original: 1152 x 896, as in "
                    "JoyAI-Image's own code.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "picture", display_name="picture", is_output_list=True,
                    tooltip="The fitted image, one at a time: ComfyUI's node takes one. For Joy: Move "
                    "Object or image0 of TextEncodeJoyImageEdit.",
                ),
                Framing.Output(
                    "framing", display_name="FRAMING", is_output_list=True,
                    tooltip="For Joy: Restore, and Joy: Move Object. Stays the same through several edits.",
                ),
                io.Int.Output("width", display_name="width", tooltip="Width for the empty latent."),
                io.Int.Output("height", display_name="height", tooltip="Height for the empty latent."),
                transparent_output("picture"),
                io.String.Output(
                    "text", display_name="STRING", tooltip="The bucket, the padding and the cropped "
                    "fraction.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, picture, mode, buckets) -> io.NodeOutput:
        check_encoders_after(cls.hidden)
        pictures = read_pictures(picture)
        rgb = pictures.rgb.cpu()
        framing = plan_framing(*rgb.shape[1:3], mode, buckets)
        fitted = list(fit_images(rgb, framing).split(1))
        framed = [FramedImage(one, framing) for one in rgb.split(1)]
        rows, columns = framing.bucket
        alpha = 0 * rgb[..., 0] if pictures.alpha is None else 1 - pictures.alpha.cpu()
        text = tell([*pictures.notes, *framing.describe()], cls.hidden)
        return io.NodeOutput(fitted, framed, columns, rows, alpha, text)


def put_back_options() -> list[io.DynamicCombo.Option]:
    """What of the input is put back, bit for bit."""
    threshold = io.Float.Input(
        "threshold", default=THRESHOLD, min=0.001, max=1.0, step=0.001, round=0.001,
        tooltip="Change of a color, of 1, above which a pixel counts as edited. Higher: fewer.",
    )  # fmt: skip
    mask = io.Mask.Input(
        "edit_mask", tooltip="White where the image may change, of the input's size. Black stays bit "
        "for bit.",
    )  # fmt: skip
    return [
        io.DynamicCombo.Option("where unchanged", [threshold]),
        io.DynamicCombo.Option("outside a mask", [mask]),
        io.DynamicCombo.Option("nothing", []),
    ]


class JoyRestore(io.ComfyNode):
    """The edited image at the input's size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_JoyRestore",
            display_name="Joy: Restore",
            category=CATEGORY,
            description="Brings an edited image back to the exact size of the input, pixel on pixel, "
            "and puts the input's pixels back bit for bit where nothing was edited.",
            search_aliases=[
                "joyai", "joyimage", "uncrop", "unpad", "composite", "paste back", "keep background", "align",
            ],
            is_input_list=True,
            inputs=[
                io.Image.Input("edited", tooltip="The edited image, decoded at the size of Joy: Fit."),
                Framing.Input("framing", tooltip="From the Joy: Fit that the first edit began with."),
                io.DynamicCombo.Input(
                    "put_back", options=put_back_options(),
                    tooltip="What is put back from the input. where unchanged: found by comparison, for a "
                    "move or a rotation. outside a mask: all but your mask. nothing: for a moved camera.",
                ),
                io.Int.Input(
                    "feather", default=8, min=0, max=512,
                    tooltip="Width of the seam in pixels, inside the edited part. 0: a hard edge.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "picture", display_name="IMAGE", is_output_list=True,
                    tooltip="The edited image at the input's size; one batch if all have one size.",
                ),
                io.Mask.Output(
                    "edited", display_name="edited", is_output_list=True,
                    tooltip="Share of the edit in each pixel. Black: the input's pixel, bit for bit.",
                ),
                io.Mask.Output(
                    "uncovered", display_name="uncovered", is_output_list=True,
                    tooltip="White where the edit shows nothing, as Joy: Fit cropped it away: there is "
                    "the input.",
                ),
                io.Float.Output(
                    "alignment", display_name="alignment",
                    tooltip="Mean shift of what was not edited against the input, in pixels, measured in the "
                    "image. NaN where nothing could be measured.",
                ),
                io.String.Output("text", display_name="STRING", tooltip="Size, kept pixels, alignment."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, edited, framing, put_back, feather) -> io.NodeOutput:
        check_encoders_before(cls.hidden)
        images, notes = split_images(edited)
        masks = split_masks(put_back.get("edit_mask") or ())
        threshold = put_back.get("threshold", [None])[0]
        done = restore_all(images, framing, masks=masks, threshold=threshold, feather=feather[0])
        text = tell([*notes, *done.lines], cls.hidden)
        layers = (done.images, done.edited, done.uncovered)
        return io.NodeOutput(*(stack_images(layer) for layer in layers), done.alignment_px, text)
