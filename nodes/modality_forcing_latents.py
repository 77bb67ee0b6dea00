"""Joint latents: empty, or started from a picture, a depth or parts of them; taken apart, joined, saved and loaded."""

from __future__ import annotations

import math

from comfy_api.latest import io

from .host.modality_forcing.given_streams import (
    depth_to_image_latent,
    image_to_depth_latent,
    masked_joint_latent,
    refine_depth_latent,
)
from .host.modality_forcing.joint_latent import empty_joint_latent, explain_size
from .host.modality_forcing.latent_files import (
    hash_joint_latent,
    join_latents,
    list_joint_latents,
    load_joint_latent,
    save_joint_latent,
    split_streams,
)
from .host.shared.notes import tell
from .sockets import View

CATEGORY = "SpatialWeave/Latent"


def notes_output() -> io.String.Output:
    """What was done to the inputs; it stands under the node and in the log as well."""
    return io.String.Output(
        "notes", display_name="STRING",
        tooltip="What was done to the inputs: padding, clamped colours, alpha, missing depth with count and percent.",
    )  # fmt: skip


def transparent_output() -> io.Mask.Output:
    """The alpha of a picture, which the model does not see."""
    return io.Mask.Output(
        "transparent", display_name="MASK",
        tooltip="The picture's alpha as core has it: white where it is transparent, black all over without an alpha.",
    )  # fmt: skip


class EmptyJointLatent(io.ComfyNode):
    """Where a joint generation starts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_EmptyJointLatent",
            display_name="Empty Joint Latent",
            category="SpatialWeave/Modality Forcing",
            description="An empty latent for an image together with its depth. Wire it to a KSampler whose model is a joint model.",
            search_aliases=["rgbd", "depth", "empty latent", "image and depth", "nested latent"],
            inputs=[
                io.Model.Input("model", tooltip="The joint model that will sample it: it fixes the number of channels and the patch."),
                io.Int.Input(
                    "width", default=128, min=16, max=4096, step=1,
                    tooltip="Width in pixels. Padded inside to whole patches of 16; you get the width you asked for.",
                ),
                io.Int.Input(
                    "height", default=128, min=16, max=4096, step=1,
                    tooltip="Height in pixels. Padded inside to whole patches of 16; you get the height you asked for.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pairs of image and depth to make."),
            ],
            outputs=[io.Latent.Output("latent", display_name="LATENT", tooltip="Image and depth as one nested latent.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, width, height, batch_size) -> io.NodeOutput:
        tell(explain_size(model, width, height), cls.hidden)
        return io.NodeOutput(empty_joint_latent(model, width, height, batch_size))


class ImageToDepthLatent(io.ComfyNode):
    """The depth of a given picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ImageToDepthLatent",
            display_name="Image to Depth Latent",
            category="SpatialWeave/Modality Forcing",
            description="A joint latent whose image is given: a KSampler with a joint model then makes its depth. The image's latent is "
            "kept bit for bit.",
            search_aliases=["depth estimation", "depth from image", "image to depth", "image_to_depth", "monocular depth", "rgbd"],
            inputs=[
                io.Model.Input("model", tooltip="The joint model that will sample it."),
                io.Vae.Input("vae", tooltip="The VAE of the image stream: the tiny model's own, or flux2-vae for models on FLUX.2."),
                io.Image.Input("image", tooltip="The picture, of any size. The colours of an RGBA picture are used as they are."),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="LATENT", tooltip="The image given, its depth to be sampled."),
                transparent_output(),
                notes_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, image) -> io.NodeOutput:
        given = image_to_depth_latent(model, vae, image)
        return io.NodeOutput(given.latent, given.transparent, tell(given.notes, cls.hidden))


class DepthToImageLatent(io.ComfyNode):
    """A picture for a given depth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_DepthToImageLatent",
            display_name="Depth to Image Latent",
            category="SpatialWeave/Modality Forcing",
            description="A joint latent whose depth is given: a KSampler with a joint model then makes a picture that fits. The depth is "
            "kept bit for bit.",
            search_aliases=["depth controlnet", "image from depth", "depth to image", "depth_to_image", "depth guided", "rgbd"],
            inputs=[
                io.Model.Input("model", tooltip="The joint model that will sample it."),
                View.Input(
                    "view",
                    tooltip="The depth, of any size and unit: its scale does not matter. Missing pixels stay missing and are left to the "
                    "model; to have them filled in, use Masked Joint Latent.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="LATENT", tooltip="The depth given, the image to be sampled."),
                notes_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, view) -> io.NodeOutput:
        given = depth_to_image_latent(model, view)
        return io.NodeOutput(given.latent, tell(given.notes, cls.hidden))


class MaskedJointLatent(io.ComfyNode):
    """Inpainting of either stream, and completion of sparse depth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_MaskedJointLatent",
            display_name="Masked Joint Latent",
            category="SpatialWeave/Modality Forcing",
            description="A joint latent of which parts are given: what is wired and not masked is kept, the rest is sampled. For "
            "inpainting an image with its depth, and for completing partial or sparse depth.",
            search_aliases=["inpaint", "depth completion", "sparse depth", "partial depth", "rgbd inpaint", "noise mask", "fill holes"],
            inputs=[
                io.Model.Input("model", tooltip="The joint model that will sample it."),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Needed with an image: the tiny model's own, or flux2-vae for models on FLUX.2.",
                ),
                io.Image.Input("image", optional=True, tooltip="The picture. Not wired: the whole image is sampled."),
                io.Mask.Input(
                    "image_mask", optional=True,
                    tooltip="White is sampled anew, black is kept, as in core's inpainting. Not wired: the whole image is kept.",
                ),
                View.Input(
                    "view", optional=True,
                    tooltip="The depth, of the image's size; missing pixels are sampled. Not wired: the whole depth is sampled.",
                ),
                io.Mask.Input(
                    "depth_mask", optional=True,
                    tooltip="White is sampled anew, black is kept. Not wired: all depth that the VIEW has is kept.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="LATENT", tooltip="Both streams, each with its own noise mask."),
                transparent_output(),
                notes_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae=None, image=None, image_mask=None, view=None, depth_mask=None) -> io.NodeOutput:
        given = masked_joint_latent(model, vae, image, image_mask, view=view, depth_mask=depth_mask)
        return io.NodeOutput(given.latent, given.transparent, tell(given.notes, cls.hidden))


