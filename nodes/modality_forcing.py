"""Modality Forcing: the joint model of image and depth, its patches and decoding."""

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
    """The joint model with its text encoder and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadModalityForcing",
            display_name="Load Modality Forcing",
            category="SpatialWeave/Loaders",
            description="Loads a joint model of image and depth with its text encoder and VAE: the tiny "
            "model that ships with the pack, or a Modality Forcing file from models/diffusion_models.",
            search_aliases=[
                "joint image depth", "rgbd", "depth model", "flux_rgbd", "modality forcing", "text to depth",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name", options=list_models(), default=TINY,
                    tooltip="The tiny model needs no download. A file is recognized by its tensors, whatever "
                    "its name; a file of another model is refused with an error that says what it is.",
                ),
                io.Boolean.Input(
                    "with_clip_and_vae", default=True, optional=True, advanced=True,
                    tooltip="Off: loads the model alone, for workflows with their own Load CLIP and Load "
                    "VAE, which would otherwise read the same files twice.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL",
                    tooltip="A MODEL that samples a nested latent of image and depth: connect it to a "
                    "KSampler.",
                ),
                io.Clip.Output(
                    "clip", display_name="CLIP",
                    tooltip="The tiny model's text encoder; for a file, the Qwen3 text encoder of its base "
                    "model, if models/text_encoders has it.",
                ),
                io.Vae.Output(
                    "vae", display_name="VAE",
                    tooltip="The tiny model's image autoencoder; for a file, flux2-vae, if models/vae has "
                    "it.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, model_name) -> bool | str:
        return True if model_name is None else find_fault(model_name) or True

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        """Changes when a text encoder or VAE file appears. Hashed: ComfyUI writes it into shared files."""
        return hashlib.blake2b("\n".join(find_parts()).encode(), digest_size=8).hexdigest()

    @classmethod
    def execute(cls, model_name, with_clip_and_vae=True) -> io.NodeOutput:
        return io.NodeOutput(*load_modality_forcing(model_name, with_clip_and_vae))


class ModalityOrder(io.ComfyNode):
    """The paper's log2_alpha as a model patch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_ModalityOrder",
            display_name="Modality Order",
            category="SpatialWeave/Modality Forcing",
            description="Sets which is denoised first, the image or its depth. Works with ComfyUI's samplers "
            "and schedulers.",
            search_aliases=["log2_alpha", "depth first", "image first", "schedule", "rgbd"],
            inputs=[
                io.Model.Input("model", tooltip="A joint model, from Load Modality Forcing."),
                io.Float.Input(
                    "log2_alpha", default=5.0, min=-14.0, max=8.0, step=0.01, round=0.01,
                    tooltip="Offset between the two noise schedules: the depth's noise level has "
                    "2^log2_alpha times the image's odds t / (1 - t). 0: both are denoised together. Above "
                    "0: the image first, the depth follows it (5 in the paper). Below 0: the depth first, "
                    "the image follows it.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL", tooltip="The same model with this modality order.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, log2_alpha) -> io.NodeOutput:
        return io.NodeOutput(with_order(model, log2_alpha))


class GuidancePerStream(io.ComfyNode):
    """A separate CFG scale for the depth stream."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_GuidancePerStream",
            display_name="Guidance per Stream",
            category="SpatialWeave/Modality Forcing",
            description="Sets a separate CFG scale for the depth; the KSampler's cfg then applies to the "
            "image alone.",
            search_aliases=["cfg per modality", "dual cfg", "depth cfg", "guidance scale", "rgbd"],
            inputs=[
                io.Model.Input("model", tooltip="A joint model, from Load Modality Forcing."),
                io.Float.Input(
                    "depth_cfg", default=1.0, min=0.0, max=30.0, step=0.01, round=0.01,
                    tooltip="CFG scale of the depth. 1: no guidance. Above 1: towards the prompt and away "
                    "from the negative prompt. The sampler's cfg does the same for the image.",
                ),
                io.Float.Input(
                    "guidance_from", default=1.0, min=0.0, max=1.0, step=0.001, optional=True,
                    advanced=True,
                    tooltip="Noise level from which on guidance acts, on the image and the depth. 1: from "
                    "pure noise, the first step.",
                ),
                io.Float.Input(
                    "guidance_to", default=0.0, min=0.0, max=1.0, step=0.001, optional=True,
                    advanced=True,
                    tooltip="Noise level down to which guidance acts. 0: to the last step. Steps outside the "
                    "two levels follow the prompt alone and take half the time.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL",
                    tooltip="The same model with this CFG scale for its depth.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, depth_cfg, guidance_from=1.0, guidance_to=0.0) -> io.NodeOutput:
        return io.NodeOutput(with_depth_guidance(model, depth_cfg, (guidance_from, guidance_to)))


class DecodeJointLatent(io.ComfyNode):
    """The image and the VIEW of a joint latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_DecodeJointLatent",
            display_name="Decode Joint Latent",
            category="SpatialWeave/Modality Forcing",
            description="Decodes a joint latent: the image with the VAE, and its depth as a VIEW with unit "
            "and direction.",
            search_aliases=["rgbd", "vae decode", "depth", "split latent", "separate"],
            inputs=[
                io.Latent.Input("samples", tooltip="A joint latent, from a KSampler with a joint model."),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE of the image stream: the tiny model's own, or flux2-vae for models "
                    "based on FLUX.2.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="IMAGE", tooltip="The decoded image."),
                View.Output(
                    "view", display_name="VIEW",
                    tooltip="Its depth: relative units with a mean of about 1, larger = farther.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, vae) -> io.NodeOutput:
        return io.NodeOutput(*decode_joint_latent(samples, vae))
