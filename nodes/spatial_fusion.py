"""SpatialFusion: depth inferred before the image exists, and an adapter by which the image follows it."""

from __future__ import annotations

from comfy_api.latest import io

from .host.shared.notes import tell
from .host.shared.shipped import TINY
from .host.spatial_fusion.language import find_language_fault, list_language_files, load_language_clip
from .host.spatial_fusion.loading import find_adapter_fault, list_adapters, load_adapter_file
from .host.spatial_fusion.patch import with_depth
from .host.spatial_fusion.transformer import (
    describe_transformer,
    find_transformer_fault,
    infer_from_prompts,
    list_transformer_files,
    load_transformer_file,
)
from .sockets import DepthAdapterFile, SpatialTransformer, View

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


class LoadSpatialTransformer(io.ComfyNode):
    """A spatial transformer file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadSpatialTransformer",
            display_name="Load Spatial Transformer",
            category="SpatialWeave/Loaders",
            description="Loads a spatial transformer, which infers depth from a prompt beside one language "
            "model, from models/model_patches. Shows which language model it is for.",
            search_aliases=["spatialfusion", "depth from text", "depth from prompt", "text to depth"],
            inputs=[
                io.Combo.Input(
                    "transformer_name", options=list_transformer_files(),
                    tooltip="A file of models/model_patches. It is recognized by its metadata; any other "
                    "file is refused by name.",
                ),
            ],
            outputs=[
                SpatialTransformer.Output(
                    "transformer", display_name="SPATIAL_TRANSFORMER",
                    tooltip="The spatial transformer, for Spatial Depth.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, transformer_name) -> bool | str:
        return True if transformer_name is None else find_transformer_fault(transformer_name) or True

    @classmethod
    def execute(cls, transformer_name) -> io.NodeOutput:
        transformer = load_transformer_file(transformer_name)
        tell([describe_transformer(transformer)], cls.hidden)
        return io.NodeOutput(transformer)


class LoadTinyLanguageModel(io.ComfyNode):
    """The language model of the tiny spatial transformer, as a CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadTinyLanguageModel",
            display_name="Load Tiny Language Model",
            category="SpatialWeave/Loaders",
            description="Loads a tiny language model, which the tiny spatial transformer was trained beside, "
            "as a CLIP: it reads the captions of the procedural world. For trials and tests of Spatial Depth "
            "on any computer.",
            search_aliases=["spatialfusion", "depth from text", "depth from prompt", "tiny clip"],
            inputs=[
                io.Combo.Input(
                    "language_name", options=list_language_files(),
                    tooltip="A file of models/text_encoders. It is recognized by its metadata; any other "
                    "file is refused by name.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    "clip", display_name="CLIP",
                    tooltip="The language model, for Spatial Depth. No diffusion model was trained with it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, language_name) -> bool | str:
        return True if language_name is None else find_language_fault(language_name) or True

    @classmethod
    def execute(cls, language_name) -> io.NodeOutput:
        clip, what = load_language_clip(language_name)
        tell([what], cls.hidden)
        return io.NodeOutput(clip)


class SpatialDepth(io.ComfyNode):
    """A prompt to the depth of its image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SpatialDepth",
            display_name="Spatial Depth",
            category=CATEGORY,
            description="The depth of an image that does not exist yet, inferred from its prompt by a "
            "spatial transformer beside the text encoder's language model; for an edit, from the source "
            "image, too. Depth Adapter makes a model follow it.",
            search_aliases=["spatialfusion", "depth from text", "depth from prompt", "infer depth", "layout"],
            is_input_list=True,
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that the spatial transformer was trained beside, such as "
                    "OmniGen2's Qwen2.5-VL. What it encodes is not changed.",
                ),
                SpatialTransformer.Input(
                    "transformer", tooltip="The spatial transformer, from Load Spatial Transformer.",
                ),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True,
                    tooltip="The image to be made, or the edit, in the words that CLIP Text Encode gets. A "
                    "list of prompts gives one depth map for each.",
                ),
                io.Int.Input(
                    "width", default=1024, min=16, max=16384, step=8,
                    tooltip="Width of the image to be made in pixels. Only the aspect counts; an edit has "
                    "that of its source image.",
                ),
                io.Int.Input(
                    "height", default=1024, min=16, max=16384, step=8,
                    tooltip="Height of the image to be made in pixels. Only the aspect counts; an edit has "
                    "that of its source image.",
                ),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="The source image of an edit: one for all prompts, or one for each.",
                ),
            ],
            outputs=[
                View.Output(
                    "view", display_name="VIEW",
                    tooltip="The inferred depth with its confidence: relative, of the aspect of the image to "
                    "be made, without a camera.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip, transformer, prompt, width, height, image=None) -> io.NodeOutput:
        given = {"clip": clip, "transformer": transformer, "width": width, "height": height}
        only = {name: take_only(values, name) for name, values in given.items()}
        view, notes = infer_from_prompts(
            only["clip"], only["transformer"], prompt or [None], (only["height"], only["width"]), image
        )
        tell(notes, cls.hidden)
        return io.NodeOutput(view)


def take_only(values: list | None, name: str):
    """The one value of an input, which core hands over as a list."""
    if values and len(values) > 1:
        raise ValueError(
            f"Expected one {name} for all prompts, got a list of {len(values)}. Use the node once for each."
        )
    return values[0] if values else None
