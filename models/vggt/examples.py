"""The example scenes that ship: a few rendered views each, for the tiny network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..core.pictures import open_picture

FOLDER = Path(__file__).with_name("example_views")


def list_examples() -> list[str]:
    """The names of the scenes."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def load_example(name: str) -> Tensor:
    """The views of a scene in order, (v, h, w, 3) in [0, 1]."""
    names = list_examples()
    if name not in names:
        raise ValueError(f"Expected an example scene, {', '.join(names)}, got {name!r}. Choose one of them.")
    return torch.cat([open_picture(path).rgb for path in sorted((FOLDER / name).glob("*.jpg"))])
