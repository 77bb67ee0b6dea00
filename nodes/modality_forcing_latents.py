"""Joint latents of Modality Forcing: created empty or from fixed streams; split, joined, saved and loaded."""

from __future__ import annotations

import math

from comfy_api.latest import io

from ..models.modality_forcing.inputs import OWN_SIZE, SAMPLING_SIZES
from .host.modality_forcing.given_streams import (
    depth_to_image_latent,
    image_to_depth_latent,
    masked_joint_latent,
    refine_depth_latent,
)
from .host.modality_forcing.graph import check_joint_samplers
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
from .sockets import View, notes_output, transparent_output

CATEGORY = "SpatialWeave/Latent"
ENLARGE = "Sample at that size and enlarge the image, then the depth with Upscale Depth."


def sample_at_input() -> io.Combo.Input:
    """The size at which a joint model samples a given stream."""
    return io.Combo.Input(
        "sample_at", options=list(SAMPLING_SIZES), default=OWN_SIZE, optional=True,
        tooltip="trained size: an input whose longer side is above what the model was trained at (128 pixels "
        "for the tiny model, 512 for the published one) is scaled down to it. Decode Joint Latent brings the "
        "depth of an image back to the image's size, guided by the image.",
    )  # fmt: skip


class EmptyJointLatent(io.ComfyNode):
    """An empty latent of both streams."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_EmptyJointLatent",
            display_name="Empty Joint Latent",
            category="SpatialWeave/Modality Forcing",
            description="An empty latent for an image and its depth map. Connect it to a KSampler with a "
            "joint model.",
            search_aliases=["rgbd", "depth", "empty latent", "image and depth", "nested latent"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The joint model that will sample the latent; it determines the number of "
                    "channels and the patch size.",
                ),
                io.Int.Input(
                    "width", default=128, min=16, max=4096, step=1,
                    tooltip="Width in pixels. Padded internally to a multiple of 16; the decoded image has "
                    "the width set here.",
                ),
                io.Int.Input(
                    "height", default=128, min=16, max=4096, step=1,
                    tooltip="Height in pixels. Padded internally to a multiple of 16; the decoded image has "
                    "the height set here.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=4096,
                    tooltip="How many pairs of image and depth map to generate.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT", tooltip="Image and depth as one nested latent.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, width, height, batch_size) -> io.NodeOutput:
        check_joint_samplers(cls.hidden)
        tell(explain_size(model, (height, width), ENLARGE), cls.hidden)
        return io.NodeOutput(empty_joint_latent(model, width, height, batch_size))


class ImageToDepthLatent(io.ComfyNode):
    """Depth estimation: the image is fixed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ImageToDepthLatent",
            display_name="Image to Depth Latent",
            category="SpatialWeave/Modality Forcing",
            description="A joint latent with a fixed image: a KSampler with a joint model then generates its "
            "depth. The image's latent is kept bit for bit.",
            search_aliases=[
                "depth estimation", "depth from image", "image to depth", "image_to_depth", "monocular depth",
                "rgbd",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The joint model that will sample the latent."),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE of the image stream: the tiny model's own, or flux2-vae for models "
                    "based on FLUX.2.",
                ),
                io.Image.Input(
                    "image",
                    tooltip="The image, of any size. The colors of an RGBA image are used as they are.",
                ),
                sample_at_input(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT", tooltip="The image is fixed, its depth will be sampled.",
                ),
                transparent_output("the image", display_name="MASK"),
                notes_output(),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, image, sample_at=OWN_SIZE) -> io.NodeOutput:
        check_joint_samplers(cls.hidden)
        given = image_to_depth_latent(model, vae, image, sample_at)
        return io.NodeOutput(given.latent, given.transparent, tell(given.notes, cls.hidden))


class DepthToImageLatent(io.ComfyNode):
    """Generation from depth: the depth is fixed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_DepthToImageLatent",
            display_name="Depth to Image Latent",
            category="SpatialWeave/Modality Forcing",
            description="A joint latent with a fixed depth: a KSampler with a joint model then generates an "
            "image that matches it. The depth is kept bit for bit.",
            search_aliases=[
                "depth controlnet", "image from depth", "depth to image", "depth_to_image", "depth guided",
                "rgbd",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The joint model that will sample the latent."),
                View.Input(
                    "view",
                    tooltip="The depth map, of any size and unit; its scale does not matter. Missing pixels "
                    "stay missing and are left to the model; to have them filled in, use Masked Joint "
                    "Latent.",
                ),
                sample_at_input(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT", tooltip="The depth is fixed, the image will be sampled.",
                ),
                notes_output(),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, view, sample_at=OWN_SIZE) -> io.NodeOutput:
        check_joint_samplers(cls.hidden)
        given = depth_to_image_latent(model, view, sample_at)
        return io.NodeOutput(given.latent, tell(given.notes, cls.hidden))


class MaskedJointLatent(io.ComfyNode):
    """Inpainting of either stream, and completion of sparse depth maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_MaskedJointLatent",
            display_name="Masked Joint Latent",
            category="SpatialWeave/Modality Forcing",
            description="A joint latent with fixed regions: what is connected and not masked is kept, the "
            "rest is sampled. For inpainting an image together with its depth, and for completing partial or "
            "sparse depth maps.",
            search_aliases=[
                "inpaint", "depth completion", "sparse depth", "partial depth", "rgbd inpaint", "noise mask",
                "fill holes",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The joint model that will sample the latent."),
                io.Vae.Input(
                    "vae", optional=True,
                    tooltip="Required with an image: the tiny model's own, or flux2-vae for models based on "
                    "FLUX.2.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The image. Not connected: the whole image is sampled.",
                ),
                io.Mask.Input(
                    "image_mask", optional=True,
                    tooltip="White is sampled, black is kept, as in ComfyUI's inpainting. Not connected: the "
                    "whole image is kept.",
                ),
                View.Input(
                    "view", optional=True,
                    tooltip="The depth map, of the image's size; missing pixels are sampled. Not connected: "
                    "the whole depth is sampled.",
                ),
                io.Mask.Input(
                    "depth_mask", optional=True,
                    tooltip="White is sampled, black is kept. Not connected: every valid pixel of the VIEW "
                    "is kept.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT", tooltip="Both streams, each with its own noise mask.",
                ),
                transparent_output("the image", display_name="MASK"),
                notes_output(),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, vae=None, image=None, image_mask=None, view=None, depth_mask=None
    ) -> io.NodeOutput:
        check_joint_samplers(cls.hidden)
        given = masked_joint_latent(model, vae, image, image_mask, view=view, depth_mask=depth_mask)
        return io.NodeOutput(given.latent, given.transparent, tell(given.notes, cls.hidden))


