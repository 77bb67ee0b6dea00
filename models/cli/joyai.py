"""The command `spatialweave joyai`: edits in published layouts, and their encodings for training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .option_types import path, whole
from .output_lines import write_line


def add_joyai(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    looks = {"formatter_class": command.formatter_class}
    _add_export(actions, looks)
    _add_encode(actions, looks)


def _add_export(actions, looks: Mapping[str, Any]) -> None:
    summary = "write edits as SpatialEdit-500K shards or OBject-3DIT folders"
    export = actions.add_parser("export", help=summary, **looks)
    option = export.add_argument
    source = option("source", type=path)
    source.help = "folder of spatialweave world --kind edits, or one of yours with a manifest of edits"
    option("output", type=path, help="folder for the layout; an unfinished one is completed")
    layout = option("--layout", choices=["spatialedit", "object3dit"], default="spatialedit")
    layout.help = "WebDataset shards with the prompts of JoyAI, or a folder for each edit with its masks"
    option("--split", choices=["train", "val", "test"], default="train", help="folder of OBject-3DIT")
    unseen = option("--unseen", action="store_true")
    unseen.help = "OBject-3DIT's val and test: objects that training has not seen"
    size = option("--size", type=whole(8, 4096))
    size.help = "pixels a side, scaled to cover and cropped; by default as they are (OBject-3DIT has 256)"
    option("--shard-size", type=whole(1, 10**6), default=100, help="edits of a tar")
    option("--quality", type=whole(1, 100), default=95, help="of JPEG")
    export.set_defaults(run=_run_export)


def _add_encode(actions, looks: Mapping[str, Any]) -> None:
    summary = "latents and encodings of edits, for training a LoRA on JoyImage-Edit"
    encode = actions.add_parser("encode", help=summary, **looks)
    option = encode.add_argument
    source = option("source", type=path)
    source.help = "folder of spatialweave world --kind edits, or one of yours with a manifest of edits"
    output = option("output", type=path)
    output.help = "folder for the encodings; an unfinished one is completed, a finished one follows SOURCE"
    base = option("--base", type=path, required=True)
    base.help = "folder of JoyImage-Edit in diffusers' form: its VAE, text encoder and processor are used"
    size = option("--size", type=whole(256, 1024), choices=[256, 512, 768, 1024], default=1024)
    size.help = "area to scale to, as pixels a side: the bucket of that area nearest to an image's shape"
    option("--shard-size", type=whole(1, 4096), default=16, help="edits of a shard, of one size in pixels")
    precision = option("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    precision.help = "dtype of the text encoder"
    encode.set_defaults(run=_run_encode)


def _run_export(options: argparse.Namespace) -> None:
    from ..joyai_edit.data.export import LayoutRequest, export_edits

    settings = {name: getattr(options, name) for name in ("split", "unseen", "size", "shard_size", "quality")}
    write_line(str(export_edits(options.source, options.output, LayoutRequest(options.layout, **settings))))


def _run_encode(options: argparse.Namespace) -> None:
    from ..joyai_edit.data.encode import encode_edits

    settings = {name: getattr(options, name) for name in ("base", "size", "shard_size", "precision")}
    write_line(str(encode_edits(options.source, options.output, **settings)))
