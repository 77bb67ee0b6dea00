"""Joint latents taken apart, joined, saved and loaded: core's own nodes take plain latents only."""

from __future__ import annotations

import math

from comfy_api.latest import io

from .host.modality_forcing.latent_files import (
    hash_joint_latent,
    join_latents,
    list_joint_latents,
    load_joint_latent,
    save_joint_latent,
    split_streams,
)

CATEGORY = "SpatialWeave/Latent"


class SplitJointLatent(io.ComfyNode):
    """Two plain latents of a joint one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SplitJointLatent",
            display_name="Split Joint Latent",
            category=CATEGORY,
            description="Takes a joint latent apart into two plain ones, image and depth, each with its own mask, for core's latent nodes.",
            search_aliases=["separate", "unbind", "nested latent", "image latent", "depth latent"],
            inputs=[io.Latent.Input("samples", tooltip="A joint latent.")],
            outputs=[
                io.Latent.Output("image_latent", display_name="image_latent", tooltip="The image's latent, for any latent node."),
                io.Latent.Output(
                    "depth_latent", display_name="depth_latent", tooltip="The depth's: one channel per pixel, in the network's numbers.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        return io.NodeOutput(*split_streams(samples))


class JoinJointLatent(io.ComfyNode):
    """The reverse of Split Joint Latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_JoinJointLatent",
            display_name="Join Joint Latent",
            category=CATEGORY,
            description="Makes a joint latent of an image latent and a depth latent, with the masks of both. A batch of 1 serves all.",
            search_aliases=["concat", "combine", "merge latents", "nested latent", "concat joint latent"],
            inputs=[
                io.Latent.Input("image_latent", tooltip="The image's latent, from Split Joint Latent or from VAE Encode."),
                io.Latent.Input("depth_latent", tooltip="The depth's latent, from Split Joint Latent."),
            ],
            outputs=[io.Latent.Output("latent", display_name="LATENT", tooltip="Image and depth as one nested latent.")],
        )

    @classmethod
    def execute(cls, image_latent, depth_latent) -> io.NodeOutput:
        return io.NodeOutput(join_latents(image_latent, depth_latent))


class SaveJointLatent(io.ComfyNode):
    """Core's Save Latent, for two streams."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_SaveJointLatent",
            display_name="Save Joint Latent",
            category=CATEGORY,
            description="Writes a joint latent, with its masks and the size it was asked for, as safetensors into ComfyUI's output folder. "
            "Core's Save Latent cannot take one.",
            search_aliases=["export latent", "save latent", "store", "nested latent"],
            is_output_node=True,
            inputs=[
                io.Latent.Input("samples", tooltip="A joint latent."),
                io.String.Input(
                    "filename_prefix", default="latents/joint",
                    tooltip="The name inside the output folder, subfolders allowed; a number is added.",
                ),
            ],
            outputs=[],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, filename_prefix) -> io.NodeOutput:
        return io.NodeOutput(ui=save_joint_latent(samples, filename_prefix, cls.hidden.prompt, cls.hidden.extra_pnginfo))


class LoadJointLatent(io.ComfyNode):
    """The reverse of Save Joint Latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadJointLatent",
            display_name="Load Joint Latent",
            category=CATEGORY,
            description="Reads a joint latent that Save Joint Latent wrote, bit for bit.",
            search_aliases=["import latent", "open latent", "load latent", "nested latent"],
            inputs=[
                io.Combo.Input(
                    "file", options=list_joint_latents(),
                    tooltip="A .joint.safetensors file in ComfyUI's input folder, or anywhere in its output folder. Other files are "
                    "refused by name.",
                )
            ],
            outputs=[io.Latent.Output("latent", display_name="LATENT", tooltip="Image and depth as one nested latent.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file) -> str | float:
        return math.nan if file is None else hash_joint_latent(file)  # None: it comes through a link; NaN: read anew in every run

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_joint_latent(file))
