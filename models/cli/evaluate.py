"""The command `spatialweave evaluate`: options and output of each system's evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..intrinsic_ldm.config import GUIDANCE, PRECISIONS, STEPS
from .option_types import LARGEST_SEED, MOST_PROCESSES, MOST_STEPS, check_device, number, path, whole
from .output_lines import write_line


def add_evaluate(command: argparse.ArgumentParser) -> None:
    systems = command.add_subparsers(dest="system", metavar="SYSTEM", required=True)
    looks = {"formatter_class": command.formatter_class}
    _add_modality_forcing(systems, looks)
    _add_intrinsic_ldm(systems, looks)
    _add_vggt(systems, looks)
    _add_joyai_edit(systems, looks)
    _add_spatial_fusion(systems, looks)
    _add_spatial_transformer(systems, looks)
    _add_spatial_diff(systems, looks)


def _add_modality_forcing(systems, looks: Mapping[str, Any]) -> None:
    joint = systems.add_parser("modality_forcing", help="depth and captions of Modality Forcing", **looks)
    option = joint.add_argument
    option("--preset", default="tiny", help="the weights: a shipped preset")
    option("--weights", type=path, help="other weights: a file, or a training run's folder")
    option("--json", type=path, help="also write the figures to this file")
    seed = option("--seed", type=whole(0, LARGEST_SEED), default=0)
    seed.help = "of the sampling noise"
    option("--n", type=whole(1, 10**6), default=256, help="number of held-out scenes")
    scenes = option("--scenes-seed", type=whole(0, LARGEST_SEED), default=0)
    scenes.help = "which held-out scenes; choose settings on others than those you report"
    joint.set_defaults(run=_run_modality_forcing)


def _add_intrinsic_ldm(systems, looks: Mapping[str, Any]) -> None:
    summary = "co-generated intrinsics: the weight schedules against the base alone"
    intrinsic = systems.add_parser("intrinsic_ldm", help=summary, **looks)
    option = intrinsic.add_argument
    option("--json", type=path, help="also write the report to this file")
    option("--markdown", type=path, help="also write the report to this file, as Markdown")
    option("--n", type=whole(2, 10**6), default=512, help="number of held-out captions")
    option("--seeds", type=whole(1, 10**4), default=3, help="images of each caption")
    option("--steps", type=whole(1, MOST_STEPS), default=STEPS, help="sampling steps")
    guidance = option("--guidance", type=number(-1000, 1000), default=GUIDANCE)
    guidance.help = "scale of classifier-free guidance; 1 is off"
    option("--batch", type=whole(1, 4096), default=16, help="images generated at once")
    option("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="dtype of the generating networks")
    option("--base", type=path, help="another tiny base than the shipped one")
    option("--vae", type=path, help="another intrinsic VAE than the shipped one")
    option("--lora", type=path, help="another intrinsic LoRA than the shipped one")
    option("--ablation", type=path, help="a LoRA trained without the image domain, to be evaluated beside it")
    option("--predictor", type=path, help="other weights of the predictor that judges maps")
    work = option("--work", type=path, default=Path("runs/evaluate_intrinsic_ldm"))
    work.help = "folder for partial results; a rerun continues from them"
    option("--device", default="cpu", help="where to sample: cpu, cuda")
    processes = option("--processes", type=whole(1, MOST_PROCESSES), default=1)
    processes.help = "processes that share the work; times are then of images generated in parallel"
    intrinsic.set_defaults(run=_run_intrinsic_ldm)


def _add_vggt(systems, looks: Mapping[str, Any]) -> None:
    summary = "depth and cameras of VGGT on scenes seen by 2 to 4 cameras"
    views = systems.add_parser("vggt", help=summary, **looks)
    option = views.add_argument
    option("--weights", type=path, help="a VGGT file; by default the shipped tiny network")
    option("--json", type=path, help="also write the figures to this file")
    option("--n", type=whole(1, 10**6), default=64, help="held-out scenes for each number of views")
    size = option("--size", type=whole(0, 2048), default=0)
    size.help = "pixels a side of the renders; 0 is the size the network was trained at"
    views.set_defaults(run=_run_vggt)


def _add_joyai_edit(systems, looks: Mapping[str, Any]) -> None:
    summary = "the check of edited images, on exact edits of the world; the framing of edits"
    edits = systems.add_parser("joyai_edit", help=summary, **looks)
    option = edits.add_argument
    option("--json", type=path, help="also write the figures to this file")
    option("--n", type=whole(3, 10**6), default=200, help="held-out edits, a third of each kind")
    seed = option("--seed", type=whole(0, LARGEST_SEED), default=2026)
    seed.help = "which held-out edits; choose thresholds on others than those you report"
    edits.set_defaults(run=_run_joyai_edit)


def _add_spatial_diff(systems, looks: Mapping[str, Any]) -> None:
    summary = "objects that move where an instruction says: the ladder of SpatialDiff's tiny system"
    moves = systems.add_parser("spatial_diff", help=summary, **looks)
    option = moves.add_argument
    option("--json", type=path, help="also write the figures to this file")
    option("--n", type=whole(3, 10**6), default=500, help="held-out edits, a third of each stratum")
    option("--seeds", type=whole(1, 10**4), default=3, help="images of each edit")
    option("--steps", type=whole(1, MOST_STEPS), help="sampling steps; by default the tiny editor's")
    guidance = option("--guidance", type=number(-1000, 1000))
    guidance.help = "scale of classifier-free guidance; by default the tiny editor's"
    option("--batch", type=whole(1, 4096), default=16, help="images sampled at once")
    option("--weights", type=path, help="another folder of the tiny system's files than the shipped one")
    runs = option("--runs", type=path)
    runs.help = "folder with the output folders lora, tokens, eds and lds of the rungs' training runs"
    work = option("--work", type=path, default=Path("runs/evaluate_spatial_diff"))
    work.help = "folder for partial results; a rerun continues from them"
    option("--device", default="cpu", help="where to sample: cpu, cuda")
    moves.set_defaults(run=_run_spatial_diff)


def _run_spatial_diff(options: argparse.Namespace) -> None:
    from ..benchmarks.report import write_figures
    from ..benchmarks.spatial_diff import LadderPlan, evaluate_spatial_diff

    plan = LadderPlan(options.n, options.seeds, options.steps, options.guidance, options.batch)
    device = check_device(options.device)
    folders = {"weights": options.weights, "runs": options.runs, "work": options.work}
    figures = evaluate_spatial_diff(plan, **folders, device=device)
    for name, value in figures.items():
        write_line(f"{name:44s} {value}")
    if options.json:
        write_figures(options.json, figures)


def _add_spatial_fusion(systems, looks: Mapping[str, Any]) -> None:
    summary = "images of the tiny base with and without a depth adapter, on held-out scenes"
    fusion = systems.add_parser("spatial_fusion", help=summary, **looks)
    option = fusion.add_argument
    option("--weights", type=path, help="an adapter of the tiny base; by default the shipped one")
    option("--json", type=path, help="also write the figures to this file")
    option("--n", type=whole(2, 10**6), default=128, help="held-out scenes")
    option("--seeds", type=whole(1, 1000), default=1, help="samplings of each scene")
    strength = option("--strength", type=number(-10, 10), default=2.0)
    strength.help = "factor on what the adapter adds; the tiny one is at its best at about 2"
    end = option("--end", type=number(0, 1), default=0.5)
    end.help = "part of the sampling until which it is added; the tiny adapter was trained for 0.5"
    option("--steps", type=whole(1, MOST_STEPS), default=STEPS, help="steps of a sampling")
    fusion.set_defaults(run=_run_spatial_fusion)


def _run_spatial_fusion(options: argparse.Namespace) -> None:
    from ..benchmarks.report import write_figures
    from ..benchmarks.spatial_fusion import AdapterPlan, evaluate_depth_adapter

    plan = AdapterPlan(options.n, options.seeds, options.strength, options.end, options.steps)
    figures = evaluate_depth_adapter(options.weights, plan=plan)
    for name, variant in figures["variants"].items():
        for key, value in variant.items():
            write_line(f"{name + '.' + key:32s} {value}")
    write_line(f"{'overhead':32s} {figures['overhead']:.4f}")
    if options.json:
        write_figures(options.json, figures)


def _add_spatial_transformer(systems, looks: Mapping[str, Any]) -> None:
    summary = "depth that the tiny spatial transformer infers from captions of held-out scenes"
    inferring = systems.add_parser("spatial_transformer", help=summary, **looks)
    option = inferring.add_argument
    weights = option("--weights", type=path, required=True)
    weights.help = "the file that recipe spatial_transformer_tiny writes"
    language = option("--language", type=path, required=True)
    language.help = "the file of the language model that it was trained beside, which caption_lm_tiny writes"
    option("--json", type=path, help="also write the figures to this file")
    option("--n", type=whole(2, 10**6), default=500, help="held-out scenes")
    option("--seeds", type=whole(1, 1000), default=3, help="captions of each scene")
    inferring.set_defaults(run=_run_spatial_transformer)


def _run_spatial_transformer(options: argparse.Namespace) -> None:
    from ..benchmarks.report import write_figures
    from ..benchmarks.spatial_transformer import InferencePlan, evaluate_spatial_transformer

    plan = InferencePlan(options.n, options.seeds)
    figures = evaluate_spatial_transformer(options.weights, options.language, plan=plan)
    for name, variant in figures["variants"].items():
        for key, value in variant.items():
            write_line(f"{name + '.' + key:40s} {value}")
    if options.json:
        write_figures(options.json, figures)


def _run_joyai_edit(options: argparse.Namespace) -> None:
    from ..benchmarks.joyai_edit import evaluate_edit_check
    from ..benchmarks.report import write_figures

    figures = evaluate_edit_check(options.n, seed=options.seed)
    for name, value in figures.items():
        write_line(f"{name:40s} {value}")
    if options.json:
        write_figures(options.json, figures)


def _run_vggt(options: argparse.Namespace) -> None:
    from ..benchmarks.report import write_figures
    from ..benchmarks.vggt import evaluate_vggt

    figures = evaluate_vggt(options.weights, count=options.n, size=options.size)
    for name, value in figures.items():
        write_line(f"{name:32s} {value}")
    if options.json:
        write_figures(options.json, figures)


def _run_modality_forcing(options: argparse.Namespace) -> None:
    from ..benchmarks.modality_forcing import evaluate_modality_forcing
    from ..benchmarks.report import write_figures

    settings = {"weights": options.weights, "seed": options.seed, "scenes_seed": options.scenes_seed}
    figures = evaluate_modality_forcing(options.preset, count=options.n, **settings)
    for name, value in figures.items():
        write_line(f"{name:32s} {value}")
    if options.json:
        write_figures(options.json, figures)


def _run_intrinsic_ldm(options: argparse.Namespace) -> None:
    from ..benchmarks.intrinsic_ldm import Files, Plan, evaluate_intrinsic_ldm
    from ..benchmarks.intrinsic_ldm_report import as_lines, write_page
    from ..benchmarks.report import write_figures
    from ..core.export.files import write_file

    names = ("base", "vae", "lora", "ablation", "predictor")
    others = {name: getattr(options, name) for name in names if getattr(options, name)}
    numbers = (options.n, options.seeds, options.steps, options.guidance, options.batch)
    plan = Plan(*numbers, precision=options.precision)
    device = check_device(options.device)
    settings = {"work": options.work, "device": device, "processes": options.processes}
    report = evaluate_intrinsic_ldm(plan, Files(**others), **settings)
    for line in as_lines(report):
        write_line(line)
    if options.json:
        write_figures(options.json, report)
    if options.markdown:
        write_file(options.markdown, write_page(report).encode())
