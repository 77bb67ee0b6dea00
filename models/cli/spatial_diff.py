"""The command `spatialweave spatial_diff`: encodings of edits, and of their geometry, for training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .option_types import path, whole
from .output_lines import write_line


def add_spatial_diff(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    looks = {"formatter_class": command.formatter_class}
    _add_encode(actions, looks)
    _add_geometry(actions, looks)


def _add_shared(option) -> None:
    """The options that both encodings of a folder must agree in."""
    source = option("source", type=path)
    source.help = (
        "folder of spatialweave world --kind moves, one with a manifest of edits, one with the folders "
        "reference, target and instruction, or OBject-3DIT's"
    )
    output = option("output", type=path)
    output.help = "folder for the encodings; an unfinished one is completed, a finished one follows SOURCE"
    editor = option("--editor", default="tiny", metavar="tiny|FOLDER")
    editor.help = "tiny, or a folder of Flux-Kontext in diffusers' form: its VAE and text encoders are used"
    option("--mirror", action="store_true", help="each edit mirrored, too: left and right exchanged")
    size = option("--size", type=whole(16, 4096))
    size.help = "pixels a side, scaled to cover and cropped; by default as they are"
    option("--shard-size", type=whole(1, 4096), default=500, help="samples of a shard")


def _add_encode(actions, looks: Mapping[str, Any]) -> None:
    summary = "latents and text encodings of edits, for training an editor, a connector or a LoRA"
    encode = actions.add_parser("encode", help=summary, **looks)
    _add_shared(encode.add_argument)
    cells = encode.add_argument("--cells", action="store_true")
    cells.help = "shape and color of each cell of the target, too, with which the tiny editor's base trains"
    encode.set_defaults(run=_run_encode)


def _add_geometry(actions, looks: Mapping[str, Any]) -> None:
    summary = "geometry tokens of the references and depth latents of the targets, for a connector"
    geometry = actions.add_parser("geometry", help=summary, **looks)
    option = geometry.add_argument
    _add_shared(option)
    weights = option("--weights", type=path)
    weights.help = "VGGT's file; by default the tiny network that ships"
    teacher = option("--teacher", choices=["given", "vggt"], default="given")
    teacher.help = "the target's depth: as SOURCE gives it, or as VGGT sees it"
    option("--pixels", action="store_true", help="the depth images, too, for the loss in pixels (EDS)")
    geometry.set_defaults(run=_run_geometry)


def _run_encode(options: argparse.Namespace) -> None:
    from ..spatial_diff.data.encode import encode_triples
    from ..trainers.spatial_diff import label_targets

    more = label_targets if options.cells else None
    summary = encode_triples(
        options.source, options.output, _find_encoders(options), more=more, **_read_shared(options)
    )
    write_line(str(summary))


def _run_geometry(options: argparse.Namespace) -> None:
    from ..core.training.loop import find_device
    from ..spatial_diff.data.geometry import encode_geometry

    summary = encode_geometry(
        options.source, options.output, _find_encoders(options), weights=options.weights,
        device=find_device(), teacher=options.teacher, pixels=options.pixels, **_read_shared(options),
    )  # fmt: skip
    write_line(str(summary))


def _read_shared(options: argparse.Namespace) -> dict[str, Any]:
    size = options.size and (options.size, options.size)
    return {"size": size, "mirror": options.mirror, "shard_size": options.shard_size}


def _find_encoders(options: argparse.Namespace):
    """The encoders of the editor that is named."""
    from ..core.training.loop import find_device
    from ..spatial_diff.data.encoders import KontextEncoders, TinyEncoders

    device = find_device()
    return (
        TinyEncoders(device=device) if options.editor == "tiny" else KontextEncoders(options.editor, device)
    )
