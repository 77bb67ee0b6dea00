"""Intrinsic maps (I-LDM): their VAE, and the maps encoded into and decoded from a latent."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..models.core.geometry.normals import NormalStyle
from ..models.intrinsic_ldm.maps.channels import FAR, NEAR
from ..models.intrinsic_ldm.maps.codec import channels_to_maps
from ..models.intrinsic_ldm.maps.inputs import read_maps, read_matching_image
from .host.intrinsic_ldm.vae import decode_maps, encode_maps, find_missing_vae, list_vaes, load_vae
from .host.shared.notes import tell
from .sockets import View, index_input, transparent_output

CATEGORY = "SpatialWeave/Intrinsics"


def style_input() -> io.Combo.Input:
    """The direction of green in a normal map."""
    return io.Combo.Input(
        "normal_style", options=list(get_args(NormalStyle)),
        tooltip="Direction of green in a normal map. opengl: up, as for Blender and ControlNets. directx: "
        "down.",
    )  # fmt: skip


def tile_input() -> io.Int.Input:
    """Tiling as in ComfyUI's tiled VAE nodes."""
    return io.Int.Input(
        "tile_size", default=0, min=0, max=4096, step=64, advanced=True,
        tooltip="0: the whole image at once, in tiles only if memory runs out. Otherwise the side of a tile "
        "in pixels, at least 64.",
    )  # fmt: skip


class LoadIntrinsicVae(io.ComfyNode):
    """The VAE of the intrinsic maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadIntrinsicVae",
            display_name="Load Intrinsic VAE",
            category="SpatialWeave/Loaders",
            description="Loads the VAE that encodes depth, normals, segmentation and line art into one "
            "latent of the base model's shape: the tiny one that ships with the pack, or a file from "
            "models/vae.",
            search_aliases=["i-ldm", "intrinsic autoencoder", "vae loader", "maps vae", "depth normals vae"],
            inputs=[
                io.Combo.Input(
                    "vae_name", options=list_vaes(),
                    tooltip="The tiny model's, or a VAE of 8 image channels, in ComfyUI's or diffusers' "
                    "tensor names. Any other file is refused with an error that says what it is.",
                )
            ],
            outputs=[
                io.Vae.Output(
                    "vae", display_name="VAE", tooltip="For Encode Intrinsics and Decode Intrinsics.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, vae_name) -> bool | str:
        return find_missing_vae(vae_name) or True

    @classmethod
    def execute(cls, vae_name) -> io.NodeOutput:
        return io.NodeOutput(load_vae(vae_name))


class EncodeIntrinsics(io.ComfyNode):
    """Known maps as a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_EncodeIntrinsics",
            display_name="Encode Intrinsics",
            category=CATEGORY,
            description="Encodes any of depth, normals, segmentation and line art into one latent, for Join "
            "Intrinsic Latent. Maps that are not connected count as missing, which the VAE was trained for.",
            search_aliases=[
                "i-ldm", "vae encode", "depth to latent", "normals to latent", "segmentation", "line art",
                "intrinsics",
            ],
            inputs=[
                io.Vae.Input("vae", tooltip="From Load Intrinsic VAE."),
                style_input(),
                tile_input(),
                View.Input(
                    "depth", optional=True,
                    tooltip="A VIEW. Its 1 / depth is normalized before encoding: unit, scale and shift are "
                    "lost.",
                ),
                io.Image.Input(
                    "normals", optional=True,
                    tooltip="A normal map in camera space. Black pixels count as missing.",
                ),
                io.Mask.Input(
                    "segmentation", optional=True,
                    tooltip="The masks of one image, as a batch. Where masks overlap, the smaller one "
                    "counts.",
                ),
                io.MultiType.Input(
                    "line", types=[io.Image, io.Mask], optional=True,
                    tooltip="Line art, white lines on black as for ControlNets; use Invert Image for black "
                    "lines on white.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "maps_latent", display_name="maps_latent",
                    tooltip="The maps' latent, scaled like the base model's latents.",
                ),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="Which maps were encoded, which are missing, what was left out, and what was "
                    "done to the inputs.",
                ),
                transparent_output("the images at normals and line"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, vae, normal_style, tile_size, depth=None, normals=None, segmentation=None, line=None
    ) -> io.NodeOutput:
        maps = {"depth": depth, "normals": normals, "segmentation": segmentation, "line": line}
        inputs = read_maps(**maps, style=normal_style)
        latent, changes = encode_maps(vae, inputs.stacked, tile_size)
        notes = inputs.notes + changes
        tell(notes, cls.hidden)
        return io.NodeOutput(latent, "\n".join([inputs.coded, *notes]), inputs.transparent)


class DecodeIntrinsics(io.ComfyNode):
    """The maps of a sampled latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_DecodeIntrinsics",
            display_name="Decode Intrinsics",
            category=CATEGORY,
            description="Decodes the latent of an image's intrinsic maps: depth as a VIEW, a normal map, a "
            "segmentation with its masks, and line art.",
            search_aliases=[
                "i-ldm", "vae decode", "latent to depth", "latent to normals", "segmentation masks",
                "line art", "intrinsics",
            ],
            inputs=[
                io.Latent.Input(
                    "samples",
                    tooltip="The maps_latent from Split Intrinsic Latent, or the joint latent itself.",
                ),
                io.Vae.Input("vae", tooltip="From Load Intrinsic VAE."),
                io.Float.Input(
                    "near", default=NEAR, min=0.0001, max=100000.0, step=0.0001, round=0.0001,
                    tooltip="Depth at the near end. The latent does not hold it: 1 / depth is known only up "
                    "to scale and shift.",
                ),
                io.Float.Input(
                    "far", default=FAR, min=0.0001, max=100000.0, step=0.0001, round=0.0001,
                    tooltip="Depth at the far end, in the same unit; Align Depth finds both from another "
                    "depth map.",
                ),
                index_input(),
                style_input(),
                tile_input(),
                io.Image.Input(
                    "picture", optional=True,
                    tooltip="The image that was sampled with the maps; it becomes the VIEW's image.",
                ),
            ],
            outputs=[
                View.Output(
                    "view", display_name="VIEW",
                    tooltip="The relative depth between near and far, with the normals.",
                ),
                io.Image.Output(
                    "normals", display_name="normals", tooltip="A normal map, for ControlNet or Blender.",
                ),
                io.Image.Output(
                    "segmentation", display_name="segmentation",
                    tooltip="Each mask in its own color; black is no mask.",
                ),
                io.Mask.Output(
                    "masks", display_name="masks",
                    tooltip="The masks of the image at index, in the order of their ids.",
                ),
                io.Image.Output("line", display_name="line", tooltip="Line art, white on black."),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="A summary of the depth, the ids of the masks, and what was cropped or changed.",
                ),
                transparent_output("the image at picture"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, vae, near, far, index, normal_style, tile_size, picture=None) -> io.NodeOutput:
        stacked, padded, changes = decode_maps(vae, samples, tile_size)
        matching = read_matching_image(picture, tuple(stacked.shape[2:]), padded)
        notes = changes + matching.notes
        decoded = channels_to_maps(stacked, near=near, far=far, style=normal_style, image=matching.image)
        maps = (decoded.view, decoded.normals, decoded.segmentation, decoded.masks(index), decoded.line)
        tell(notes, cls.hidden)
        return io.NodeOutput(*maps, "\n".join([decoded.describe(index), *notes]), matching.transparent)
