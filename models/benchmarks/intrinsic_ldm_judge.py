"""Per-image figures of I-LDM's evaluation, by networks trained on the world alone.

Counts of faults, unless stated otherwise:

    missing       objects of the caption that the scorer does not detect
    side          "to the left of", "to the right of" that does not hold between two detected objects
    depth_order   "in front of", "behind" that does not hold between two detected objects
    hanging       solids without support, by the predictor's depth, normals and segmentation
    broken        solids whose outline is not convex, by the predictor's segmentation; all of the world's are
    violations    the sum of these five
    solids        number of solids that the predictor detects
    depth_absrel, normal_angle, segmentation_miou, line_f1
                  the co-generated maps against the predictor's maps of the image, see `compare_maps`; depth
                  after scale and shift of its inverse, as its encoding keeps no more

The judges have errors of their own: the same figures on rendered images, which have no faults, with their
exact maps are reported beside those of the models.
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
    """The scorer and the predictor, applied to generated images and maps."""

    def __init__(self, scorer: Scorer, predictor: Predictor):
        self.scorer, self.predictor = scorer, predictor

    def measure(self, image: Tensor, captions: list[str], maps: Tensor | None) -> dict[str, Tensor]:
        """Figures (b,) float64 and features of images (b, h, w, 3) in [0, 1] and their maps (b, 8, h, w)."""
        predicted = self.predictor.read(image)
        judgements = self.scorer.judge(image, captions)
        rows = [count_wrong(text, each.facts) for text, each in zip(captions, judgements, strict=True)]
        for row, solids in zip(rows, examine(predicted), strict=True):
            row |= {"hanging": solids.hanging, "broken": solids.broken, "solids": solids.solids}
        columns = {name: [row[name] for row in rows] for name in (*FAULTS, "solids")}
        figures = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
        figures["violations"] = sum(figures[name] for name in FAULTS)
        if maps is not None:
            figures |= compare_maps(read_codes(maps), predicted)
        return figures | pooled_features(self.scorer, image)


def count_wrong(text: str, facts: tuple[Fact, ...]) -> dict[str, int]:
    """Number of missing objects of a caption, and of wrong relations between objects that are not missing.

    `facts` are the scorer's core facts: the caption's objects in order, then its relations in order.
    """
    description = parse_caption(text)
    objects, relations = facts[: len(description.phrases)], facts[len(description.phrases) :]
    wrong = {"missing": sum(not fact.holds for fact in objects), "side": 0, "depth_order": 0}
    for relation, fact in zip(description.relations, relations, strict=True):
        if objects[relation.first].holds and objects[relation.second].holds and not fact.holds:
            wrong[fact.kind.replace(" ", "_")] += 1
    return wrong


def read_codes(maps: Tensor) -> SceneMaps:
    """Co-generated maps (b, 8, h, w) in [-1, 1], decoded; their disparity is affine-invariant."""
    codes = split_maps(maps.float())
    segments, _ = map_codes.decode_segmentation(codes["segmentation"])
    normals = map_codes.decode_normals(codes["normals"]).movedim(1, -1)
    line = map_codes.decode_line(codes["line"])[:, 0] > 0.5
    return SceneMaps(codes["depth"][:, 0], normals, segments, line)


def code_frames(frames: Frames) -> Tensor:
    """The exact maps of rendered scenes, encoded as a model's are, (b, 8, h, w)."""
    known = torch.isfinite(frames.depth)
    raw = {
        "depth": frames.depth.masked_fill(~known, 0.0),
        "mask": known,
        "normals": frames.normals,
        "line": frames.line,
        "segmentation": frames.segmentation.masked_fill(~known, SKY),
    }
    samples = [{name: tensor[i] for name, tensor in raw.items()} for i in range(len(frames))]
    return torch.stack([encode_sample(sample)[0] for sample in samples])
