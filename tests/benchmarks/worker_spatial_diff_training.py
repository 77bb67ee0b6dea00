"""What a step of SpatialDiff's training takes: processor time and memory, of the tiny system and of a small
editor of Flux-Kontext's shape.

    python tests/benchmarks/worker_spatial_diff_training.py [--only NAME ...] [--rounds 3] [--side 512]
        [--json FILE]

Random weights and a random batch; forward and backward pass and AdamW's step, in float32 on the CPU, one
thread, processor time. `tiny`: the shipped sizes and the recipes' batch. `kontext`: two single blocks and a
double one of width 256, 512 words and SIDE x SIDE pixels with one reference, at 512 pixels 1024 tokens
each of target, reference and geometry; a batch of 1, a LoRA of rank 64. Memory is the peak of the
tensors that a step makes and that are alive at once, beside the weights. Every trained weight must have got a
gradient, and the error of the batch must fall, before a time is taken. Beside them stands what a run is told
before it starts.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
RANK = {"tiny": 16, "kontext": 64}
BATCH = {"tiny": 64, "kontext": 1}
WORDS, VGGT_TOKENS, WARM_STEPS = 512, 1374, 3


def load(path):
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(f"spatialweave_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METERS = load(HERE / "meters.py")


def sizes_of(name, side):
    """(editor's config, connector's config), the latter's grid for an image of `side` pixels."""
    from spatialweave.models.spatial_diff.config import find_preset
    from spatialweave.models.spatial_diff.flux import PRESETS

    if name == "tiny":
        return PRESETS["tiny"], find_preset("tiny")
    editor = replace(
        PRESETS["kontext"], hidden_size=256, num_heads=4, axes_dim=(16, 24, 24), depth=1,
        depth_single_blocks=2,
    )  # fmt: skip
    grid = (side // 16, side // 16)
    return editor, replace(find_preset("kontext"), width=256, heads=4, head_width=64, grid=grid)


def make_batch(name, editor, connector, side):
    """Random tensors as the encoded folders hold them."""
    generator, count = torch.Generator().manual_seed(1), BATCH[name]
    cells = 8 if name == "tiny" else side // 8  # of the latent

    def draw(*shape):
        return torch.randn(count, *shape, generator=generator)

    batch = {key: draw(editor.in_channels, cells, cells) for key in ("latent", "reference")}
    if name == "tiny":
        batch["tokens"] = torch.randint(2, 30, (count, 16), generator=generator)
        batch["geometry"] = draw(69, connector.geometry_width)
    else:
        batch |= {"context": draw(WORDS, editor.context_in_dim), "pooled": draw(editor.vec_in_dim)}
        batch["geometry"] = draw(VGGT_TOKENS, connector.geometry_width)
    grid = [rows * connector.depth_patch for rows in connector.grid]
    return batch | {"depth_latent": draw(connector.depth_channels, *grid)}


def make_step(name, stage, checkpointing, side):
    """(a function that trains one step and gives its error, the trained parts, what a run is told)."""
    from spatialweave.models.spatial_diff.editor_files import new_text_encoder
    from spatialweave.models.spatial_diff.flux import Flux, run_block
    from spatialweave.models.spatial_diff.lora import LowRankLayers
    from spatialweave.models.spatial_diff.network import GeometryConnector, LatentDepthHead
    from spatialweave.models.spatial_diff.training import connector as stages
    from spatialweave.models.spatial_diff.training import estimate

    torch.manual_seed(0)
    config, tokens = sizes_of(name, side)
    network, with_lora = Flux(config), stage == "lora"
    text = new_text_encoder(config.context_in_dim) if name == "tiny" else None
    generator = torch.Generator().manual_seed(2)
    lora = LowRankLayers(network, RANK[name], RANK[name], generator) if with_lora else None
    parts = stages.TrainedParts(
        GeometryConnector(tokens), LatentDepthHead(tokens) if with_lora else None, lora
    )
    frozen = stages.FrozenEditor(network, text, None)
    if lora is not None:
        lora.attach(network)
    loss = partial(
        stages.stage_loss, editor=frozen, settings=stages.StageLoss(depth="latent" if with_lora else "none"),
        run=stages.checkpointed if checkpointing else run_block,
    )  # fmt: skip
    batch = make_batch(name, config, tokens, side)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-3)

    def step(seed=3):
        optimizer.zero_grad(set_to_none=True)
        value, _ = loss(parts, batch, torch.Generator().manual_seed(seed))
        value.backward()
        optimizer.step()
        return float(value.detach())

    sample = {key: value[0] for key, value in batch.items()}
    length = estimate.count_tokens(config, sample, tokens.queries)
    told = estimate.estimate(
        network, config, parts, batch=BATCH[name], tokens=length, checkpointing=checkpointing,
        device=torch.device("cpu"), connector=tokens, geometry_tokens=len(sample["geometry"]),
    )  # fmt: skip
    return step, parts, told, length


def measure(name, stage, checkpointing, options):
    """A row of figures of one system and stage."""
    step, parts, told, length = make_step(name, stage, checkpointing, options.side)
    errors = [step() for _ in range(WARM_STEPS)]  # of one noise: only the weights change
    lacking = [key for key, value in parts.named_parameters() if value.grad is None]
    if lacking or not errors[-1] < errors[0]:
        raise SystemExit(f"{name}, {stage}: no gradient for {lacking}, errors {errors}: no time is taken.")
    meter = METERS.Processor()
    seconds = [meter.seconds(step) for _ in range(options.rounds)]
    return {
        "name": name, "stage": stage, "checkpointing": checkpointing, "batch": BATCH[name], "length": length,
        "trained_parameters": sum(value.numel() for value in parts.parameters()),
        "seconds": round(statistics.median(seconds), 3),
        "steps_per_second": round(1 / statistics.median(seconds), 3),
        "least": round(min(seconds), 3), "greatest": round(max(seconds), 3),
        "peak_mib": round(meter.peak(step), 1),
        "told_activations_mib": round(told.activations * 1e9 / 2**20, 1),
        "told_seconds": round(told.seconds, 3),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(BATCH), default=tuple(BATCH))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=512, help="pixels of kontext's images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {"torch": torch.__version__, "side": options.side, "rounds": options.rounds, "rows": []}
    for name in options.only:
        for stage in ("connector", "lora"):
            for checkpointing in (False,) if name == "tiny" else (False, True):
                figures["rows"].append(measure(name, stage, checkpointing, options))
                if options.json:
                    options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
