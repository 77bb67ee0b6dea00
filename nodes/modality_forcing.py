"""Joint sampling of an image and its depth; the sampler itself is core's."""

from __future__ import annotations

import hashlib

from comfy_api.latest import io

from .host.modality_forcing.guidance import with_depth_guidance
from .host.modality_forcing.joint_latent import decode_joint_latent
from .host.modality_forcing.joint_model import with_order
from .host.modality_forcing.klein_parts import find_parts
from .host.modality_forcing.loading import TINY, find_fault, list_models, load_modality_forcing
from .sockets import View


class LoadModalityForcing(io.ComfyNode):
    """The model of joint generation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadModalityForcing",
            display_name="Load Modality Forcing",
            category="SpatialWeave/Loaders",
            description="Loads a joint model of image and depth with its text encoder and VAE: the tiny one that ships with the pack, or a "
            "Modality Forcing file from models/diffusion_models.",
            search_aliases=["joint image depth", "rgbd", "depth model", "flux_rgbd", "modality forcing", "text to depth"],
            inputs=[
                io.Combo.Input(
                    "model_name", options=list_models(), default=TINY,
                    tooltip="The tiny model needs no download. A file is recognised by its contents; any other model is refused by name.",
                ),
                io.Boolean.Input(
                    "with_clip_and_vae", default=True, optional=True, advanced=True,
                    tooltip="Off: the model alone, for graphs with a Load CLIP and a Load VAE of their own, which read the same files "
                    "once more.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="A core model of a nested latent: wire it to a KSampler."),
                io.Clip.Output(
                    "clip", display_name="CLIP",
                    tooltip="The tiny model's text encoder; for a file the Qwen3 encoder of its base, if models/text_encoders has it.",
                ),
                io.Vae.Output(
                    "vae", display_name="VAE", tooltip="The tiny model's image codec; for a file flux2-vae, if models/vae has it.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, model_name) -> bool | str:
        return True if model_name is None else find_fault(model_name) or True

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        """An encoder or VAE fetched since the last run counts. A digest, as core writes it into the files that users share."""
        return hashlib.blake2b("\n".join(find_parts()).encode(), digest_size=8).hexdigest()

    @classmethod
    def execute(cls, model_name, with_clip_and_vae=True) -> io.NodeOutput:
        return io.NodeOutput(*load_modality_forcing(model_name, with_clip_and_vae))


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
