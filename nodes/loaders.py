"""Loading the weights of each system."""

from __future__ import annotations

from comfy_api.latest import io

from .host.loading import TINY, find_fault, list_models, load_modality_forcing


class LoadModalityForcing(io.ComfyNode):
    """The model of joint generation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadModalityForcing",
            display_name="Load Modality Forcing",
            category="SpatialWeave/Loaders",
            description="Loads a joint model of image and depth: the tiny one that ships with the pack, with its text encoder and VAE, "
            "or a Modality Forcing file from models/diffusion_models.",
            search_aliases=["joint image depth", "rgbd", "depth model", "flux_rgbd", "modality forcing", "text to depth"],
            inputs=[
                io.Combo.Input(
                    "model_name", options=list_models(), default=TINY,
                    tooltip="The tiny model needs no download. A file is recognised by its contents; any other model is refused by name.",
                )
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="A core model of a nested latent: wire it to a KSampler."),
                io.Clip.Output("clip", display_name="CLIP", tooltip="The tiny model's text encoder; for a file use Load CLIP, type flux2."),
                io.Vae.Output("vae", display_name="VAE", tooltip="The tiny model's image codec; for a file use Load VAE, flux2-vae."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, model_name) -> bool | str:
        return True if model_name is None else find_fault(model_name) or True

    @classmethod
    def execute(cls, model_name) -> io.NodeOutput:
        return io.NodeOutput(*load_modality_forcing(model_name))
