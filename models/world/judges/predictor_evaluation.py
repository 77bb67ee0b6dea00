"""Accuracy of the predictor on the test split, and of the detection of hanging and broken solids with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..render import render
from ..scene import sample_scenes
from .lifted import sample_lifted
from .plausibility import examine, is_broken, is_hanging
from .predictor import Predictor
from .scene_maps import FIGURES, SceneMaps, compare_maps, exact_maps

_BATCH = 32


def predictor_accuracy(
    predictor: Predictor,
    n: int = 256,
    seed: int = 0,
    *,
    resolution: int = 128,
    change: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Figures over `n` test scenes and as many images of each fault.

    depth_absrel, normal_angle, segmentation_miou, line_f1: against ground truth, see `compare_maps`.
    called_hanging, called_broken: false positive rates, over the detected solids of sound scenes.
    hanging_found: recall over solids lifted off the ground.
    broken_found: recall over solids torn in two, their lower half shifted sideways.
    `change` is applied to rendered images (b, h, w, 3), say, the round trip of a codec.
    """
    if n < 1:
        raise ValueError(f"Expected at least 1 scene for the predictor's evaluation, got {n}.")
    rows: dict[str, list[Tensor]] = {name: [] for name in FIGURES}
    solids = hanging = broken = found_hanging = found_broken = 0
    for start in range(0, n, _BATCH):
        count = min(_BATCH, n - start)
        frames = render(sample_scenes(seed, count, split="test", start=start), resolution, resolution)
        read = predictor.read(change(frames.image) if change else frames.image)
        for name, values in compare_maps(read, exact_maps(frames)).items():
            rows[name].append(values)
        for result in examine(read):
            solids += result.solids
            hanging += result.hanging
            broken += result.broken
        torn = torch.stack(
            [tear(image, segments == 1) for image, segments in zip(frames.image, frames.segmentation)]
        )
        found_broken += count_torn(predictor.read(change(torn) if change else torn), frames.segmentation == 1)
        found_hanging += count_lifted(predictor, seed, count, start, resolution, change)
    figures = {name: float(torch.cat(values).nanmean()) for name, values in rows.items()}
    return figures | {
        "called_hanging": hanging / max(1, solids),
        "called_broken": broken / max(1, solids),
        "hanging_found": found_hanging / n,
        "broken_found": found_broken / n,
        "scenes": n,
    }


def count_lifted(predictor: Predictor, seed: int, count: int, start: int, resolution: int, change) -> int:
    """Number of lifted solids, of `count`, that are detected as hanging."""
    lifted = sample_lifted(seed, count, split="test", start=start)
    frames = render([scene for scene, _ in lifted], resolution, resolution)
    read = predictor.read(change(frames.image) if change else frames.image)
    found = 0
    for i, (_, item) in enumerate(lifted):
        number = find_segment(read.segments[i], frames.segmentation[i] == item + 1)
        found += number > 0 and is_hanging(read.disparity[i], read.normals[i], read.segments[i], number)
    return found


def count_torn(read: SceneMaps, masks: Tensor) -> int:
    """Number of torn solids, under the masks (b, h, w), that are detected as broken."""
    numbers = [find_segment(segments, mask) for segments, mask in zip(read.segments, masks)]
    return sum(number > 0 and is_broken(segments, number) for segments, number in zip(read.segments, numbers))


def find_segment(segments: Tensor, mask: Tensor) -> int:
    """The most frequent segment under the mask (h, w), 0 for none."""
    return int(torch.bincount(segments[mask]).argmax()) if bool(mask.any()) else 0


def tear(image: Tensor, mask: Tensor) -> Tensor:
    """The image (h, w, 3), shifted sideways by a third of the mask's width below the middle of the mask (h,
    w)."""
    rows, columns = torch.nonzero(mask, as_tuple=True)
    if not len(rows):
        return image
    middle, width = int(rows.double().mean()), int(columns.max() - columns.min()) + 1
    torn = image.clone()
    torn[middle:] = image[middle:].roll(width // 3, dims=1)
    return torn
