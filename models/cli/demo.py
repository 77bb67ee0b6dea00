"""The command `spatialweave demo`: its options, and the request that they make."""

from __future__ import annotations

import argparse
from pathlib import Path

from .option_types import LARGEST_SEED, MOST_STEPS, number, parse_size, path, whole
from .output_lines import write_line

CANDIDATES = 8
DEMO_PROMPT = "a purple cone to the left of an orange ball on grass"


def add_demo(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    usual = f"by default '{DEMO_PROMPT}', and empty with --image or --depth"
    option("prompt", nargs="?", help=f"what to show: plain solids, in rooms or outdoors; {usual}")
    option("--output", type=path, default=Path("spatialweave-demo"), help="folder for the files")
    option("--image", type=path, help="an image file, whose depth is inferred (image to depth)")
    depth = option("--depth", type=path)
    depth.help = "a depth map (16-bit PNG, EXR or NPZ), for which an image is generated (depth to image)"
    channel = option("--channel")
    channel.help = "the depth channel of an EXR; by default Z, the one of a layer Depth, or the only one"
    size = option("--size", metavar="WxH")
    size.help = "pixels of the result; by default 128x128, or the input's size, at most 128 a side"
    full_size = option("--full-size", action="store_true")
    full_size.help = "with --image: bring the depth to the image's own size, guided by the image"
    option("--seed", type=whole(0, LARGEST_SEED), default=0, help="same seed, same result")
    steps = option("--steps", type=whole(1, MOST_STEPS))
    steps.help = "sampling steps; by default the tiny model's default for the mode"
    option("--guidance", type=number(-1000, 1000), help="scale of classifier-free guidance; 1 is off")
    depth_guidance = option("--depth-guidance", type=number(-1000, 1000))
    depth_guidance.help = "guidance of the depth apart from the image's"
    log2_alpha = option("--log2-alpha", type=number(-20, 20))
    log2_alpha.help = "which modality is denoised first: above 0 the image, below 0 the depth"
    refine = option("--refine", action="store_true")
    refine.help = "infer the depth again from the finished image: sharper, twice the time"
    candidates = option("--candidates", type=whole(1, 64))
    candidates.help = (
        "how many to sample in one batch for the prompt, of which the world's judges keep the best; by "
        f"default {CANDIDATES}, and 1 with --image or --depth"
    )
    keep = option("--keep-candidates", action="store_true")
    keep.help = "write all candidates and their scores into the folder candidates"
    weights = option("--weights", type=path)
    weights.help = "other weights of the tiny network: a file, or a training run's folder"
    command.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> None:
    from .demo_sampling import DemoRequest, run_demo

    prompt = options.prompt
    if prompt is None:
        prompt = "" if options.image or options.depth else DEMO_PROMPT
    request = DemoRequest(
        prompt=prompt,
        output=options.output,
        image=options.image,
        depth=options.depth,
        channel=options.channel,
        size=None if options.size is None else parse_size(options.size),
        full_size=options.full_size,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        depth_guidance=options.depth_guidance,
        log2_alpha=options.log2_alpha,
        refine=options.refine,
        candidates=options.candidates or (1 if options.image or options.depth else CANDIDATES),
        keep_candidates=options.keep_candidates,
        weights=options.weights,
    )
    for line in run_demo(request):
        write_line(line)
