"""The command `spatialweave evaluate`: what may be asked of each system's evaluation, and what is done with its figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..intrinsic_ldm.config import GUIDANCE, PRECISIONS, STEPS
from .option_types import LARGEST_SEED, MOST_PROCESSES, MOST_STEPS, find_device, number, path, whole


def add_evaluate(command: argparse.ArgumentParser) -> None:
    systems = command.add_subparsers(dest="system", metavar="SYSTEM", required=True)
    looks = {"formatter_class": command.formatter_class}
    joint = systems.add_parser("modality_forcing", help="depth and captions of Modality Forcing", **looks)
    joint.add_argument("--preset", default="tiny", help="the weights: a shipped preset")
    joint.add_argument("--weights", type=path, help="other weights: a file, or a training run's folder")
    joint.add_argument("--json", type=path, help="write the figures here, too")
    joint.add_argument("--seed", type=whole(0, LARGEST_SEED), default=0, help="of the sampling noise; the held-out scenes never change")
    joint.add_argument("--n", type=whole(1, 10**6), default=128, help="held-out scenes a figure is measured on")
    joint.set_defaults(run=_run_evaluate)
    intrinsic = systems.add_parser("intrinsic_ldm", help="co-generated intrinsics: the weight schedules against the base alone", **looks)
    intrinsic.add_argument("--json", type=path, help="write the report here, too")
    intrinsic.add_argument("--markdown", type=path, help="write the report as a page here, too")
    intrinsic.add_argument("--n", type=whole(2, 10**6), default=512, help="held-out captions")
    intrinsic.add_argument("--seeds", type=whole(1, 10**4), default=3, help="pictures of each caption")
    intrinsic.add_argument("--steps", type=whole(1, MOST_STEPS), default=STEPS, help="sampling steps")
    intrinsic.add_argument("--guidance", type=number(-1000, 1000), default=GUIDANCE, help="how strongly the prompt steers; 1 is off")
    intrinsic.add_argument("--batch", type=whole(1, 4096), default=16, help="pictures at a time")
    intrinsic.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of the networks that make pictures")
    intrinsic.add_argument("--base", type=path, help="another tiny base than the one that ships")
    intrinsic.add_argument("--vae", type=path, help="another intrinsic VAE than the one that ships")
    intrinsic.add_argument("--lora", type=path, help="another intrinsic LoRA than the one that ships")
    intrinsic.add_argument("--ablation", type=path, help="a LoRA trained without the image domain, to be measured beside it")
    intrinsic.add_argument("--predictor", type=path, help="other weights of the predictor that judges maps")
    intrinsic.add_argument("--work", type=path, default=Path("runs/evaluate_intrinsic_ldm"), help="folder for parts; a rerun goes on there")
    intrinsic.add_argument("--device", default="cpu", help="where to sample: cpu, cuda")
    processes = intrinsic.add_argument("--processes", type=whole(1, MOST_PROCESSES), default=1)
    processes.help = "that share the work; times then are of pictures made side by side"
    intrinsic.set_defaults(run=_run_evaluate_intrinsic)


def _run_evaluate(options: argparse.Namespace) -> None:
    from ..benchmarks.modality_forcing import evaluate_modality_forcing, write_figures

    figures = evaluate_modality_forcing(options.preset, weights=options.weights, seed=options.seed, count=options.n)
    sys.stdout.writelines(f"{name:32s} {value}\n" for name, value in figures.items())
    if options.json:
        write_figures(options.json, figures)


def _run_evaluate_intrinsic(options: argparse.Namespace) -> None:
    from ..benchmarks.intrinsic_evidence import as_lines, write_page
    from ..benchmarks.intrinsic_ldm import Files, Plan, evaluate_intrinsic_ldm
    from ..benchmarks.modality_forcing import write_figures
    from ..core.export.files import write_file

    others = {name: getattr(options, name) for name in ("base", "vae", "lora", "ablation", "predictor") if getattr(options, name)}
    plan = Plan(options.n, options.seeds, options.steps, options.guidance, options.batch, precision=options.precision)
    device = find_device(options.device)
    report = evaluate_intrinsic_ldm(plan, Files(**others), work=options.work, device=device, processes=options.processes)
    sys.stdout.writelines(f"{line}\n" for line in as_lines(report))
    if options.json:
        write_figures(options.json, report)
    if options.markdown:
        write_file(options.markdown, write_page(report).encode())
