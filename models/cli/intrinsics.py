"""The command `spatialweave intrinsics`: datasets for I-LDM, their latents, samples of the tiny system."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..intrinsic_ldm.config import GUIDANCE, PRECISIONS, STEPS
from .option_types import LARGEST_SEED, MOST_STEPS, number, parse_size, path, whole
from .output_lines import write_line


def add_intrinsics(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    style = {"formatter_class": command.formatter_class}
    _add_build(actions, style)
    _add_encode(actions, style)
    _add_sample(actions, style)


def _add_build(actions, style: Mapping[str, Any]) -> None:
    summary = "estimate the maps of plain images with a running ComfyUI"
    build = actions.add_parser("build", help=summary, **style)
    option = build.add_argument
    source = option("source", type=path)
    source.help = "folder with images; a .txt of the same name, in UTF-8, is an image's caption"
    output = option("output", type=path)
    output.help = "folder for the dataset; an unfinished one is completed, a finished one follows SOURCE"
    server = option("--server", action="append")
    server.help = "a ComfyUI's address, by default http://127.0.0.1:8188; may be repeated"
    workflow = option("--workflow", type=path)
    workflow.help = "in API form; by default workflows/api/build_intrinsic_dataset.json of the pack"
    changes = option("--set", action="append", default=[], metavar="NODE.INPUT=VALUE")
    changes.help = "change an input of the workflow; may be repeated"
    option("--size", default="512x512", metavar="WxH", help="pixels; images are scaled to cover and cropped")
    option("--timeout", type=number(0.001, 10**6), default=600, help="maximum seconds for one image")
    build.set_defaults(run=_run_build)


def _add_encode(actions, style: Mapping[str, Any]) -> None:
    summary = "latents and prompts of a dataset folder, for training an intrinsic LoRA"
    encode = actions.add_parser("encode", help=summary, **style)
    option = encode.add_argument
    option("source", type=path, help="dataset folder with images, captions and maps")
    output = option("output", type=path)
    output.help = "folder for the latents; an unfinished one is completed, a finished one follows SOURCE"
    base = option("--base", type=path, required=True)
    base.help = "folder of the base model in diffusers' form: SD2.1, SDXL or PixArt"
    option("--vae", type=path, required=True, help="the intrinsic VAE's file")
    size = option("--size", metavar="WxH")
    size.help = "pixels; larger images are scaled to cover and cropped; by default as they are"
    option("--batch", type=whole(1, 4096), default=4, help="images encoded at once")
    grid = option("--places", type=whole(1, 16), default=16)
    grid.help = "cells per side of the grid by which mask colors are assigned; a small network needs few"
    option("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="dtype of the text encoders")
    encode.set_defaults(run=_run_encode)


def _add_sample(actions, style: Mapping[str, Any]) -> None:
    summary = "the tiny system on your prompts: images, their maps, and a contact sheet"
    sample = actions.add_parser("sample", help=summary, **style)
    option = sample.add_argument
    option("prompt", nargs="+", help="what to show; each prompt is one row of the contact sheet")
    option("--output", type=path, default=Path("spatialweave-intrinsics"), help="folder for the images")
    schedule = option("--schedule", choices=["gaussian", "drop", "constant", "off"], default="gaussian")
    schedule.help = "weight schedule of the cross-modal attention: how much the image attends to its maps"
    option("--seed", type=whole(0, LARGEST_SEED), default=0, help="same seed, same result")
    option("--steps", type=whole(1, MOST_STEPS), default=STEPS, help="sampling steps")
    guidance = option("--guidance", type=number(-1000, 1000), default=GUIDANCE)
    guidance.help = "scale of classifier-free guidance; 1 is off"
    option("--base", type=path, help="another tiny base than the shipped one")
    option("--vae", type=path, help="another intrinsic VAE for it")
    option("--lora", type=path, help="another intrinsic LoRA for it")
    sample.set_defaults(run=_run_sample)


def _run_sample(options: argparse.Namespace) -> None:
    from ..intrinsic_ldm.show import SampleRequest, sample

    files = {name: getattr(options, name) for name in ("base", "vae", "lora") if getattr(options, name)}
    settings = (options.schedule, options.seed, options.steps, options.guidance)
    for line in sample(SampleRequest(options.prompt, options.output, *settings, **files)):
        write_line(line)


def _run_build(options: argparse.Namespace) -> None:
    from ..intrinsic_ldm.data.build import WORKFLOW, build_dataset

    summary = build_dataset(
        options.source,
        options.output,
        servers=options.server or ["http://127.0.0.1:8188"],
        size=_read_size(options.size),
        workflow=options.workflow or WORKFLOW,
        changes=options.set,
        timeout=options.timeout,
    )
    write_line(str(summary))


def _run_encode(options: argparse.Namespace) -> None:
    from ..intrinsic_ldm.data.encode import encode_dataset

    summary = encode_dataset(
        options.source,
        options.output,
        base=options.base,
        vae=options.vae,
        size=_read_size(options.size),
        batch=options.batch,
        precision=options.precision,
        grid=options.places,
    )
    write_line(str(summary))


def _read_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of WxH."""
    if text is None:
        return None
    width, height = parse_size(text)
    return height, width
