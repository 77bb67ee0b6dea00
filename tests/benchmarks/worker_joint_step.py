"""A step of the joint network against itself without what a step saves: position tables kept between steps,
query norms with their scale in one pass, and a last single block that leaves out the text.

    python tests/benchmarks/worker_joint_step.py [--rounds 15] [--side 128] [--guidance 4]

The shipped tiny model, one thread, processor time; both ways in every round; medians, the median of the
ratios, and whether the results are equal in bits. The last rows are one call with a batch of two against two
calls, and what an interval of guidance leaves of a run.
"""

import argparse
import contextlib
import statistics
import sys
import time
from unittest import mock

import torch
import torch.nn.functional as F

from spatialweave.models.core.layers import positions
from spatialweave.models.modality_forcing import network as networks
from spatialweave.models.modality_forcing.pipeline import ModalityForcingPipeline
from spatialweave.models.modality_forcing.sampling import draw_noise, make_schedule, sample

STEPS = 2


def norm_in_passes(self, x):
    return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype) * self.scale.to(x)


def all_tokens(self, x, text, rows, table, attend):
    for block in self.single_blocks:
        x = block(x, rows, table, attend)
    return x[:, text:]


@contextlib.contextmanager
def as_before():
    with (
        mock.patch.object(networks, "kept_joint_table", positions.joint_table),
        mock.patch.object(networks.RMSScale, "forward", norm_in_passes),
        mock.patch.object(networks.ModalityForcing, "run_single_blocks", all_tokens),
    ):
        yield


def seconds(run):
    began = time.process_time()
    out = run()
    return time.process_time() - began, out


def compare(first, second, rounds):
    """(median of the first, of the second, of first / second, equal in bits)."""
    times = []
    for number in range(rounds + 1):
        pair = [seconds(run) for run in ((first, second) if number % 2 else (second, first))]
        (a, x), (b, y) = pair if number % 2 else reversed(pair)
        if number:
            times.append((a, b))
    same = all(torch.equal(one, other) for one, other in zip(x, y, strict=True))
    columns = [statistics.median(column) for column in zip(*times)]
    return *columns, statistics.median(a / b for a, b in times), same


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--guidance", type=float, default=4.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = ModalityForcingPipeline.from_preset("tiny")
    network, side, patch = pipeline.network, options.side, pipeline.config.depth_patch
    shapes = (1, pipeline.config.in_channels, side // patch, side // patch), (1, 1, side, side)
    context, empty = pipeline.encode_text(["a red ball"]), pipeline.encode_text([""])
    noise, schedule = draw_noise(0, *shapes), make_schedule("joint", STEPS)

    def guided(interval=(1.0, 0.0)):
        given = {"context": context, "null_context": empty, "guidance": options.guidance}
        return sample(network, *noise, schedule, **given, guidance_interval=interval)

    def before():
        with as_before():
            return guided()

    def joined():
        at = torch.full((2,), 0.5)
        out = network(*(x.expand(2, *x.shape[1:]) for x in noise), torch.cat([context, empty]), at, at)
        return [part[:1] for part in out]

    def apart():
        at = torch.full((1,), 0.5)
        prompted = network(*noise, context, at, at)
        network(*noise, empty, at, at)
        return prompted

    with torch.inference_mode():
        for name, first, second in (
            ("a step as before / now", before, guided),
            ("two calls / one of two rows", apart, joined),
            ("guidance in all steps / in half", guided, lambda: guided((1.0, 0.9))),
        ):
            a, b, ratio, same = compare(first, second, options.rounds)
            sys.stdout.write(
                f"{name:36s} {a * 1e3:8.1f} {b * 1e3:8.1f} ms   ratio {ratio:.3f}   equal in bits: {same}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