class RefineDepthLatent(io.ComfyNode):
    """The input of the paper's second, refining run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_RefineDepthLatent",
            display_name="Refine Depth Latent",
            category="SpatialWeave/Modality Forcing",
            description="Takes the result of a joint sampling run and fixes its image: a second KSampler, at "
            "cfg 1, then samples the depth again from the finished image. The image's latent is kept bit for "
            "bit.",
            search_aliases=["refine depth", "second pass", "sharpen depth", "hires depth", "rgbd"],
            inputs=[
                io.Latent.Input(
                    "samples", tooltip="A joint latent, from the KSampler of the first run.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT",
                    tooltip="The image is fixed, its depth will be sampled. With denoise below 1, the second "
                    "run starts from the first depth.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        check_joint_samplers(cls.hidden)
        return io.NodeOutput(refine_depth_latent(samples))


class SplitJointLatent(io.ComfyNode):
    """A joint latent as two plain ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SplitJointLatent",
            display_name="Split Joint Latent",
            category=CATEGORY,
            description="Splits a joint latent into two plain latents, image and depth, each with its own "
            "noise mask, for ComfyUI's latent nodes.",
            search_aliases=["separate", "unbind", "nested latent", "image latent", "depth latent"],
            inputs=[io.Latent.Input("samples", tooltip="A joint latent.")],
            outputs=[
                io.Latent.Output(
                    "image_latent", display_name="image_latent",
                    tooltip="The image's latent, for any latent node.",
                ),
                io.Latent.Output(
                    "depth_latent", display_name="depth_latent",
                    tooltip="The depth's latent: one channel per pixel, in the network's normalized values.",
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
            description="Joins an image latent and a depth latent into one joint latent, with the masks of "
            "both. A batch of 1 is repeated for the other's batch.",
            search_aliases=["concat", "combine", "merge latents", "nested latent", "concat joint latent"],
            inputs=[
                io.Latent.Input(
                    "image_latent", tooltip="The image's latent, from Split Joint Latent or from VAE Encode.",
                ),
                io.Latent.Input("depth_latent", tooltip="The depth's latent, from Split Joint Latent."),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT", tooltip="Image and depth as one nested latent.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, image_latent, depth_latent) -> io.NodeOutput:
        check_joint_samplers(cls.hidden)
        return io.NodeOutput(join_latents(image_latent, depth_latent))


class SaveJointLatent(io.ComfyNode):
    """Save Latent for the two streams of a joint latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SaveJointLatent",
            display_name="Save Joint Latent",
            category=CATEGORY,
            description="Saves a joint latent, with its masks and its size before padding, as safetensors in "
            "ComfyUI's output folder. ComfyUI's Save Latent cannot save a nested latent.",
            search_aliases=["export latent", "save latent", "store", "nested latent"],
            is_output_node=True,
            inputs=[
                io.Latent.Input("samples", tooltip="A joint latent."),
                io.String.Input(
                    "filename_prefix", default="latents/joint",
                    tooltip="File name in the output folder; subfolders are allowed, and a counter is added.",
                ),
            ],
            outputs=[],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, filename_prefix) -> io.NodeOutput:
        hidden = cls.hidden
        saved = save_joint_latent(samples, filename_prefix, hidden.prompt, hidden.extra_pnginfo)
        return io.NodeOutput(ui=saved)


class LoadJointLatent(io.ComfyNode):
    """The reverse of Save Joint Latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadJointLatent",
            display_name="Load Joint Latent",
            category=CATEGORY,
            description="Loads a joint latent that Save Joint Latent saved, bit for bit.",
            search_aliases=["import latent", "open latent", "load latent", "nested latent"],
            inputs=[
                io.Combo.Input(
                    "file", options=list_joint_latents(),
                    tooltip="A .joint.safetensors file in ComfyUI's input folder, or anywhere in its output "
                    "folder. Any other file is refused with an error that says what it is.",
                )
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT", tooltip="Image and depth as one nested latent.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file) -> str | float:
        if file is None:  # it comes through a link
            return math.nan  # equal to nothing: read again in every run
        return hash_joint_latent(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        check_joint_samplers(cls.hidden)
        return io.NodeOutput(load_joint_latent(file))
