"""The command `spatialweave spatial-diff`: encodings of edits for training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .option_types import path, whole
from .output_lines import write_line


def add_spatial_diff(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_encode(actions, {"formatter_class": command.formatter_class})


def _add_encode(actions, looks: Mapping[str, Any]) -> None:
    summary = "latents and text encodings of edits, for training an editor, a connector or a LoRA"
    encode = actions.add_parser("encode", help=summary, **looks)
    option = encode.add_argument
    source = option("source", type=path)
    source.help = (
        "folder of spatialweave world --kind moves, one with a manifest of edits, one with the folders reference, "
        "target and instruction, or OBject-3DIT's"
    )
    output = option("output", type=path)
    output.help = "folder for the encodings; an unfinished one is completed, a finished one follows SOURCE"
    editor = option("--editor", default="tiny", metavar="tiny|FOLDER")
    editor.help = "tiny, or a folder of Flux-Kontext in diffusers' form: its VAE and text encoders are used"
    option("--mirror", action="store_true", help="each edit mirrored, too: left and right exchanged")
    size = option("--size", type=whole(16, 4096))
    size.help = "pixels a side, scaled to cover and cropped; by default as they are"
    cells = option("--cells", action="store_true")
    cells.help = "shape and color of each cell of the target, too, with which the tiny editor's base trains"
    option("--shard-size", type=whole(1, 4096), default=500, help="samples of a shard")
    encode.set_defaults(run=_run_encode)


def _run_encode(options: argparse.Namespace) -> None:
    from ..core.training.loop import find_device
    from ..spatial_diff.data.encode import encode_triples
    from ..spatial_diff.data.encoders import KontextEncoders, TinyEncoders
    from ..trainers.spatial_diff import label_targets

    device = find_device()
    is_tiny = options.editor == "tiny"
    encoders = TinyEncoders(device=device) if is_tiny else KontextEncoders(options.editor, device)
    summary = encode_triples(
        options.source, options.output, encoders, size=options.size and (options.size, options.size),
        mirror=options.mirror, shard_size=options.shard_size, more=label_targets if options.cells else None,
    )  # fmt: skip
    write_line(str(summary))
