"""How well the tiny model's joint runs follow their captions at several guidances:
what its default is chosen by.

    python tests/benchmarks/worker_guidance.py 4 6 8 10 [--interval 1 0.5]

Agreement by kind of fact, on 64 scenes that no evaluation uses; --n for others.

One batch of captions has one seed; 25 steps. About a minute and a half a guidance on one core.
"""

import argparse
import sys

from tqdm import tqdm

from spatialweave.models.benchmarks.held_out import held_out_batches
from spatialweave.models.modality_forcing.pipeline import ModalityForcingPipeline
from spatialweave.models.world.judges.scorer import Scorer

SCENES_SEED, BATCH, STEPS = 7, 16, 25


def agreement(pipeline, scorer, scenes, guidance, interval=(1.0, 0.0)):
    """Share of facts that hold, by kind, and of all."""
    kinds = {}
    for seed, held_out in enumerate(tqdm(scenes, desc=f"guidance {guidance:g}", unit="batch")):
        made = pipeline(
            held_out.captions, mode="joint", seed=seed, steps=STEPS, guidance=guidance,
            guidance_interval=interval,
        )  # fmt: skip
        for judgement in scorer.judge(made.image, held_out.captions):
            for fact in judgement.facts:
                for kind in (fact.kind, "all"):
                    kinds.setdefault(kind, []).append(fact.holds)
    return {kind: sum(holds) / len(holds) for kind, holds in sorted(kinds.items())}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("guidance", nargs="+", type=float)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument(
        "--interval", type=float, nargs=2, default=(1.0, 0.0), help="noise levels between which guidance acts"
    )
    options = parser.parse_args()
    pipeline, scorer = ModalityForcingPipeline.from_preset("tiny"), Scorer.from_pretrained()
    scenes = list(held_out_batches(options.n, BATCH, pipeline.defaults.size, seed=SCENES_SEED))
    for guidance in options.guidance:
        figures = agreement(pipeline, scorer, scenes, guidance, tuple(options.interval))
        sys.stdout.write(
            f"guidance {guidance:g}: "
            + ", ".join(f"{kind} {share:.3f}" for kind, share in figures.items())
            + "\n"
        )


if __name__ == "__main__":
    main()
