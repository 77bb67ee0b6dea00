"""The command `spatialweave intrinsics`: datasets for I-LDM, their latents, and the tiny system on prompts of one's own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..intrinsic_ldm.config import GUIDANCE, PRECISIONS, STEPS
from .option_types import LARGEST_SEED, MOST_STEPS, number, path, whole


def add_intrinsics(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    looks = {"formatter_class": command.formatter_class}
    _add_build(actions, looks)
    _add_encode(actions, looks)
    _add_sample(actions, looks)


def _add_build(actions, looks: Mapping[str, Any]) -> None:
    build = actions.add_parser("build", help="estimate the maps of plain pictures with a running ComfyUI", **looks)
    build.add_argument("source", type=path, help="folder with pictures; a .txt of the same name, in UTF-8, is a picture's caption")
    build.add_argument("output", type=path, help="folder for the dataset; an unfinished one is completed, a finished one follows SOURCE")
    build.add_argument("--server", action="append", help="a ComfyUI's address, by default http://127.0.0.1:8188; may be repeated")
    build.add_argument("--workflow", type=path, help="in API form; by default workflows/api/build_intrinsic_dataset.json of the pack")
    build.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="change its inputs; may be repeated")
    build.add_argument("--size", default="512x512", metavar="WxH", help="pixels; pictures are scaled to cover and cropped")
    build.add_argument("--timeout", type=number(0.001, 10**6), default=600, help="seconds that a picture may take")
    build.set_defaults(run=_run_build)


def _add_encode(actions, looks: Mapping[str, Any]) -> None:
    encode = actions.add_parser("encode", help="latents and prompts of a dataset folder, for training an intrinsic LoRA", **looks)
    encode.add_argument("source", type=path, help="dataset folder with images, captions and maps")
    encode.add_argument("output", type=path, help="folder for the latents; an unfinished one is completed, a finished one follows SOURCE")
    encode.add_argument("--base", type=path, required=True, help="folder of the base model in diffusers' form: SD2.1, SDXL or PixArt")
    encode.add_argument("--vae", type=path, required=True, help="the intrinsic VAE's file")
    encode.add_argument("--size", metavar="WxH", help="pixels; larger pictures are scaled to cover and cropped; by default as they are")
    encode.add_argument("--batch", type=whole(1, 4096), default=4, help="pictures encoded at once")
    places = encode.add_argument("--places", type=whole(1, 16), default=16)
    places.help = "along a side, which masks' colours tell apart; few suit a small network"
    encode.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of the text encoders")
    encode.set_defaults(run=_run_encode)


def _add_sample(actions, looks: Mapping[str, Any]) -> None:
    show = actions.add_parser("sample", help="the tiny system on your prompts: images, their maps, and one page of all", **looks)
    show.add_argument("prompt", nargs="+", help="what to show; each gives one row of the page")
    show.add_argument("--output", type=path, default=Path("spatialweave-intrinsics"), help="folder for the pictures")
    show.add_argument("--schedule", choices=["gaussian", "drop", "constant", "off"], default="gaussian", help="how much the image sees")
    show.add_argument("--seed", type=whole(0, LARGEST_SEED), default=0, help="same seed, same result")
    show.add_argument("--steps", type=whole(1, MOST_STEPS), default=STEPS, help="sampling steps")
    show.add_argument("--guidance", type=number(-1000, 1000), default=GUIDANCE, help="how strongly the prompt steers; 1 is off")
    show.add_argument("--base", type=path, help="another tiny base than the one that ships")
    show.add_argument("--vae", type=path, help="another intrinsic VAE for it")
    show.add_argument("--lora", type=path, help="another intrinsic LoRA for it")
    show.set_defaults(run=_run_sample)


def _run_sample(options: argparse.Namespace) -> None:
    from ..intrinsic_ldm.show import SampleRequest, sample

    others = {name: getattr(options, name) for name in ("base", "vae", "lora") if getattr(options, name)}
    settings = (options.schedule, options.seed, options.steps, options.guidance)
    for line in sample(SampleRequest(options.prompt, options.output, *settings, **others)):
        _say(line)


def _run_build(options: argparse.Namespace) -> None:
    from ..intrinsic_ldm.data.build import WORKFLOW, build_dataset

    summary = build_dataset(
        options.source, options.output, servers=options.server or ["http://127.0.0.1:8188"], size=_read_size(options.size),
        workflow=options.workflow or WORKFLOW, changes=options.set, timeout=options.timeout,
    )  # fmt: skip
    _say(str(summary))


def _run_encode(options: argparse.Namespace) -> None:
    from ..intrinsic_ldm.data.encode import encode_dataset

    summary = encode_dataset(
        options.source, options.output, base=options.base, vae=options.vae, size=_read_size(options.size), batch=options.batch,
        precision=options.precision, places=options.places,
    )  # fmt: skip
    _say(str(summary))


def _say(line: str) -> None:
    """A line on standard output, what its encoding lacks as \\uNNNN."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _read_size(text: str | None) -> tuple[int, int] | None:
    """WxH as (height, width)."""
    from .demo_run import parse_size

    if text is None:
        return None
    width, height = parse_size(text)
    return height, width
