"""The scorer detects the objects in an image of the world, and judges the facts that a prompt states about
it.

The image may be rendered or generated. Trained on ground truth of the train split (scorer_training.py),
evaluated on the test split (scorer_evaluation.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ...core.geometry.resize import resize_antialiased
from ...core.weights.files import check_fit, describe, fill_module, read_header, read_tensors
from ..captions import OPPOSITE, RELATION_WORDS, Description, Phrase, parse_caption
from ..scene import COLORS, SHAPES, SIZES
from .scorer_network import FLOORS, MEAN_LOG_DEPTH, OFFSET_CELLS, STRIDE, ScorerNetwork

WEIGHTS = Path(__file__).with_name("scorer.safetensors")
FactKind = Literal["object", "side", "depth order", "size", "place"]
CORE_KINDS: tuple[FactKind, ...] = ("object", "side", "depth order")
KINDS: tuple[FactKind, ...] = (*CORE_KINDS, "size", "place")

_SHORT_SIDE = 128  # pixels, as in training; other sizes are resampled to it
_ALIGN = 16  # the network downsamples four times by 2
_LEAST_CELLS = 3
_LEAST_CONFIDENCE = 0.35
# A cluster far smaller than its object should be is a border between two others. Half sizes in metres, usual
# focal length.
_LEAST_SHARE, _HALF_SIZES, _FOCAL = 0.22, {"small": 0.36, "large": 0.68}, 1.07
_MOST_PHRASES, _MOST_MATCHINGS = 50, 5_000  # real prompts have a few of either
# Closer than this no relation holds: a quarter of the distance at which captions state one.
_SIDE_MARGIN = 0.04  # of half an image
_DEPTH_MARGIN = 0.025  # natural logarithm, 14 cm at 5.5 m


@dataclass(frozen=True)
class SeenObject:
    """One object detected in an image.

    x, y: its projected center, in half shorter sides from the image's middle, y down ([-1, 1] in a square
    image); box: left, top, right, bottom in pixels, to a cell's accuracy; depth: the center's estimate, in
    metres; confidence: mean probability of its shape and color.
    """

    shape: str
    color: str
    size: str
    x: float
    y: float
    depth: float
    box: tuple[float, float, float, float]
    confidence: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Seen:
    """The content of an image: its objects, nearest first, and their floor."""

    objects: tuple[SeenObject, ...]
    floor: str


@dataclass(frozen=True)
class Fact:
    """A fact that a prompt states, and whether it holds in the image."""

    kind: FactKind
    words: str
    holds: bool


@dataclass(frozen=True)
class Judgement:
    """A prompt's facts in an image.

    `agreement` is the fraction that holds, 1 for a prompt that states nothing.
    """

    text: str
    facts: tuple[Fact, ...]
    seen: Seen

    @property
    def agreement(self) -> float:
        return sum(fact.holds for fact in self.facts) / len(self.facts) if self.facts else 1.0


class Scorer:
    """Detects objects in images (b, h, w, 3) in [0, 1], on the device of its network."""

    def __init__(self, network: ScorerNetwork):
        self.network = network.train(False)

    @classmethod
    def from_pretrained(
        cls, path: str | Path = WEIGHTS, *, device: str | torch.device = "cpu", operations=torch.nn
    ) -> Scorer:
        """The shipped weights, or others of the same shapes; stored in float16, used in float32.

        WeightsError.
        """
        network = ScorerNetwork(operations=operations, device="meta")
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        header = read_header(path)
        check_fit(expected, header.shapes, f"{path} for the world's scorer, which is {describe(header)}")
        return cls(fill_module(network, read_tensors(path), what=str(path), device=device))

    def read(self, image: Tensor) -> list[list[SeenObject]]:
        """The objects of each image (b, h, w, 3) in [0, 1], nearest first."""
        return [list(seen.objects) for seen in self.see(image)]

    @torch.no_grad()
    def see(self, image: Tensor) -> list[Seen]:
        """Objects and floor of each image (b, h, w, 3) in [0, 1]."""
        if image.ndim != 4 or image.shape[3] != 3 or min(image.shape[1:3]) < 8:
            raise ValueError(
                f"Expected images (b, h, w, 3) of at least 8 x 8 pixels in [0, 1], got {tuple(image.shape)}."
            )
        height, width = image.shape[1:3]
        scale = _SHORT_SIDE / min(height, width)
        size = [round(height * scale), round(width * scale)]
        device = next(self.network.parameters()).device
        pixels = rearrange(image, "b h w c -> b c h w").to(device, torch.float32)
        pixels = resize_antialiased(pixels, size)
        padded = F.pad(pixels, (0, -size[1] % _ALIGN, 0, -size[0] % _ALIGN), mode="replicate")
        guess = {name: value.float().cpu() for name, value in self.network(padded.clamp(0, 1)).items()}
        return [
            _assemble({name: value[i] for name, value in guess.items()}, size, scale)
            for i in range(len(image))
        ]

    def judge(
        self, image: Tensor, texts: list[str], *, kinds: tuple[FactKind, ...] = CORE_KINDS
    ) -> list[Judgement]:
        """Judge each image by its text. `kinds` are the facts that count, see KINDS."""
        if len(image) != len(texts):
            raise ValueError(
                f"Expected a text for each of {len(image)} images, got {len(texts)} texts. Give one per "
                "image."
            )
        return [
            Judgement(text, judge_facts(text, seen, kinds), seen)
            for text, seen in zip(texts, self.see(image), strict=True)
        ]


def _assemble(guess: dict[str, Tensor], size: list[int], scale: float) -> Seen:
    """Objects from one image's outputs (c, h, w). Cells vote for their object's center; a cluster of votes is
    an object.

    Unlike connected regions this separates overlapping objects of one color, and joins an object that another
    divides.
    """
    height, width = -(-size[0] // STRIDE), -(-size[1] // STRIDE)  # cells of the image, without padding
    guess = {name: value[..., :height, :width] if value.ndim == 3 else value for name, value in guess.items()}
    shape, color = guess["shape"].softmax(0), guess["color"].softmax(0)
    row, column = torch.nonzero((shape[0] + color[0]) / 2 < 0.5, as_tuple=True)
    offset = OFFSET_CELLS * guess["offset"][:, row, column]
    votes = torch.stack((column + 0.5 + offset[0], row + 0.5 + offset[1]))
    found = []
    for members in _cluster_votes(votes, offset.norm(dim=0)):
        cells = (row[members], column[members])
        item = _describe(guess, (shape, color), cells, votes[:, members].median(1).values, (size, scale))
        least = _LEAST_SHARE * _cells_expected(item, min(size))
        if item.confidence >= _LEAST_CONFIDENCE and len(members) >= least:
            found.append(item)
    return Seen(tuple(sorted(found, key=lambda item: item.depth)), FLOORS[int(guess["floor"].argmax())])


def _cluster_votes(votes: Tensor, reach: Tensor) -> list[Tensor]:
    """Index sets of clustered votes (2, n), largest cluster first.

    The tolerance of a vote grows with its distance `reach` (n,), in cells.
    """
    clusters, left = [], torch.arange(votes.shape[1])
    tolerance = 1.2 + 0.3 * reach
    while len(left) >= _LEAST_CELLS:
        apart = torch.cdist(votes[:, left].T, votes[:, left].T)
        top = (apart < 1.0).sum(1).argmax()
        near = apart[top] < tolerance[left]
        if int(near.sum()) < _LEAST_CELLS:
            break
        clusters.append(left[near])
        left = left[~near]
    return clusters


def _describe(
    guess: dict[str, Tensor], probabilities: tuple[Tensor, Tensor], cells, center: Tensor, frame
) -> SeenObject:
    """An object from its cells; `frame` is (size of the resampled image, its scale)."""
    (size, scale), (row, column) = frame, cells
    shape, color = (p[1:, row, column].mean(1) for p in probabilities)
    size_class = int(guess["size"][:, row, column].mean(1).argmax())
    edges = torch.stack((column.min(), row.min(), column.max() + 1, row.max() + 1)) * STRIDE / scale
    middle = (size[1] / 2, size[0] / 2)
    x, y = ((float(c) * STRIDE - m) / (min(size) / 2) for c, m in zip(center, middle, strict=True))
    return SeenObject(
        shape=SHAPES[int(shape.argmax())],
        color=list(COLORS)[int(color.argmax())],
        size=SIZES[size_class],
        x=x,
        y=y,
        depth=math.exp(float(guess["log_depth"][0, row, column].median()) + MEAN_LOG_DEPTH),
        box=tuple(edges.tolist()),
        confidence=float((shape.max() + color.max()) / 2),
    )


def _cells_expected(item: SeenObject, short_side: int) -> float:
    """Number of cells that an object of this size and depth covers without occlusion."""
    radius = _HALF_SIZES[item.size] / item.depth * _FOCAL * short_side / STRIDE
    return math.pi * radius**2


def judge_facts(text: str, seen: Seen, kinds: tuple[FactKind, ...] = CORE_KINDS) -> tuple[Fact, ...]:
    """The facts that `text` states, judged by `seen`.

    Two phrases never refer to the same object. If a phrase fits several, the matching with most true facts
    counts.
    """
    description = parse_caption(text)
    if len(description.phrases) > _MOST_PHRASES:
        raise ValueError(
            f"Expected a prompt with at most {_MOST_PHRASES} objects, got {len(description.phrases)}. "
            "Shorten it."
        )
    fitting = [[item for item in seen.objects if _fits(phrase, item)] for phrase in description.phrases]
    place = [Fact("place", description.place, description.place == seen.floor)] if description.place else []
    best: list[Fact] = []
    for choice in itertools.islice(_matchings(fitting), _MOST_MATCHINGS):
        facts = [*_object_facts(description.phrases, choice), *_relation_facts(description, choice), *place]
        facts = [fact for fact in facts if fact.kind in kinds]
        best = max(best, facts, key=lambda facts: sum(fact.holds for fact in facts)) if best else facts
    return tuple(best)


def _matchings(fitting: list[list[SeenObject]]) -> Iterator[tuple[SeenObject | None, ...]]:
    """Every assignment of a fitting object, or None, to each phrase; no object twice."""
    if not fitting:
        yield ()
        return
    for item in [*fitting[0], None]:
        left = [[other for other in options if other is not item] for options in fitting[1:]]
        yield from ((item, *rest) for rest in _matchings(left))


def _fits(phrase: Phrase, item: SeenObject) -> bool:
    return phrase.shape == item.shape and phrase.color in (None, item.color)


def _object_facts(phrases: tuple[Phrase, ...], choice: tuple[SeenObject | None, ...]) -> list[Fact]:
    facts = []
    for phrase, item in zip(phrases, choice, strict=True):
        facts.append(Fact("object", phrase.words(), item is not None))
        if phrase.size:
            facts.append(Fact("size", phrase.words(), item is not None and item.size == phrase.size))
    return facts


def _relation_facts(description: Description, choice: tuple[SeenObject | None, ...]) -> list[Fact]:
    facts, phrases = [], description.phrases
    for relation in description.relations:
        first, second = choice[relation.first], choice[relation.second]
        subject, reference = phrases[relation.first].words(), phrases[relation.second].words()
        words = f"{subject} {RELATION_WORDS[relation.kind]} {reference}"
        holds = first is not None and second is not None and relation.kind in seen_relations(first, second)
        kind: FactKind = "side" if relation.kind in ("left of", "right of") else "depth order"
        facts.append(Fact(kind, words, holds))
    return facts


def seen_relations(first: SeenObject, second: SeenObject) -> list[str]:
    """The relations of `first` to `second`; none within the margins."""
    found = []
    if abs(first.x - second.x) > _SIDE_MARGIN:
        found.append("left of" if first.x < second.x else OPPOSITE["left of"])
    nearer = math.log(second.depth / first.depth)
    if abs(nearer) > _DEPTH_MARGIN:
        found.append("in front of" if nearer > 0 else OPPOSITE["in front of"])
    return found
