"""Loading the weights of each system."""

from __future__ import annotations

import hashlib

from comfy_api.latest import io

from .host.intrinsic_ldm.tiny_diffusion import load_tiny_diffusion
from .host.modality_forcing.klein_parts import find_parts
from .host.modality_forcing.loading import TINY, find_fault, list_models, load_modality_forcing


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


class LoadTinyDiffusion(io.ComfyNode):
    """A base model for trying the intrinsics."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadTinyDiffusion",
            display_name="Load Tiny Diffusion",
            category="SpatialWeave/Loaders",
            description="Loads the tiny latent diffusion model that ships with the pack: SD2.1's kind of UNet, VAE and text encoder, for "
            "pictures of 128 pixels with coloured solids. It stands where Load Checkpoint stands in a graph of SD2.1.",
            search_aliases=["i-ldm", "tiny checkpoint", "test model", "sd21", "no download"],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="For a KSampler, or Intrinsic Co-Generation."),
                io.Clip.Output("clip", display_name="CLIP", tooltip="Knows the words of the tiny world; others are named in the log."),
                io.Vae.Output("vae", display_name="VAE", tooltip="For the image; Load Intrinsic VAE has the one for the maps."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_tiny_diffusion())
