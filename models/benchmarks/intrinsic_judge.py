"""What the evaluation of I-LDM measures on each picture: judges that know the world, and none of the models that they judge.

Figures of a picture, all of them counts of faults unless said otherwise:

    missing          objects of the caption that the scorer does not find
    side             statements "to the left of", "to the right of" that do not hold, both objects being there
    depth_order      statements "in front of", "behind" that do not hold, both objects being there
    hanging          solids on no ground: support, judged from the predictor's depth, normals and segments (world/plausibility.py)
    broken           solids whose outline is not convex, though every solid of the world is: judged from the predictor's segments
    violations       the sum of these five
    solids           how many solids the predictor finds
    depth_absrel, normal_angle, segmentation_miou, line_f1: the co-generated maps against the predictor's reading of the picture, as
                     `compare_maps` says; depth after scale and shift of its inverse, which is all that the code of depth keeps

The judges err, too: the same figures on rendered pictures, which have no faults, and their exact maps stand beside those of the models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..intrinsic_ldm.data.dataset import SKY, encode_sample
from ..intrinsic_ldm.maps import channels as map_codes
from ..intrinsic_ldm.vae import split_maps
from ..world.captions import parse_caption
from ..world.judges.plausibility import examine
from ..world.judges.predictor import Predictor
from ..world.judges.scene_maps import SceneMaps, compare_maps
from ..world.judges.scorer import Fact, Scorer
from ..world.judges.scorer_features import pooled_features
from ..world.render import Frames

FAULTS = ("missing", "side", "depth_order", "hanging", "broken")


class Judge:
    """The scorer and the predictor."""

    def __init__(self, scorer: Scorer, predictor: Predictor):
        self.scorer, self.predictor = scorer, predictor

    def measure(self, image: Tensor, captions: list[str], maps: Tensor | None) -> dict[str, Tensor]:
        """Figures (b,) float64 of pictures b h w 3 in [0, 1] and, if they have some, their maps b 8 h w; features for fidelity."""
        read = self.predictor.read(image)
        rows = [count_wrong(text, judged.facts) for text, judged in zip(captions, self.scorer.judge(image, captions), strict=True)]
        for row, seen in zip(rows, examine(read), strict=True):
            row |= {"hanging": seen.hanging, "broken": seen.broken, "solids": seen.solids}
        figures = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in (*FAULTS, "solids")}
        figures["violations"] = sum(figures[name] for name in FAULTS)
        if maps is not None:
            figures |= compare_maps(read_codes(maps), read)
        return figures | pooled_features(self.scorer, image)


def count_wrong(text: str, facts: tuple[Fact, ...]) -> dict[str, int]:
    """How many objects of a caption are missing, and how many relations are wrong between objects that are not.

    `facts` are the scorer's core facts: the caption's objects in its order, then its relations in theirs.
    """
    description = parse_caption(text)
    there, relations = facts[: len(description.phrases)], facts[len(description.phrases) :]
    wrong = {"missing": sum(not fact.holds for fact in there), "side": 0, "depth_order": 0}
    for relation, fact in zip(description.relations, relations, strict=True):
        if there[relation.first].holds and there[relation.second].holds and not fact.holds:
            wrong[fact.kind.replace(" ", "_")] += 1
    return wrong


def read_codes(maps: Tensor) -> SceneMaps:
    """Co-generated maps b 8 h w in [-1, 1] as the judge's are; their disparity is right up to scale and shift."""
    parts = split_maps(maps.float())
    segments, _ = map_codes.decode_segmentation(parts["segmentation"])
    normals = map_codes.decode_normals(parts["normals"]).movedim(1, -1)
    return SceneMaps(parts["depth"][:, 0], normals, segments, map_codes.decode_line(parts["line"])[:, 0] > 0.5)


def code_frames(frames: Frames) -> Tensor:
    """The exact maps of rendered scenes, coded as a model's are, b 8 h w."""
    known = torch.isfinite(frames.depth)
    raw = {
        "depth": frames.depth.masked_fill(~known, 0.0), "mask": known, "normals": frames.normals, "line": frames.line,
        "segmentation": frames.segmentation.masked_fill(~known, SKY),
    }  # fmt: skip
    return torch.stack([encode_sample({name: tensor[i] for name, tensor in raw.items()})[0] for i in range(len(frames))])
