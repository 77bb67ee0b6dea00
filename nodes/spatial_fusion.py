"""SpatialFusion: a depth that steers the image while it is generated, by an adapter."""

from __future__ import annotations

from comfy_api.latest import io

from .host.shared.notes import tell
from .host.shared.shipped import TINY
from .host.spatial_fusion.loading import find_adapter_fault, list_adapters, load_adapter_file
from .host.spatial_fusion.patch import with_depth
from .sockets import DepthAdapterFile, View

CATEGORY = "SpatialWeave/SpatialFusion"


class LoadDepthAdapter(io.ComfyNode):
    """A depth adapter file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadDepthAdapter",
            display_name="Load Depth Adapter",
            category="SpatialWeave/Loaders",
            description="Loads a depth adapter, which was trained for the latents of one model: the tiny one "
            "that ships with the pack, or a file of models/model_patches. Shows what it is for.",
            search_aliases=["spatialfusion", "depth control", "depth conditioning"],
            inputs=[
                io.Combo.Input(
                    "adapter_name", options=list_adapters(), default=TINY,
                    tooltip="The tiny adapter needs no download and is for Load Tiny Diffusion. A file of "
                    "models/model_patches is recognized by its metadata; a ControlNet or a LoRA is refused "
                    "by name.",
                ),
            ],
            outputs=[
                DepthAdapterFile.Output(
                    "adapter", display_name="DEPTH_ADAPTER", tooltip="The adapter, for Depth Adapter.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, adapter_name) -> bool | str:
        return True if adapter_name is None else find_adapter_fault(adapter_name) or True

    @classmethod
    def execute(cls, adapter_name) -> io.NodeOutput:
        adapter, what = load_adapter_file(adapter_name)
        tell([what], cls.hidden)
        return io.NodeOutput(adapter)


class DepthAdapter(io.ComfyNode):
    """A MODEL that follows a depth map."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_DepthAdapter",
            display_name="Depth Adapter",
            category=CATEGORY,
            description="Makes a MODEL follow the depth of a VIEW: the adapter turns it into a latent that "
            "is added to the noisy latent where the network reads it, in every step between start and end. "
            "Works with any sampler, CFG, LoRA and ControlNet; two of these nodes add up.",
            search_aliases=["spatialfusion", "depth control", "depth conditioning", "controlnet", "apply"],
            inputs=[
                io.Model.Input("model", tooltip="A model with the latents that the adapter was trained for."),
                DepthAdapterFile.Input("adapter", tooltip="The adapter, from Load Depth Adapter."),
                View.Input(
                    "view",
                    tooltip="The depth of the image to be made: one for all images, or one for each. Only "
                    "its shape counts, not its unit. Where it is invalid the adapter adds nothing, or what "
                    "it learned for missing depth.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.01,
                    tooltip="Factor on what is added. 0: exactly the model without the adapter.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Part of the sampling from which on the depth is added, as in Apply ControlNet.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Part of the sampling until which the depth is added.",
                ),
                io.Combo.Input(
                    "framing", options=["refuse", "crop", "pad", "stretch"], default="refuse",
                    tooltip="What happens to a VIEW of another aspect than the latent's. refuse: an error "
                    "with both sizes. crop: its middle is used. pad: the rest counts as missing depth. "
                    "stretch: it is distorted.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Where the depth counts: white fully, black not at all. It is scaled to the "
                    "latent; one for all images, or one for each.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "patched", display_name="MODEL",
                    tooltip="The model that follows the depth. The input model stays as it is.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, adapter, view, strength, start_percent, end_percent, framing, mask=None
    ) -> io.NodeOutput:
        hidden = cls.hidden
        patched = with_depth(
            model, adapter, view, strength=strength, start=start_percent, end=end_percent, framing=framing,
            mask=mask, say=lambda notes: tell(notes, hidden),
        )  # fmt: skip
        return io.NodeOutput(patched)
