"""Joint latents that start from a picture, a depth, or parts of them."""

from __future__ import annotations

from comfy_api.latest import io

from .host.modality_forcing.given_streams import depth_to_image_latent, image_to_depth_latent, masked_joint_latent, refine_depth_latent
from .host.shared.notes import tell
from .sockets import View


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