class RefineDepthLatent(io.ComfyNode):
    """The second run of the paper's refinement."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_RefineDepthLatent",
            display_name="Refine Depth Latent",
            category="SpatialWeave/Modality Forcing",
            description="Takes the result of a joint run and gives its image: a second KSampler, at cfg 1, then makes the depth anew from "
            "the finished picture. The image's latent is kept bit for bit.",
            search_aliases=["refine depth", "second pass", "sharpen depth", "hires depth", "rgbd"],
            inputs=[io.Latent.Input("samples", tooltip="A joint latent, from the KSampler of the first run.")],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT",
                    tooltip="The image given, its depth to be sampled. With a denoise below 1 the second run starts from the first depth.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        return io.NodeOutput(refine_depth_latent(samples))


class SplitJointLatent(io.ComfyNode):
    """Two plain latents of a joint one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SplitJointLatent",
            display_name="Split Joint Latent",
            category=CATEGORY,
            description="Takes a joint latent apart into two plain ones, image and depth, each with its own mask, for core's latent nodes.",
            search_aliases=["separate", "unbind", "nested latent", "image latent", "depth latent"],
            inputs=[io.Latent.Input("samples", tooltip="A joint latent.")],
            outputs=[
                io.Latent.Output("image_latent", display_name="image_latent", tooltip="The image's latent, for any latent node."),
                io.Latent.Output(
                    "depth_latent", display_name="depth_latent", tooltip="The depth's: one channel per pixel, in the network's numbers.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        return io.NodeOutput(*split_streams(samples))


class JoinJointLatent(io.ComfyNode):
    """The reverse of Split Joint Latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_JoinJointLatent",
            display_name="Join Joint Latent",
            category=CATEGORY,
            description="Makes a joint latent of an image latent and a depth latent, with the masks of both. A batch of 1 serves all.",
            search_aliases=["concat", "combine", "merge latents", "nested latent", "concat joint latent"],
            inputs=[
                io.Latent.Input("image_latent", tooltip="The image's latent, from Split Joint Latent or from VAE Encode."),
                io.Latent.Input("depth_latent", tooltip="The depth's latent, from Split Joint Latent."),
            ],
            outputs=[io.Latent.Output("latent", display_name="LATENT", tooltip="Image and depth as one nested latent.")],
        )

    @classmethod
    def execute(cls, image_latent, depth_latent) -> io.NodeOutput:
        return io.NodeOutput(join_latents(image_latent, depth_latent))


class SaveJointLatent(io.ComfyNode):
    """Core's Save Latent, for two streams."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SaveJointLatent",
            display_name="Save Joint Latent",
            category=CATEGORY,
            description="Writes a joint latent, with its masks and the size it was asked for, as safetensors into ComfyUI's output folder. "
            "Core's Save Latent cannot take one.",
            search_aliases=["export latent", "save latent", "store", "nested latent"],
            is_output_node=True,
            inputs=[
                io.Latent.Input("samples", tooltip="A joint latent."),
                io.String.Input(
                    "filename_prefix", default="latents/joint",
                    tooltip="The name inside the output folder, subfolders allowed; a number is added.",
                ),
            ],
            outputs=[],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, filename_prefix) -> io.NodeOutput:
        return io.NodeOutput(ui=save_joint_latent(samples, filename_prefix, cls.hidden.prompt, cls.hidden.extra_pnginfo))


class LoadJointLatent(io.ComfyNode):
    """The reverse of Save Joint Latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadJointLatent",
            display_name="Load Joint Latent",
            category=CATEGORY,
            description="Reads a joint latent that Save Joint Latent wrote, bit for bit.",
            search_aliases=["import latent", "open latent", "load latent", "nested latent"],
            inputs=[
                io.Combo.Input(
                    "file", options=list_joint_latents(),
                    tooltip="A .joint.safetensors file in ComfyUI's input folder, or anywhere in its output folder. Other files are "
                    "refused by name.",
                )
            ],
            outputs=[io.Latent.Output("latent", display_name="LATENT", tooltip="Image and depth as one nested latent.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file) -> str | float:
        return math.nan if file is None else hash_joint_latent(file)  # None: it comes through a link; NaN: read anew in every run

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_joint_latent(file))
