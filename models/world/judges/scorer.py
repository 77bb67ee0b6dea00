"""The scorer reads a picture of the world back: which objects stand where; and judges what a prompt states about it.

It knows nothing of how a picture was made, so it serves rendered and generated ones alike. Trained on ground truth of the
train split alone (scorer_training.py); measured on the test split (scorer_evaluation.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.weights.files import check_fit, describe, fill_module, read_header, read_tensors
from ..captions import OPPOSITE, RELATION_WORDS, Description, Phrase, parse_caption
from ..scene import COLORS, SHAPES, SIZES
from .scorer_network import FLOORS, MEAN_LOG_DEPTH, OFFSET_CELLS, STRIDE, ScorerNetwork

WEIGHTS = Path(__file__).with_name("scorer.safetensors")
FactKind = Literal["object", "side", "depth order", "size", "place"]
CORE_KINDS: tuple[FactKind, ...] = ("object", "side", "depth order")
KINDS: tuple[FactKind, ...] = (*CORE_KINDS, "size", "place")

_SHORT_SIDE = 128  # pixels, as in training; other sizes are resampled to it
_ALIGN = 16  # the network halves four times
_LEAST_CELLS = 3
_LEAST_CONFIDENCE = 0.35
# A heap far smaller than its object should be is a seam between two others. Half sizes in metres, and a usual focal length.
_LEAST_SHARE, _HALF_SIZES, _FOCAL = 0.22, {"small": 0.36, "large": 0.68}, 1.07
_MOST_PHRASES, _MOST_MATCHINGS = 50, 5_000  # real prompts have a few of either
# Nearer than this no relation holds: a quarter of what a caption needs before it says one.
_SIDE_MARGIN = 0.04  # of half a picture
_DEPTH_MARGIN = 0.025  # natural logarithm, 14 cm at 5.5 m


@dataclass(frozen=True)
class SeenObject:
    """One object read from a picture.

    x, y: its projected centre, in halves of the shorter side from the picture's middle, y down ([-1, 1] in a square picture);
    box: left, top, right, bottom in pixels, to a cell's accuracy; depth: the centre's, in metres, as far as one picture tells;
    confidence: mean probability of its shape and colour.
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
    """What a picture shows: its objects, nearest first, and the floor it stands on."""

    objects: tuple[SeenObject, ...]
    floor: str


@dataclass(frozen=True)
class Fact:
    """One thing a prompt states, and whether the picture shows it."""

    kind: FactKind
    words: str
    holds: bool


@dataclass(frozen=True)
class Judgement:
    """A prompt against a picture. `agreement` is the share of its facts that hold; a prompt that states nothing agrees."""

    text: str
    facts: tuple[Fact, ...]
    seen: Seen

    @property
    def agreement(self) -> float:
        return sum(fact.holds for fact in self.facts) / len(self.facts) if self.facts else 1.0


class Scorer:
    """Reads pictures b h w 3 in [0, 1], on the device of its network."""

    def __init__(self, network: ScorerNetwork):
        self.network = network.train(False)

    @classmethod
    def from_pretrained(cls, path: str | Path = WEIGHTS, *, device: str | torch.device = "cpu", operations=torch.nn) -> Scorer:
        """The weights that ship beside the code, or others of the same shape; stored in float16, used in float32. WeightsError."""
        network = ScorerNetwork(operations=operations, device="meta")
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        header = read_header(path)
        check_fit(wanted, header.shapes, f"{path} is {describe(header)}, which as the world's scorer")
        return cls(fill_module(network, read_tensors(path), what=str(path), device=device))

    def read(self, image: Tensor) -> list[list[SeenObject]]:
        """The objects of each picture b h w 3 in [0, 1], nearest first."""
        return [list(seen.objects) for seen in self.see(image)]

    @torch.no_grad()
    def see(self, image: Tensor) -> list[Seen]:
        """Objects and floor of each picture b h w 3 in [0, 1]."""
        if image.ndim != 4 or image.shape[3] != 3 or min(image.shape[1:3]) < 8:
            raise ValueError(f"The scorer reads pictures b h w 3 of at least 8 x 8 pixels in [0, 1]; it was given {tuple(image.shape)}.")
        height, width = image.shape[1:3]
        scale = _SHORT_SIDE / min(height, width)
        size = [round(height * scale), round(width * scale)]
        picture = image.permute(0, 3, 1, 2).to(next(self.network.parameters()).device, torch.float32)
        if size != [height, width]:
            picture = F.interpolate(picture, size=size, mode="bilinear", antialias=True)
        padded = F.pad(picture, (0, -size[1] % _ALIGN, 0, -size[0] % _ALIGN), mode="replicate")
        guess = {name: value.float().cpu() for name, value in self.network(padded.clamp(0, 1)).items()}
        return [_assemble({name: value[i] for name, value in guess.items()}, size, scale) for i in range(len(image))]

    def judge(self, image: Tensor, texts: list[str], *, kinds: tuple[FactKind, ...] = CORE_KINDS) -> list[Judgement]:
        """Each picture against its text. `kinds` are the facts that count; see KINDS."""
        if len(image) != len(texts):
            raise ValueError(f"{len(image)} pictures came with {len(texts)} texts; each picture needs one.")
        return [Judgement(text, judge_facts(text, seen, kinds), seen) for text, seen in zip(texts, self.see(image), strict=True)]


