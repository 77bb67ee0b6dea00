"""OmniGen2's files: a pipeline's folder, its transformer's folder, or ComfyUI's one file of the network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.text_files import read_json_object, show_path
from ..core.weights.files import WeightsError, describe_keys, fill_module, read_header, read_tensors
from ..core.weights.network_files import check_dtypes
from .omnigen2 import OmniGen2, OmniGen2Config

INDEX = "diffusion_pytorch_model.safetensors.index.json"
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")  # of the names in other programs' files
MARKER = "ref_image_patch_embedder.weight"
BLOCK = re.compile(r"(layers|context_refiner)\.(\d+)\.")
DTYPES = ("F32", "F16", "BF16")
WHOLE = "an OmniGen2 network in bfloat16 or float32, as its release and ComfyUI name its tensors,"


def load_omnigen2(
    base: str | os.PathLike, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    operations=torch.nn,
) -> OmniGen2:  # fmt: skip
    """The network, every tensor exactly once; WeightsError says what a wrong file or folder is."""
    paths = list_omnigen2_files(base)
    what = show_path(Path(base))
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        header = read_header(path)
        check_dtypes(header.dtypes, DTYPES, str(path))
        shapes |= header.shapes
    prefix = find_name_prefix(shapes, what)
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    network = OmniGen2(
        read_omnigen2_config(own, what), operations=operations, device="meta", dtype=dtype
    )
    state: dict[str, Tensor] = {}
    for path in paths:
        tensors = read_tensors(path).items()
        state |= {name.removeprefix(prefix): value for name, value in tensors if name.startswith(prefix)}
    return fill_module(network, state, what=what, device=device).train(False)


def list_omnigen2_files(base: str | os.PathLike) -> list[Path]:
    """The network's safetensors files; WeightsError if there are none."""
    source = Path(base)
    if source.is_file():
        return [source]
    folder = source / "transformer" if (source / "transformer").is_dir() else source
    if (folder / INDEX).is_file():
        named = read_json_object(folder / INDEX).get("weight_map")
        paths = [folder / name for name in sorted(set(named.values()))] if isinstance(named, dict) else []
    else:
        paths = sorted(folder.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        lacks = f"none of {', '.join(missing)}" if missing else "no safetensors file"
        raise WeightsError(
            f"Expected {WHOLE} in {show_path(folder)}, got {lacks} there. Name OmniGen2's folder or "
            "ComfyUI's file."
        )
    return paths


def find_name_prefix(names: Mapping[str, tuple[int, ...]], what: str) -> str:
    """What stands before every name; WeightsError for the file of another network."""
    prefix = next((each for each in PREFIXES if each + MARKER in names), None)
    if prefix is None:
        raise WeightsError(
            f"Expected {WHOLE} in {what}, got {describe_keys(names)}. Name OmniGen2's file."
        )
    return prefix


def read_omnigen2_config(shapes: Mapping[str, tuple[int, ...]], what: str) -> OmniGen2Config:
    """The sizes of a network, from the shapes of its tensors; the three rotary axes are of one size."""
    try:
        width, channels = shapes[MARKER]
        head = shapes["layers.0.attn.norm_q.weight"][0]
        patch = OmniGen2Config.patch_size
        return OmniGen2Config(
            in_channels=channels // patch**2,
            context_in_dim=shapes["time_caption_embed.caption_embedder.0.weight"][0],
            hidden_size=width,
            mlp_hidden=shapes["layers.0.feed_forward.linear_1.weight"][0],
            num_heads=width // head,
            num_kv_heads=shapes["layers.0.attn.to_k.weight"][0] // head,
            depth=count_stack(shapes, "layers"),
            depth_refiner=count_stack(shapes, "context_refiner"),
            axes_dim=(head // 3,) * 3,
            most_references=shapes["image_index_embedding"][0],
        )
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(
            f"Expected {WHOLE} in {what}, got one of other sizes ({str(error).rstrip('.')}). Name "
            "OmniGen2's file."
        ) from error


def count_stack(names: Mapping[str, tuple[int, ...]], stack: str) -> int:
    """Blocks of a stack, by the highest number among the names."""
    found = (BLOCK.match(name) for name in names)
    return 1 + max((int(match[2]) for match in found if match and match[1] == stack), default=-1)
