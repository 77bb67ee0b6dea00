"""Joint latents split, joined, and as safetensors files in core's folders, bit-exact, NaN included."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import comfy.cli_args
import comfy.nested_tensor
import folder_paths
import torch

from ....models.core.text_files import parse_json
from ....models.core.weights.files import (
    KIND,
    WeightsError,
    check_finite,
    describe,
    read_header,
    read_tensors,
    write_tensors,
)
from ..shared.folders import find_free_name
from ..shared.nested_latents import GUIDE, MASKS, SIZE, JointLatent, nest_masks, read_samples, take_apart
from .joint_latent import REFUSAL, SKY, split_joint_latent

SUFFIX = ".joint.safetensors"
FILE_KIND = "joint latent"
STREAMS = ("image", "depth")
GUIDE_NAME = "guide"


def split_streams(latent: dict) -> list[dict]:
    """The image and the depth, each as a plain LATENT with its own mask."""
    return take_apart(latent, split_joint_latent(latent))


def join_latents(image: dict, depth: dict) -> dict:
    """One joint LATENT of two plain ones; a batch of 1 is repeated. A stream without a mask is sampled."""
    for name, latent in (("image_latent", image), ("depth_latent", depth)):
        if getattr(read_samples(latent, name), "is_nested", False):
            raise ValueError(
                f"Expected a plain latent at {name}, got a joint latent. Take it apart with Split Joint "
                "Latent and connect the part that is meant."
            )
    streams = [image["samples"], depth["samples"]]
    if streams[0].shape[1] == 1:
        raise ValueError(
            f"Expected an image's latent at image_latent, got a depth's, {tuple(streams[0].shape)}. Connect "
            "the image_latent of Split Joint Latent, or VAE Encode."
        )
    batch = max(len(stream) for stream in streams)
    streams = [stream.expand(batch, *stream.shape[1:]) if len(stream) == 1 else stream for stream in streams]
    joined = {**image, **depth, "samples": comfy.nested_tensor.NestedTensor(streams)}
    shown, covered = (stream.shape[-2:] for stream in split_joint_latent(joined))
    own = joined.pop(SIZE, None)
    size = scale_size(own, covered, covered[0] // shown[0]) if own else None
    if image.get(GUIDE) is not depth.get(GUIDE) or size != own:
        joined.pop(GUIDE, None)  # the depth no longer is that image's, or not of its scaled size
    joined.pop(MASKS, None)
    return JointLatent(joined | ({SIZE: size} if size else {}) | nest_masks((image, depth), streams), REFUSAL)


def scale_size(size: Sequence[int], padded: Sequence[int], patch: int) -> tuple[int, int] | None:
    """The (height, width) of an image of `size` that was padded to whole patches and then scaled to `padded`,
    padding included.

    None if its sides were not scaled alike: how much of it is padding is then unknown.
    """
    height, width = (-(-side // patch) * patch for side in size)
    if height * padded[1] != width * padded[0]:
        return None
    return size[0] * padded[0] // height, size[1] * padded[1] // width


def save_joint_latent(latent: dict, filename_prefix: str, prompt=None, extra_pnginfo=None) -> dict:
    """Write a numbered file into core's output folder; returns what the interface shows about it.

    The graph is saved in it unless ComfyUI was started with --disable-metadata.
    """
    streams = dict(zip(STREAMS, split_joint_latent(latent), strict=True))
    masks = latent.get(MASKS)
    if getattr(masks, "is_nested", False):
        streams |= {f"{name}_mask": mask for name, mask in zip(STREAMS, masks.unbind(), strict=True)}
    if GUIDE in latent:
        streams[GUIDE_NAME] = latent[GUIDE]
    folder, name, counter, subfolder = find_free_name(filename_prefix)
    file = f"{name}_{counter:05}_{SUFFIX}"
    notes = {key: latent[key] for key in (SIZE, SKY) if key in latent}
    if not comfy.cli_args.args.disable_metadata:
        notes |= {"prompt": prompt} | (extra_pnginfo or {})
    metadata = {key: json.dumps(value) for key, value in notes.items() if value is not None}
    write_tensors(Path(folder) / file, streams, metadata, kind=FILE_KIND)
    return {"latents": [{"filename": file, "subfolder": subfolder, "type": "output"}]}


def list_joint_latents() -> list[str]:
    """Files in core's input folder, and in its output folder with all subfolders."""
    given = folder_paths.get_input_directory()
    loose = os.listdir(given) if os.path.isdir(given) else []
    saved, _ = folder_paths.recursive_search(folder_paths.get_output_directory())
    names = sorted(loose) + sorted(f"{Path(name).as_posix()} [output]" for name in saved)
    return [name for name in names if name.removesuffix(" [output]").endswith(SUFFIX)]