def _assemble(guess: dict[str, Tensor], size: list[int], scale: float) -> Seen:
    """Objects from one picture's outputs c h w. Cells vote for their object's centre; a heap of votes is an object.

    Unlike connected regions this parts two things of one colour that overlap, and joins one thing cut in two by another.
    """
    height, width = -(-size[0] // STRIDE), -(-size[1] // STRIDE)  # cells that show picture, not padding
    guess = {name: value[..., :height, :width] if value.ndim == 3 else value for name, value in guess.items()}
    shape, color = guess["shape"].softmax(0), guess["color"].softmax(0)
    row, column = torch.nonzero((shape[0] + color[0]) / 2 < 0.5, as_tuple=True)
    offset = OFFSET_CELLS * guess["offset"][:, row, column]
    votes = torch.stack((column + 0.5 + offset[0], row + 0.5 + offset[1]))
    found = []
    for members in _heaps(votes, offset.norm(dim=0)):
        cells = (row[members], column[members])
        item = _describe(guess, (shape, color), cells, votes[:, members].median(1).values, (size, scale))
        if item.confidence >= _LEAST_CONFIDENCE and len(members) >= _LEAST_SHARE * _cells_expected(item, min(size)):
            found.append(item)
    return Seen(tuple(sorted(found, key=lambda item: item.depth)), FLOORS[int(guess["floor"].argmax())])


def _heaps(votes: Tensor, reach: Tensor) -> list[Tensor]:
    """Index sets of the votes 2 n that fall together, largest heap first. A vote from afar (`reach` n cells) may miss by more."""
    heaps, left = [], torch.arange(votes.shape[1])
    tolerance = 1.2 + 0.3 * reach
    while len(left) >= _LEAST_CELLS:
        apart = torch.cdist(votes[:, left].T, votes[:, left].T)
        top = (apart < 1.0).sum(1).argmax()
        near = apart[top] < tolerance[left]
        if int(near.sum()) < _LEAST_CELLS:
            break
        heaps.append(left[near])
        left = left[~near]
    return heaps


def _describe(guess: dict[str, Tensor], probabilities: tuple[Tensor, Tensor], cells, center: Tensor, frame) -> SeenObject:
    """An object from its cells; `frame` is (size of the resampled picture, its scale)."""
    (size, scale), (row, column) = frame, cells
    shape, color = (p[1:, row, column].mean(1) for p in probabilities)
    size_class = int(guess["size"][:, row, column].mean(1).argmax())
    edges = torch.stack((column.min(), row.min(), column.max() + 1, row.max() + 1)) * STRIDE / scale
    middle = (size[1] / 2, size[0] / 2)
    x, y = ((float(c) * STRIDE - m) / (min(size) / 2) for c, m in zip(center, middle, strict=True))
    return SeenObject(
        SHAPES[int(shape.argmax())], list(COLORS)[int(color.argmax())], SIZES[size_class],
        x, y, math.exp(float(guess["log_depth"][0, row, column].median()) + MEAN_LOG_DEPTH), tuple(edges.tolist()),
        float((shape.max() + color.max()) / 2),
    )  # fmt: skip


def _cells_expected(item: SeenObject, short_side: int) -> float:
    """Cells that an object of this size and depth covers, if nothing hides it."""
    radius = _HALF_SIZES[item.size] / item.depth * _FOCAL * short_side / STRIDE
    return math.pi * radius**2


def judge_facts(text: str, seen: Seen, kinds: tuple[FactKind, ...] = CORE_KINDS) -> tuple[Fact, ...]:
    """What `text` states and whether `seen` shows it. Two phrases never mean the same object; where a phrase fits several, the
    choice that makes most facts true counts."""
    description = parse_caption(text)
    if len(description.phrases) > _MOST_PHRASES:
        raise ValueError(f"The scorer judges prompts of at most {_MOST_PHRASES} objects; this one names {len(description.phrases)}.")
    fitting = [[item for item in seen.objects if _fits(phrase, item)] for phrase in description.phrases]
    place = [Fact("place", description.place, description.place == seen.floor)] if description.place else []
    best: list[Fact] = []
    for choice in itertools.islice(_matchings(fitting), _MOST_MATCHINGS):
        facts = [*_object_facts(description.phrases, choice), *_relation_facts(description, choice), *place]
        facts = [fact for fact in facts if fact.kind in kinds]
        best = max(best, facts, key=lambda facts: sum(fact.holds for fact in facts)) if best else facts
    return tuple(best)


def _matchings(fitting: list[list[SeenObject]]) -> Iterator[tuple[SeenObject | None, ...]]:
    """Every way to give each phrase one of its fitting objects, none twice, or nothing."""
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
        words = f"{phrases[relation.first].words()} {RELATION_WORDS[relation.kind]} {phrases[relation.second].words()}"
        holds = first is not None and second is not None and relation.kind in seen_relations(first, second)
        facts.append(Fact("side" if relation.kind in ("left of", "right of") else "depth order", words, holds))
    return facts


def seen_relations(first: SeenObject, second: SeenObject) -> list[str]:
    """How `first` stands to `second`: nothing where they are too near to tell."""
    found = []
    if abs(first.x - second.x) > _SIDE_MARGIN:
        found.append("left of" if first.x < second.x else OPPOSITE["left of"])
    nearer = math.log(second.depth / first.depth)
    if abs(nearer) > _DEPTH_MARGIN:
        found.append("in front of" if nearer > 0 else OPPOSITE["in front of"])
    return found
