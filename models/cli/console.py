"""The console door: `spatialweave COMMAND`. Parses words, calls one function each; every command imports its own tools late."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .evaluate import add_evaluate
from .help_texts import Formatter, epilog
from .intrinsics import add_intrinsics
from .last_resort import DEBUG, run_command
from .option_types import LARGEST_SEED, MOST_PROCESSES, MOST_STEPS, find_device, number, path, whole

DEMO_PROMPT = "a red ball to the left of a blue box"
WEIGHT_FORMATS = ["bf16", "fp8", "int8", "nvfp4"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 when all of it was done. What goes wrong is one sentence on standard error."""
    chosen = ["spatialweave"]

    def run() -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        options = build_parser().parse_args(arguments)
        chosen.append(options.command)
        options.run(options)

    return run_command(lambda: " ".join(chosen), run)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatialweave", description="Images that know their geometry.", formatter_class=Formatter,
        epilog=f"{DEBUG}=1 in the environment shows the full trace of whatever goes wrong, for a report.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary, add in _COMMANDS:
        command = commands.add_parser(name, help=summary, description=summary, epilog=epilog(name), formatter_class=Formatter)
        add(command)
    return parser


def _add_demo(command: argparse.ArgumentParser) -> None:
    usual = f"by default '{DEMO_PROMPT}', and nothing where a stream is given"
    command.add_argument("prompt", nargs="?", help=f"what to show: plain solids, in rooms or outdoors; {usual}")
    command.add_argument("--output", type=path, default=Path("spatialweave-demo"), help="folder for the files")
    command.add_argument("--image", type=path, help="a picture: its depth is inferred instead (image to depth)")
    command.add_argument("--depth", type=path, help="a depth map (16-bit PNG, EXR or NPZ): a picture is made for it (depth to image)")
    command.add_argument("--channel", help="of an EXR, the one with the depth; by default Z, the one of a layer Depth, or the only one")
    command.add_argument("--size", metavar="WxH", help="pixels of the result; by default 128x128, or as given, at most 128 a side")
    command.add_argument("--seed", type=whole(0, LARGEST_SEED), default=0, help="same seed, same result")
    command.add_argument("--steps", type=whole(1, MOST_STEPS), help="sampling steps; by default the tiny model's own choice for the mode")
    command.add_argument("--guidance", type=number(-1000, 1000), help="how strongly the prompt steers; 1 is off")
    command.add_argument("--log2-alpha", type=number(-20, 20), help="which modality first: above 0 the image, below 0 the depth")
    command.add_argument("--refine", action="store_true", help="make the depth anew from the finished picture: sharper, twice the time")
    command.add_argument("--weights", type=path, help="other weights of the tiny network: a file, or a training run's folder")
    command.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> None:
    from .demo_run import DemoRequest, parse_size, run_demo

    prompt = options.prompt
    if prompt is None:
        prompt = "" if options.image or options.depth else DEMO_PROMPT
    request = DemoRequest(
        prompt=prompt, output=options.output, image=options.image, depth=options.depth, channel=options.channel,
        size=None if options.size is None else parse_size(options.size), seed=options.seed, steps=options.steps,
        guidance=options.guidance, log2_alpha=options.log2_alpha, refine=options.refine, weights=options.weights,
    )  # fmt: skip
    for line in run_demo(request):
        _say(line)


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", type=path, help="a recipe: JSON that decides the whole run, one of those below or your own")
    command.add_argument("--output", type=path, help="folder for checkpoints, log and weights; overrides the recipe's")
    command.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder, bit for bit")
    command.set_defaults(run=_run_train)


def _run_train(options: argparse.Namespace) -> None:
    from ..core.training.loop import run_recipe
    from ..trainers.builders import BUILDERS

    outcome = run_recipe(options.recipe, BUILDERS, output=options.output, resume=options.resume)
    _say(f"{outcome.ending} at step {outcome.step}, loss {outcome.loss:.4f}: {outcome.checkpoint}")


def _add_world(command: argparse.ArgumentParser) -> None:
    command.add_argument("output", type=path, help="folder for the dataset; an unfinished one is completed")
    command.add_argument("--scenes", type=whole(1, 10**8), default=1000, help="how many")
    command.add_argument("--size", type=whole(8, 4096), default=128, help="pixels a side")
    command.add_argument("--seed", type=whole(-(2**63), LARGEST_SEED), default=0, help="another seed, other scenes")
    command.add_argument("--split", choices=["train", "test"], default="train", help="scenes of the two never meet")
    command.add_argument("--kind", choices=["scenes", "edits"], default="scenes", help="pictures, or pairs before and after an instruction")
    command.add_argument("--layout", choices=["shards", "files"], default="shards", help="safetensors shards, or loose PNG files")
    command.add_argument("--normals", action="store_true", help="normals, too")
    command.add_argument("--workers", type=whole(0, MOST_PROCESSES), default=1, help="processes that render")
    command.set_defaults(run=_run_world)


