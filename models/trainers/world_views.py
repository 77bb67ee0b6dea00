"""Training samples of VGGT from the procedural world: several views of each scene, rendered once to a folder.

    FOLDER/dataset.json               settings of the renders
    FOLDER/shard-00000.safetensors    SHARD scenes of v views each, OpenCV cameras:
        image         uint8   (n, v, H, W, 3)
        depth         float16 (n, v, H, W), metres along z, 0 = sky
        world_to_cam  float32 (n, v, 3, 4)
        intrinsics    float32 (n, v, 3, 3), pixels

A shard is written whole or not at all, so a run that was stopped goes on with those that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.text_files import read_json_object
from ..core.training.checkpoint import write_json
from ..core.training.shards import DATASET, ShardFolder
from ..core.weights.files import read_header, write_tensors
from ..core.weights.mapped import map_tensors
from ..world.multiview import MultiView, sample_views
from ..world.scene import Split

SHARD = 64  # scenes
KEYS = ("image", "depth", "world_to_cam", "intrinsics")
FORMAT = "spatialweave-world-views"


@dataclass(frozen=True)
class WorldViewsRequest:
    """The `data` part of a recipe: which scenes, and how they are rendered."""

    folder: str
    scenes: int = 8192
    views: int = 4
    size: int = 112  # pixels a side
    seed: int = 0
    split: Split = "train"
    lens_jitter: float = 0.2  # relative change of the field of view between the views of a scene

    def __post_init__(self) -> None:
        if self.scenes < 1 or self.scenes % SHARD:
            raise ValueError(
                f"Expected scenes of the recipe's data as a multiple of {SHARD}, got {self.scenes}. Correct "
                "it."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What a folder's shards have in common: more scenes can be added to it."""
        left_out = ("folder", "scenes")
        return {"format": FORMAT, **{k: v for k, v in asdict(self).items() if k not in left_out}}


class WorldViews(torch.utils.data.Dataset):
    """One sample a scene, read from its shard when it is needed; a batch is a dict of stacked KEYS."""

    def __init__(self, request: WorldViewsRequest):
        folder = ShardFolder(Path(request.folder))
        self.files = [folder.tensor_file(i) for i in range(request.scenes // SHARD)]
        self._open: dict[Path, dict[str, Tensor]] = {}  # mapped into memory

    def __len__(self) -> int:
        return SHARD * len(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        file = self.files[index // SHARD]
        if file not in self._open:
            self._open[file] = dict(map_tensors(file, read_header(file)))
        return {key: self._open[file][key][index % SHARD].clone() for key in KEYS}


def render_world_views(request: WorldViewsRequest) -> None:
    """Render the shards that the folder lacks. ValueError if it was rendered with other settings."""
    folder = ShardFolder(Path(request.folder))
    check_settings_of(folder, request)
    missing = [i for i in range(request.scenes // SHARD) if not folder.tensor_file(i).is_file()]
    write_json(folder.path / DATASET, request.settings)
    for number in tqdm(missing, desc="rendering", unit="shard", dynamic_ncols=True, disable=None):
        scenes = sample_views(
            request.seed, SHARD, request.views, (request.size, request.size), split=request.split,
            start=number * SHARD, lens_jitter=request.lens_jitter,
        )  # fmt: skip
        write_tensors(folder.tensor_file(number), pack_views(scenes), {}, kind="views of the world")


def check_settings_of(folder: ShardFolder, request: WorldViewsRequest) -> None:
    if not (folder.path / DATASET).is_file():
        folder.read_facts()  # refuses a folder of other files
        return
    found = read_json_object(folder.path / DATASET)
    if found != request.settings:
        raise ValueError(
            f"Expected {folder.path} to be rendered with {request.settings}, got {dict(found)}. Choose "
            "another folder, or those settings."
        )


def pack_views(scenes: Sequence[MultiView]) -> Mapping[str, Tensor]:
    """Scenes with equally many views as the tensors of a shard."""
    return {
        "image": torch.stack([(scene.image * 255).round().to(torch.uint8) for scene in scenes]),
        "depth": torch.stack([scene.depth_metric for scene in scenes]).half(),
        "world_to_cam": torch.stack([scene.world_to_cam for scene in scenes]),
        "intrinsics": torch.stack([scene.intrinsics for scene in scenes]),
    }
