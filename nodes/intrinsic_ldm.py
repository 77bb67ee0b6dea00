"""I-LDM: an image sampled together with its intrinsic maps; ComfyUI's samplers run it."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.intrinsic_ldm.layers import READINGS
from .host.intrinsic_ldm.graph import check_samplers
from .host.intrinsic_ldm.model import (
    find_missing_lora,
    join_intrinsic,
    list_loras,
    plot,
    split_intrinsic,
    with_intrinsics,
)
from .host.intrinsic_ldm.tiny_diffusion import load_tiny_diffusion
from .host.shared.picture_previews import preview_images

CATEGORY = "SpatialWeave/Intrinsics"
_TAU = (
    "DDPM timestep {what}, from 0 (clean) to 1000 (noise); noise levels of other samplers are matched by "
    "signal-to-noise ratio."
)


def schedule_options() -> list[io.DynamicCombo.Option]:
    """The weight schedules, each with its own widgets."""
    peak = _TAU.format(what="at which the weight peaks")
    onset = _TAU.format(what="at and below which the weight is 1")
    return [
        io.DynamicCombo.Option("gaussian", [
            io.Float.Input(
                "alpha", default=1.0, min=0.0, max=100.0, step=0.001,
                tooltip="Peak value of the weight.",
            ),
            io.Float.Input("tau", default=800.0, min=0.0, max=1000.0, step=0.01, tooltip=peak),
            io.Float.Input(
                "sigma", default=100.0, min=1.0, max=10000.0, step=0.01,
                tooltip="Width: at tau +- sigma the weight is alpha / e.",
            ),
        ]),
        io.DynamicCombo.Option("drop", [
            io.String.Input(
                "layers", default="",
                tooltip='Layers with weight 1, like "3-7" or "1, 4-6"; empty: the middle layers.',
            ),
            io.Combo.Input(
                "layer_reading", options=list(READINGS),
                tooltip="How layers are numbered. stages: resolution stages of a UNet, from 1 (SD2.1 has "
                "nine; the paper's 3-7 are around the middle). blocks: transformer blocks in the order "
                "in which they run, from 0.",
            ),
            io.Float.Input("tau", default=900.0, min=0.0, max=1000.0, step=0.01, tooltip=onset),
        ]),
        io.DynamicCombo.Option("constant", [
            io.Float.Input(
                "weight", default=1.0, min=0.0, max=100.0, step=0.001,
                tooltip="The weight in every layer and step; the LoRA was trained at 1.",
            ),
        ]),
        io.DynamicCombo.Option("curve", [
            io.String.Input(
                "points", default="1000: 0, 900: 0.4, 800: 1, 700: 0.4, 550: 0", multiline=True,
                tooltip='Points "t: w" with t as DDPM timestep, linearly interpolated.',
            ),
        ]),
        io.DynamicCombo.Option("off", []),
    ]  # fmt: skip


class LoadTinyDiffusion(io.ComfyNode):
    """A base model for trying co-generation without a download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadTinyDiffusion",
            display_name="Load Tiny Diffusion",
            category="SpatialWeave/Loaders",
            description="Loads the tiny latent diffusion model that ships with the pack: a UNet and VAE of "
            "SD2.1's kind and a text encoder, for images of 128 x 128 pixels with colored solids. It takes "
            "the place of Load Checkpoint in an SD2.1 workflow.",
            search_aliases=["i-ldm", "tiny checkpoint", "test model", "sd21", "no download"],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL", tooltip="For a KSampler, or Intrinsic Co-Generation.",
                ),
                io.Clip.Output(
                    "clip", display_name="CLIP",
                    tooltip="Its vocabulary is that of the training captions, in English or Chinese; other "
                    "words are named under the node that encodes them.",
                ),
                io.Vae.Output(
                    "vae", display_name="VAE",
                    tooltip="For the image; the VAE for the maps comes from Load Intrinsic VAE.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_tiny_diffusion())


class IntrinsicCoGeneration(io.ComfyNode):
    """The paper's co-generation as a model patch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_IntrinsicCoGeneration",
            display_name="Intrinsic Co-Generation",
            category=CATEGORY,
            description="Lets SD1.5, SD2.1, SDXL or PixArt sample an image together with its depth, normals, "
            "segmentation and line art; image and maps attend to each other in every self-attention layer. "
            "Use ComfyUI's KSampler with a latent from Join Intrinsic Latent.",
            search_aliases=[
                "i-ldm", "intrinsics", "normals", "segmentation", "line art", "depth",
                "cross domain attention",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD1.5, SD2.1, SDXL or PixArt, with LoRAs, ControlNets and IPAdapters for the "
                    "image.",
                ),
                io.Combo.Input(
                    "lora_name", options=list_loras(),
                    tooltip="The intrinsic LoRA trained for this base model; it acts on the maps only.",
                ),
                io.DynamicCombo.Input(
                    "schedule", options=schedule_options(),
                    tooltip="How strongly the image attends to its maps, by step and layer. gaussian changes "
                    "the composition, drop keeps it and cleans up detail; off leaves the image as the base "
                    "model generates it.",
                ),
                io.Float.Input(
                    "cut_below", default=0.001, min=0.0, max=1.0, step=0.0001, round=0.0001,
                    tooltip="Weights below this count as 0. Where all are 0, the image is sampled exactly as "
                    "by the base model alone.",
                ),
                io.Boolean.Input(
                    "keep_maps", default=True,
                    tooltip="Off: once the weight stays 0 to the end, the maps are no longer computed, which "
                    "saves up to half of each step and does not change the image; the maps keep their last "
                    "prediction.",
                ),
                io.Boolean.Input(
                    "share_image_loras", default=False,
                    tooltip="On: the model's LoRAs act on the maps as well. Off: the maps use the base model "
                    "and their own LoRA only.",
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True,
                    tooltip="Only for the plot: the sigmas of the run, from Basic Scheduler.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL",
                    tooltip="The model, for joint latents of an image and its maps.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora_name, schedule=None) -> bool | str:
        # ComfyUI hands over a dynamic combo whether or not it is asked for
        return find_missing_lora(lora_name) or True

    @classmethod
    def execute(
        cls, model, lora_name, schedule, cut_below, keep_maps, share_image_loras, sigmas=None
    ) -> io.NodeOutput:
        switches = {"cut_below": cut_below, "keep_maps": keep_maps, "share_image_loras": share_image_loras}
        node_id = getattr(cls.hidden, "unique_id", None)
        coupled, settings = with_intrinsics(model, lora_name, schedule, **switches, node_id=node_id)
        return io.NodeOutput(coupled, ui=preview_images(plot(settings, model, sigmas), cls))


class JoinIntrinsicLatent(io.ComfyNode):
    """The joint latent that co-generation samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_JoinIntrinsicLatent",
            display_name="Join Intrinsic Latent",
            category=CATEGORY,
            description="Joins an image latent and the latent of its intrinsic maps into one joint latent, "
            "with the masks of both.",
            search_aliases=["nested latent", "joint latent", "intrinsic latent", "empty latent"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model from Intrinsic Co-Generation that will sample the latent.",
                ),
                io.Latent.Input("image_latent", tooltip="From Empty Latent Image or VAE Encode."),
                io.Latent.Input(
                    "maps_latent", optional=True,
                    tooltip="The maps' latent. Not connected: the maps are sampled from noise.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT", tooltip="Both as one nested latent, for a KSampler.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, image_latent, maps_latent=None) -> io.NodeOutput:
        check_samplers(cls.hidden)
        return io.NodeOutput(join_intrinsic(model, image_latent, maps_latent))


class SplitIntrinsicLatent(io.ComfyNode):
    """The reverse of Join Intrinsic Latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SplitIntrinsicLatent",
            display_name="Split Intrinsic Latent",
            category=CATEGORY,
            description="Splits a sampled joint latent: the image's latent for VAE Decode, and the latent of "
            "its intrinsic maps.",
            search_aliases=["separate", "unbind", "nested latent", "joint latent", "intrinsic latent"],
            inputs=[
                io.Latent.Input(
                    "samples", tooltip="The result of a KSampler on a latent from Join Intrinsic Latent.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "image_latent", display_name="image_latent",
                    tooltip="The image's latent, for the base model's VAE.",
                ),
                io.Latent.Output(
                    "maps_latent", display_name="maps_latent",
                    tooltip="The maps' latent, for Decode Intrinsics.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        return io.NodeOutput(*split_intrinsic(samples))