def load_joint_latent(file: str) -> dict:
    """A LATENT as it was saved; WeightsError says what another file is."""
    path = folder_paths.get_annotated_filepath(file)
    header = read_header(path)
    if header.metadata.get(KIND) != FILE_KIND or not set(STREAMS) <= set(header.shapes):
        raise WeightsError(
            f"Expected a joint latent in {path}, got {describe(header)}. Write one with Save Joint Latent."
        )
    tensors = read_tensors(path, finite=False)  # NaN in depth is missing depth
    check_finite({STREAMS[0]: tensors[STREAMS[0]]}, path)
    nested = comfy.nested_tensor.NestedTensor
    latent = {"samples": nested([read_stream(tensors, name, path) for name in STREAMS])}
    if all(f"{name}_mask" in tensors for name in STREAMS):
        latent[MASKS] = nested([read_stream(tensors, f"{name}_mask", path) for name in STREAMS])
    latent |= {
        key: read_note(header.metadata[key], key, path) for key in (SIZE, SKY) if key in header.metadata
    }
    if GUIDE_NAME in tensors:
        latent[GUIDE] = read_guide(tensors, len(tensors[STREAMS[1]]), path)
    try:
        image, depth = split_joint_latent(latent)
    except ValueError as error:
        raise WeightsError(
            f"Expected a usable joint latent in {path}, got one that is not: {error}"
        ) from error
    if SIZE in latent and any(
        asked > padded for asked, padded in zip(latent[SIZE], depth.shape[-2:], strict=True)
    ):
        raise WeightsError(
            f"Expected a {SIZE} within {tuple(depth.shape[-2:])} in {path}, got {latent[SIZE]}. Save the "
            "latent again."
        )
    return JointLatent(latent, REFUSAL)


def read_guide(tensors: dict[str, torch.Tensor], batch: int, path: str) -> torch.Tensor:
    """The image (b, h, w, 3) that guides the depth to its size."""
    guide = read_stream(tensors, GUIDE_NAME, path)
    if guide.ndim != 4 or guide.shape[3] != 3 or len(guide) not in (1, batch):
        raise WeightsError(
            f"Expected {GUIDE_NAME} as (1, h, w, 3) or ({batch}, h, w, 3) in {path}, got "
            f"{tuple(guide.shape)}. Save the latent again."
        )
    return guide


def read_stream(tensors: dict[str, torch.Tensor], name: str, path: str) -> torch.Tensor:
    """One stream or mask, of floating-point values."""
    if not tensors[name].is_floating_point():
        raise WeightsError(
            f"Expected floating-point numbers in {name} of {path}, got {tensors[name].dtype}. Save the "
            "latent again."
        )
    return tensors[name]


def read_note(text: str, key: str, path: str) -> list[int] | bool:
    """[height, width], or whether sky is infinite, as `save_joint_latent` writes it."""
    source = f"{key} in the metadata of {path}"
    value, quoted = parse_json(text, source=source), " ".join(text.split())[:60]
    if key == SKY and not isinstance(value, bool):
        raise WeightsError(f"Expected true or false as {source}, got {quoted}. Save the latent again.")
    if key == SIZE and not (
        isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    ):
        raise WeightsError(
            f"Expected [height, width] in pixels as {source}, got {quoted}. Save the latent again."
        )
    return value


def hash_joint_latent(file: str) -> str:
    """Changes when the file does."""
    return hashlib.sha256(Path(folder_paths.get_annotated_filepath(file)).read_bytes()).hexdigest()
