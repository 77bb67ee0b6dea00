"""What geometry tokens cost: a sampling step with them against the base's own, by the length of the sequence.

    python tests/benchmarks/worker_spatial_diff_cost.py COMFYUI PACK [--sides 256 384 512 640] [--rounds 3]
        [--json FILE]

A small Flux of core's own class with random weights, one reference of the edited image's size, 512 words,
1024 tokens, cfg 1, through core's KSampler on the CPU in float32, one thread, processor time; base and tokens
take turns. Beside the measured ratio stands the computed one, of the multiplications of the transformer
blocks: at the small model's width, and at Flux-Kontext's, to which the measurement lends its credibility.
Memory is the peak of the tensors alive at once. Before a time is taken strength 0 must be the base, bit for
bit.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORDS, STEPS, PIXELS = 512, 1, 16  # pixels a token of Flux has on a side
KONTEXT_WIDTH, MLP = 3072, 4.0


def load(path):
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(f"spatialweave_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METERS = load(HERE / "meters.py")


def start(comfyui, pack):
    """tests/nodes/worker.py, whose way into ComfyUI this is; the small editors of the nodes' tests."""
    worker = load(HERE.parent / "nodes" / "worker.py")
    sys.argv[1:] = [comfyui, pack]  # where the worker's `ours` looks for the pack
    worker.start(comfyui, pack)
    return worker.load_file("inside_spatial_diff.py")


def multiplications(length, width):
    """Of one transformer block on so many rows, double or single: linear layers, and attention."""
    return length * width * width * (4 + 2 * MLP) + 2 * length * length * width


def computed_ratio(length, tokens, width):
    """The step with tokens by the step without; text, target and reference are in `length`."""
    return multiplications(length + tokens, width) / multiplications(length, width)


def make_runs(inside, side, width, depth, grid):
    """Base and tokens at a side in pixels: a function each that samples STEPS steps."""
    import torch

    heads = width // 64
    model = inside.make(
        "flux", hidden_size=width, num_heads=heads, depth=depth, depth_single_blocks=2 * depth,
        axes_dim=[16, 24, 24],
    )  # fmt: skip
    latent = torch.zeros(1, 16, side // 8, side // 8)
    values = {
        "guidance": 3.5, "pooled_output": inside.noise(1, 24, seed=3),
        "reference_latents": [inside.noise(*latent.shape, seed=10)],
    }  # fmt: skip
    positive = [[inside.noise(1, WORDS, 48, seed=1), values]]
    using = inside.connector(width=width, grid=list(grid))
    geometry = inside.geometry(size=(side, side))

    def sampler(chosen):
        return lambda: inside.core.common_ksampler(
            chosen, 5, STEPS, 1.0, "euler", "simple", positive, positive, {"samples": latent}
        )[0]["samples"]

    give = {"tokens": geometry, "using": using}
    none = sampler(inside.with_tokens(model, strength=0.0, **give))
    return {"base": sampler(model), "tokens": sampler(inside.with_tokens(model, **give)), "none": none}


def measure(inside, side, options):
    """A row of figures of one size."""
    import torch

    grid, meter = (options.grid, options.grid), METERS.Processor()
    runs = make_runs(inside, side, options.width, options.depth, grid)
    base = runs["base"]()
    if not torch.equal(runs.pop("none")(), base) or torch.equal(runs["tokens"](), base):
        raise SystemExit("Strength 0 is not the base, or the tokens change nothing: no time is taken.")
    seconds = {name: [] for name in runs}
    for turn in range(options.rounds):
        for name in sorted(runs, reverse=bool(turn % 2)):
            seconds[name].append(meter.seconds(runs[name]) / STEPS)
    ratios = [tokens / base for tokens, base in zip(seconds["tokens"], seconds["base"], strict=True)]
    tokens, length = grid[0] * grid[1], WORDS + 2 * (side // PIXELS) ** 2
    return {
        "side": side, "length": length, "tokens": tokens,
        **{f"{name}_seconds": round(statistics.median(values), 3) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 3), "least": round(min(ratios), 3),
        "greatest": round(max(ratios), 3),
        "computed": round(computed_ratio(length, tokens, options.width), 3),
        "computed_kontext": round(computed_ratio(length, tokens, KONTEXT_WIDTH), 3),
        **{f"{name}_peak_mib": round(meter.peak(run), 1) for name, run in runs.items()},
    }  # fmt: skip


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui")
    parser.add_argument("pack")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 384, 512, 640])
    parser.add_argument("--grid", type=int, default=32, help="tokens on a side")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=1, help="double blocks, and half as many as single ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def run(options, inside):
    """The figures of every side asked for, on standard output and in the file."""
    import torch

    figures = {
        "torch": torch.__version__, "width": options.width, "blocks": 3 * options.depth, "words": WORDS,
        "rounds": options.rounds, "rows": [],
    }  # fmt: skip
    for side in options.sides:
        with torch.inference_mode():
            figures["rows"].append(measure(inside, side, options))
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(json.dumps(figures) + "\n")


def run_inside(arguments):
    """The same in a ComfyUI that runs already, whose worker calls this; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(parse(arguments), sys.modules["__main__"].load_file("inside_spatial_diff.py"))
    return printed.getvalue()


def main():
    options = parse(sys.argv[1:])
    run(options, start(options.comfyui, options.pack))


if __name__ == "__main__":
    main()
