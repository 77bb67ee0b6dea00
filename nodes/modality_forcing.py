"""Joint sampling of an image and its depth; the sampler itself is core's."""

from __future__ import annotations

from comfy_api.latest import io

from .host.modality_forcing.guidance import with_depth_guidance
from .host.modality_forcing.joint_latent import decode_joint_latent, empty_joint_latent, explain_size
from .host.modality_forcing.joint_model import with_order
from .host.shared.notes import tell
from .sockets import View


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


class ModalityOrder(io.ComfyNode):
    """log2_alpha of the paper, as a model patch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ModalityOrder",
            display_name="Modality Order",
            category="SpatialWeave/Modality Forcing",
            description="Which comes first while sampling, the image or its depth. Works with core's samplers and schedulers.",
            search_aliases=["log2_alpha", "depth first", "image first", "schedule", "rgbd"],
            inputs=[
                io.Model.Input("model", tooltip="A joint model, from Load Modality Forcing."),
                io.Float.Input(
                    "log2_alpha", default=5.0, min=-14.0, max=8.0, step=0.01, round=0.01,
                    tooltip="The odds of the depth's noise are 2 to this power times the image's. 0: both resolve together. Above 0: the "
                    "image first, the depth reads it (5 in the paper). Below 0: the depth first, the image follows it.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="MODEL", tooltip="The same model with this order.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, log2_alpha) -> io.NodeOutput:
        return io.NodeOutput(with_order(model, log2_alpha))


class GuidancePerStream(io.ComfyNode):
    """Classifier-free guidance of the depth apart from the image's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_GuidancePerStream",
            display_name="Guidance per Stream",
            category="SpatialWeave/Modality Forcing",
            description="Guides the depth by a strength of its own; the cfg of the KSampler then guides the image alone.",
            search_aliases=["cfg per modality", "dual cfg", "depth cfg", "guidance scale", "rgbd"],
            inputs=[
                io.Model.Input("model", tooltip="A joint model, from Load Modality Forcing."),
                io.Float.Input(
                    "depth_cfg", default=1.0, min=0.0, max=30.0, step=0.01, round=0.01,
                    tooltip="How strongly the prompt leads the depth. 1: no guidance. Above 1: away from the negative prompt. The cfg of "
                    "the sampler does the same for the image.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="MODEL", tooltip="The same model with its depth guided so.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, depth_cfg) -> io.NodeOutput:
        return io.NodeOutput(with_depth_guidance(model, depth_cfg))


class DecodeJointLatent(io.ComfyNode):
    """The end of a joint generation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_DecodeJointLatent",
            display_name="Decode Joint Latent",
            category="SpatialWeave/Modality Forcing",
            description="Takes a joint latent apart: the picture, through the VAE, and its depth as a VIEW that knows unit and direction.",
            search_aliases=["rgbd", "vae decode", "depth", "split latent", "separate"],
            inputs=[
                io.Latent.Input("samples", tooltip="A joint latent, from a KSampler with a joint model."),
                io.Vae.Input("vae", tooltip="The VAE of the image stream: the tiny model's own, or flux2-vae for models on FLUX.2."),
            ],
            outputs=[
                io.Image.Output("image", display_name="IMAGE", tooltip="The picture."),
                View.Output("view", display_name="VIEW", tooltip="Its depth: relative units of about unit mean, larger = farther."),
            ],
        )

    @classmethod
    def execute(cls, samples, vae) -> io.NodeOutput:
        return io.NodeOutput(*decode_joint_latent(samples, vae))
