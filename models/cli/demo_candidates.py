"""Several candidates of one prompt: the world's judges choose the best, and all can be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from ..core.export.exr import write_exr
from ..core.export.files import write_file
from ..core.export.png8 import write_png8
from ..core.padding import crop_to
from ..modality_forcing.depth_code import net_to_depth
from ..modality_forcing.pipeline import Result, explain_sampled_depth
from ..tiny.chinese import translate_chinese
from ..world.judges.candidates import CandidateScore, choose_candidate, score_candidates
from ..world.judges.predictor import Predictor
from ..world.judges.scorer import Scorer

STEPS = 12  # of a run of several: as good as more, see docs/log.md


def judge_candidates(result: Result, prompt: str) -> tuple[int, list[CandidateScore]]:
    """The index of the best of a batch, and the score of each."""
    judges = {"scorer": Scorer.from_pretrained(), "predictor": Predictor.from_pretrained()}
    scores = score_candidates(result.image, translate_chinese(prompt)[0], **judges)
    return choose_candidate(scores), scores


def take_candidate(result: Result, index: int, *, infinite_sky: bool) -> Result:
    """One result of a batch, with the notes on its own depth."""
    one = slice(index, index + 1)
    net = crop_to(result.depth_net, result.view.depth.shape[1:]).cpu()
    about_all, about_one = (
        explain_sampled_depth(net_to_depth(part, infinite_sky=infinite_sky), part) for part in (net, net[one])
    )
    notes = tuple(note for note in result.notes if note not in about_all) + about_one
    return replace(
        result,
        notes=notes,
        image=result.image[one],
        view=result.view[index],
        rgb_latent=result.rgb_latent[one],
        depth_net=result.depth_net[one],
        alpha=None if result.alpha is None else result.alpha[one],
    )


def explain_choice(best: int, scores: list[CandidateScore]) -> str:
    """Which was kept, and why."""
    return (
        f"Of {len(scores)} candidates number {best + 1} was kept, as the world's scorer and judge read it: "
        f"{scores[best].describe()}."
    )


def list_scores(best: int, scores: list[CandidateScore]) -> list[dict]:
    """The scores as JSON values, numbered from 1."""
    return [
        {"number": score.index + 1, "kept": score.index == best}
        | {name: value for name, value in asdict(score).items() if name != "index"}
        for score in scores
    ]


def write_candidates(folder: Path, result: Result, best: int, scores: list[CandidateScore]) -> Iterator[str]:
    """Image and depth of every candidate, and their scores; yields a line for each file."""
    for index in range(len(result.image)):
        name = f"{index + 1:02}"
        yield f"wrote {write_png8(folder / f'{name}.png', result.image[index])}"
        yield f"wrote {write_exr(folder / f'{name}.exr', result.view[index])}"
    text = json.dumps(list_scores(best, scores), indent=2) + "\n"
    yield f"wrote {write_file(folder / 'scores.json', text.encode())}"