def _run_world(options: argparse.Namespace) -> None:
    from ..world.export.dataset import export_dataset

    summary = export_dataset(
        options.output, count=options.scenes, size=options.size, seed=options.seed, split=options.split, kind=options.kind,
        layout=options.layout, normals=options.normals, workers=options.workers,
    )  # fmt: skip
    _say(str(summary))


def _add_bench(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", choices=["kernels"], help="what to measure: the attention op against what one would write instead")
    command.add_argument("--json", type=path, help="write the times here, too")
    command.add_argument("--plot", type=path, help="write a picture of the ratios here (PNG)")
    command.add_argument("--device", help="cuda, cuda:1 or cpu; by default a GPU where there is one")
    rounds = command.add_argument("--rounds", type=whole(1, 10**6))
    rounds.help = "runs of each rival in each half of the run; by default 25 on a GPU, 12 elsewhere"
    seconds = command.add_argument("--seconds", type=number(0.001, 10**6))
    seconds.help = "for the rounds of one weight, mode and half: as many as fit, at least 3"
    command.add_argument("--shape", action="append", help="only this shape, by its name in the table; may be repeated")
    command.add_argument("--weight", action="append", help="only this weight: zero, mixed, one or 'half zero'; may be repeated")
    flex = command.add_argument("--flex", choices=["no", "default", "max-autotune"], default="max-autotune")
    flex.help = "FlexAttention on a GPU: not at all, compiled once for a shape, or a second time with max-autotune, which takes minutes"
    command.set_defaults(run=_run_bench)


def _run_bench(options: argparse.Namespace) -> None:
    from ...kernels.bench.report import as_lines, write_record
    from ...kernels.bench.results import Run
    from ...kernels.bench.run import SHAPES, WEIGHTS, bench

    def keep(run: Run) -> None:
        if options.json:  # after every weight, so that a run that is stopped leaves what it has
            write_record(options.json, run)

    found = bench(
        find_device(options.device), rounds=options.rounds, seconds=options.seconds, shapes=tuple(options.shape or SHAPES),
        weights=tuple(options.weight or WEIGHTS), flex=options.flex, after=keep,
    )  # fmt: skip
    for line in as_lines(found):
        _say(line)
    if options.plot:
        from ...kernels.bench.plot import draw

        draw(found).save(options.plot, format="PNG")


def _add_doctor(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_run_doctor)


def _run_doctor(options: argparse.Namespace) -> None:
    from ...kernels.doctor import report

    for line in report():
        _say(line)


def _add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=path, help="a Modality Forcing network in bfloat16, float16 or float32")
    command.add_argument("target", type=path, help="the file to write; it must not exist")
    command.add_argument("--format", choices=WEIGHT_FORMATS, required=True, help="precision of the blocks; the depth head stays float32")
    command.set_defaults(run=_run_convert)


def _run_convert(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..modality_forcing.quantize import convert_network

    with tqdm(unit="B", unit_scale=True, desc=options.format, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        written = convert_network(options.source, options.target, options.format, show)
    _say(f"{written}: {written.stat().st_size:,} bytes, from {options.source.stat().st_size:,}")


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", nargs="?", choices=["list", "verify", "download"], default="list", help="what to do")
    command.add_argument("name", nargs="?", help="one file by its name in the list; by default all, but a download names one")
    command.add_argument("--models", type=path, action="append", help="ComfyUI's models folder; may be repeated, downloads go to the first")
    command.set_defaults(run=_run_weights)


def _run_weights(options: argparse.Namespace) -> None:
    from .published import run

    run(options.action, options.name, options.models or [], _say)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


_COMMANDS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None]], ...] = (
    ("demo", "Make an image and its depth with the tiny model that ships in the pack, and write them in every format.", _add_demo),
    ("train", "Train a network by a recipe.", _add_train),
    ("evaluate", "Measure a model on the held-out scenes of the procedural world.", add_evaluate),
    ("world", "Write a dataset of the procedural world: pictures with exact depth, normals, segments, lines and captions.", _add_world),
    ("intrinsics", "Prepare datasets for I-LDM: pictures with depth, normals, segments and lines; their latents.", add_intrinsics),
    ("bench", "Time the attention op against its rivals on this machine, after checking its numbers.", _add_bench),
    ("convert", "Write a Modality Forcing network in fewer bits, for ComfyUI: in a few hundred megabytes of memory.", _add_convert),
    ("weights", "List published weights with size, SHA-256, licence, folder; verify what is there; fetch one when told to.", _add_weights),
    ("doctor", "Say which backends of the attention op run on this machine, and why others do not.", _add_doctor),
)


if __name__ == "__main__":
    sys.exit(main())
