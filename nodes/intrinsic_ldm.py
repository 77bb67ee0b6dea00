"""An image sampled together with its intrinsic maps (I-LDM); the sampler itself is core's."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models.intrinsic_ldm.layers import READINGS
from .host.intrinsic_ldm.graph import check_samplers
from .host.intrinsic_ldm.model import join_intrinsic, list_loras, plot, split_intrinsic, with_intrinsics
from .host.intrinsic_ldm.tiny_diffusion import load_tiny_diffusion

CATEGORY = "SpatialWeave/Intrinsics"
_TAU = "DDPM time from {what}, 0 clean to 1000 noise; other samplers' noise levels are compared at equal signal-to-noise ratio."


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


class IntrinsicCoGeneration(io.ComfyNode):
    """The paper's sampling, as a model patch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        falls, rises = (_TAU.format(what=what) for what in ("which the weight falls off", "which on the weight is 1"))
        schedules = [
            io.DynamicCombo.Option("gaussian", [
                io.Float.Input("alpha", default=1.0, min=0.0, max=100.0, step=0.001, tooltip="The weight at its highest."),
                io.Float.Input("tau", default=800.0, min=0.0, max=1000.0, step=0.01, tooltip=falls),
                io.Float.Input("sigma", default=100.0, min=1.0, max=10000.0, step=0.01, tooltip="How fast: at tau +- sigma it is 1/e."),
            ]),
            io.DynamicCombo.Option("drop", [
                io.String.Input("layers", default="", tooltip='Layers with weight 1, like "3-7" or "1, 4-6"; empty: those in the middle.'),
                io.Combo.Input(
                    "layer_reading", options=list(READINGS),
                    tooltip="What a layer's number counts. stages: a UNet's resolutions from 1 (SD2.1 has nine, the paper's 3-7 are around "
                    "the middle). blocks: transformer blocks in the order in which they run, from 0.",
                ),
                io.Float.Input("tau", default=900.0, min=0.0, max=1000.0, step=0.01, tooltip=rises),
            ]),
            io.DynamicCombo.Option("constant", [
                io.Float.Input("weight", default=1.0, min=0.0, max=100.0, step=0.001, tooltip="1 in every layer and step: as trained."),
            ]),
            io.DynamicCombo.Option("curve", [
                io.String.Input(
                    "points", default="1000: 0, 900: 0.4, 800: 1, 700: 0.4, 550: 0", multiline=True,
                    tooltip='Points "t: w", t DDPM time, straight lines between them.',
                ),
            ]),
            io.DynamicCombo.Option("off", []),
        ]  # fmt: skip
        return io.Schema(
            node_id="SpatialWeave_IntrinsicCoGeneration",
            display_name="Intrinsic Co-Generation",
            category=CATEGORY,
            description="Lets SD1.5, SD2.1, SDXL or PixArt sample an image together with its depth, normals, segmentation and line art: "
            "both look at each other in every self-attention. Use core's KSampler with a latent of Join Intrinsic Latent.",
            search_aliases=["i-ldm", "intrinsics", "normals", "segmentation", "line art", "depth", "cross domain attention"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2.1, SDXL or PixArt, with the image's own LoRAs, ControlNet, IPAdapter."),
                io.Combo.Input("lora_name", options=list_loras(), tooltip="The intrinsic LoRA for this base; it acts on the maps only."),
                io.DynamicCombo.Input(
                    "schedule", options=schedules,
                    tooltip="How much the image looks at its maps, by step and layer. gaussian changes the composition, drop keeps it and "
                    "cleans detail; off leaves the image as the base model makes it.",
                ),
                io.Float.Input(
                    "cut_below", default=0.001, min=0.0, max=1.0, step=0.0001, round=0.0001,
                    tooltip="Weights below this count as 0; there the image is sampled exactly as by the base model alone.",
                ),
                io.Boolean.Input(
                    "keep_maps", default=True,
                    tooltip="Off: when the weight stays 0 to the end, the maps' pass stops, which spares up to half of each step and does "
                    "not change the image; the maps stay as they were last predicted.",
                ),
                io.Boolean.Input(
                    "share_image_loras", default=False,
                    tooltip="On: LoRAs of the model act on the maps too. Off: the maps see the base model and their own LoRA only.",
                ),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Only for the plot: the steps of the run, from Basic Scheduler."),
            ],
            outputs=[io.Model.Output("model", display_name="MODEL", tooltip="The model, for joint latents.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, lora_name, schedule, cut_below, keep_maps, share_image_loras, sigmas=None) -> io.NodeOutput:
        switches = {"cut_below": cut_below, "keep_maps": keep_maps, "share_image_loras": share_image_loras}
        coupled, settings = with_intrinsics(model, lora_name, schedule, **switches, node_id=getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(coupled, ui=ui.PreviewImage(plot(settings, model, sigmas), cls=cls))


class JoinIntrinsicLatent(io.ComfyNode):
    """Where a co-generation starts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_JoinIntrinsicLatent",
            display_name="Join Intrinsic Latent",
            category=CATEGORY,
            description="Puts an image latent and the latent of its intrinsic maps into one joint latent, with the masks of both.",
            search_aliases=["nested latent", "joint latent", "intrinsic latent", "empty latent"],
            inputs=[
                io.Model.Input("model", tooltip="The model of Intrinsic Co-Generation that will sample it."),
                io.Latent.Input("image_latent", tooltip="From Empty Latent Image or VAE Encode."),
                io.Latent.Input("maps_latent", optional=True, tooltip="The maps' latent; empty: they are sampled from nothing."),
            ],
            outputs=[io.Latent.Output("latent", display_name="LATENT", tooltip="Both as one nested latent, for a KSampler.")],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

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
            description="Takes a sampled joint latent apart: the image's latent for VAE Decode, and the latent of its intrinsic maps.",
            search_aliases=["separate", "unbind", "nested latent", "joint latent", "intrinsic latent"],
            inputs=[io.Latent.Input("samples", tooltip="What a KSampler made of a latent of Join Intrinsic Latent.")],
            outputs=[
                io.Latent.Output("image_latent", display_name="image_latent", tooltip="The image's, for the base model's VAE."),
                io.Latent.Output("maps_latent", display_name="maps_latent", tooltip="The maps', for Decode Intrinsics."),
            ],
        )

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        return io.NodeOutput(*split_intrinsic(samples))
