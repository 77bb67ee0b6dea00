"""Intrinsic maps into the latent that is sampled beside an image's, and out of it."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..models.core.geometry.normals import NormalStyle
from ..models.intrinsic_ldm.maps.channels import FAR, NEAR
from ..models.intrinsic_ldm.maps.codec import decode_pictures
from ..models.intrinsic_ldm.maps.inputs import read_beside, read_maps
from .host.intrinsic_ldm.vae import decode_maps, encode_maps, list_vaes, load_vae
from .host.shared.notes import tell
from .sockets import View, index_input

CATEGORY = "SpatialWeave/Intrinsics"


def style_input() -> io.Combo.Input:
    """Which way green points."""
    return io.Combo.Input(
        "normal_style", options=list(get_args(NormalStyle)),
        tooltip="What green means in a normal map. opengl: up, as for Blender and ControlNet. directx: down.",
    )  # fmt: skip


def tile_input() -> io.Int.Input:
    """Core's tiling."""
    return io.Int.Input(
        "tile_size", default=0, min=0, max=4096, step=64, advanced=True,
        tooltip="0: the whole picture at once, in tiles only if memory runs out. Else the side of a tile in pixels, at least 64.",
    )  # fmt: skip


def transparent_output(of: str) -> io.Mask.Output:
    """An alpha, which no map has."""
    return io.Mask.Output(
        "transparent", display_name="transparent",
        tooltip=f"The alpha of {of} as core has it: white where it is transparent, black all over without an alpha.",
    )  # fmt: skip


class LoadIntrinsicVae(io.ComfyNode):
    """The autoencoder of the maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_LoadIntrinsicVae",
            display_name="Load Intrinsic VAE",
            category="SpatialWeave/Loaders",
            description="Loads the autoencoder that codes depth, normals, segmentation and line art into one latent of the base model's "
            "shape: the tiny one that ships with the pack, or a file from models/vae.",
            search_aliases=["i-ldm", "intrinsic autoencoder", "vae loader", "maps vae", "depth normals vae"],
            inputs=[
                io.Combo.Input(
                    "vae_name", options=list_vaes(),
                    tooltip="The tiny model's, or an autoencoder of 8 channels, in core's or diffusers' names. Any other file is "
                    "refused by name.",
                )
            ],
            outputs=[io.Vae.Output("vae", display_name="VAE", tooltip="For Encode Intrinsics and Decode Intrinsics.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae_name) -> io.NodeOutput:
        return io.NodeOutput(load_vae(vae_name))


class EncodeIntrinsics(io.ComfyNode):
    """Maps that are known."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_EncodeIntrinsics",
            display_name="Encode Intrinsics",
            category=CATEGORY,
            description="Codes any of depth, normals, segmentation and line art into one latent, for Join Intrinsic Latent. Maps that are "
            "not wired are missing, which the autoencoder was trained for.",
            search_aliases=["i-ldm", "vae encode", "depth to latent", "normals to latent", "segmentation", "line art", "intrinsics"],
            inputs=[
                io.Vae.Input("vae", tooltip="From Load Intrinsic VAE."),
                style_input(),
                tile_input(),
                View.Input(
                    "depth", optional=True, tooltip="A VIEW. Only the order and the proportions of its 1 / depth are coded, no unit.",
                ),
                io.Image.Input("normals", optional=True, tooltip="A normal map in the camera's frame. Black pixels are not known."),
                io.Mask.Input(
                    "segmentation", optional=True, tooltip="The masks of one picture, as a batch. Where two overlap the smaller is seen.",
                ),
                io.MultiType.Input(
                    "line", types=[io.Image, io.Mask], optional=True,
                    tooltip="Line art, white lines on black as ControlNets have it; Invert Image turns other drawings round.",
                ),
            ],
            outputs=[
                io.Latent.Output("maps_latent", display_name="maps_latent", tooltip="The maps' latent, in the base model's units."),
                io.String.Output(
                    "text", display_name="STRING",
                    tooltip="Which maps were coded, which are missing, what found no place, and what was done to the inputs.",
                ),
                transparent_output("the pictures at normals and line"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae, normal_style, tile_size, depth=None, normals=None, segmentation=None, line=None) -> io.NodeOutput:
        given = read_maps(depth=depth, normals=normals, segmentation=segmentation, line=line, style=normal_style)
        latent, changes = encode_maps(vae, given.stacked, tile_size)
        notes = given.notes + changes
        tell(notes, cls.hidden)
        return io.NodeOutput(latent, "\n".join([given.coded, *notes]), given.transparent)


class DecodeIntrinsics(io.ComfyNode):
    """Maps that were sampled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpatialWeave_DecodeIntrinsics",
            display_name="Decode Intrinsics",
            category=CATEGORY,
            description="Turns the latent of an image's intrinsic maps into typed depth, a normal map, a segmentation with its masks, and "
            "line art.",
            search_aliases=["i-ldm", "vae decode", "latent to depth", "latent to normals", "segmentation masks", "line art", "intrinsics"],
            inputs=[
                io.Latent.Input("samples", tooltip="The maps_latent of Split Intrinsic Latent, or the joint latent itself."),
                io.Vae.Input("vae", tooltip="From Load Intrinsic VAE."),
                io.Float.Input(
                    "near", default=NEAR, min=0.0001, max=100000.0, step=0.0001, round=0.0001,
                    tooltip="The depth of the near end. The code does not know it: 1 / depth is right up to scale and shift.",
                ),
                io.Float.Input(
                    "far", default=FAR, min=0.0001, max=100000.0, step=0.0001, round=0.0001,
                    tooltip="The depth of the far end, in the same unit; Align Depth finds both from another depth.",
                ),
                index_input(),
                style_input(),
                tile_input(),
                io.Image.Input("picture", optional=True, tooltip="The image that was sampled with the maps: the VIEW takes it along."),
            ],
            outputs=[
                View.Output("view", display_name="VIEW", tooltip="The depth, relative, between near and far, with the normals."),
                io.Image.Output("normals", display_name="normals", tooltip="A normal map, for ControlNet or Blender."),
                io.Image.Output("segmentation", display_name="segmentation", tooltip="Each mask in its own colour; black is no mask."),
                io.Mask.Output("masks", display_name="masks", tooltip="The masks of the picture at index, in the order of their ids."),
                io.Image.Output("line", display_name="line", tooltip="Line art, white on black."),
                io.String.Output(
                    "text", display_name="STRING", tooltip="What the depth is, which ids the masks have, and what was cut or changed.",
                ),
                transparent_output("the picture"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, vae, near, far, index, normal_style, tile_size, picture=None) -> io.NodeOutput:
        stacked, padded, changes = decode_maps(vae, samples, tile_size)
        beside = read_beside(picture, tuple(stacked.shape[2:]), padded)
        notes = changes + beside.notes
        found = decode_pictures(stacked, near=near, far=far, style=normal_style, picture=beside.picture)
        made = (found.view, found.normals, found.segmentation, found.masks(index), found.line)
        tell(notes, cls.hidden)
        return io.NodeOutput(*made, "\n".join([found.describe(index), *notes]), beside.transparent)
