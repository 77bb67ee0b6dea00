"""Pose benchmarks on disk: scenes as COLMAP text models, transforms.json, RealEstate10K's text, or CO3Dv2.

colmap: SCENE/images and SCENE/sparse/0/images.txt. transforms: SCENE/transforms.json with the images that it
names. realestate10k: SCENE.txt with a line for each frame (time, intrinsics, world_to_cam), and the images
SCENE/TIME.png or .jpg. co3d: CATEGORY/frame_annotations.jgz, each of whose sequences is a scene.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.geometry.camera import FLIP_Y_Z, pad_pose
from ..core.pictures import open_rgb
from ..core.text_files import read_text, show_path
from .colmap_model import parse_images

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
PoseFrames = list[tuple[Path, Tensor]]  # image file and world_to_cam (4, 4), in the scene's order


@dataclass(frozen=True)
class PoseScene:
    """Some frames of a scene."""

    name: str
    images: tuple[Tensor, ...]  # each (h, w, 3) in [0, 1]
    world_to_cam: Tensor  # (v, 4, 4) float64


@dataclass(frozen=True)
class PoseFolder:
    """A benchmark's scenes by name, each read when it is asked for."""

    names: tuple[str, ...]
    dataset: str
    read: Callable[[str], PoseScene]


def open_pose_folder(
    folder: str | Path, *, frames: int, seed: int = 0, dataset: str | None = None
) -> PoseFolder:
    """The scenes of a folder; `frames` of each at random, by seed and name, or all of shorter ones."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"Expected a dataset folder at {show_path(folder)}, got none. Check the path.")
    if frames < 2:
        raise ValueError(f"Expected at least 2 frames of a scene, got {frames}. Raise --frames.")
    scenes = {name: read for path in sorted(folder.iterdir()) for name, read in _find_scenes(path).items()}
    if not scenes:
        raise ValueError(
            f"Expected scenes in {show_path(folder)} (folders with sparse/0/images.txt, transforms.json or "
            "frame_annotations.jgz, or text files of RealEstate10K), got none. Check the folder."
        )

    def read(name: str) -> PoseScene:
        found = scenes[name]()
        if len(found) < 2:
            raise ValueError(
                f"Expected at least 2 frames with an image in the scene {name} of {show_path(folder)}, got "
                f"{len(found)}. Unpack its images."
            )
        chosen = sorted(random.Random(f"{seed}/{name}").sample(range(len(found)), min(frames, len(found))))
        images = tuple(open_rgb(found[index][0])[0].float() / 255 for index in chosen)
        return PoseScene(name, images, torch.stack([found[index][1] for index in chosen]))

    return PoseFolder(tuple(scenes), dataset or folder.resolve().name, read)


def _find_scenes(path: Path) -> dict[str, Callable[[], PoseFrames]]:
    """What reads the scenes of a file or folder, by name."""
    if path.is_file():
        is_scene = path.suffix == ".txt" and path.with_suffix("").is_dir()
        return {path.stem: lambda: _read_realestate(path)} if is_scene else {}
    if (path / "frame_annotations.jgz").is_file():
        return {f"{path.name}/{name}": (lambda rows=rows: rows) for name, rows in _read_co3d(path).items()}
    if (path / "sparse" / "0" / "images.txt").is_file():
        return {path.name: lambda: _read_colmap(path)}
    return {path.name: lambda: _read_transforms(path)} if (path / "transforms.json").is_file() else {}


def _read_co3d(category: Path) -> dict[str, PoseFrames]:
    """The frames of each sequence. PyTorch3D's cameras look along z with x left and y up, of row vectors."""
    source = category / "frame_annotations.jgz"
    flip = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    sequences: dict[str, PoseFrames] = {}
    try:
        for frame in json.loads(gzip.decompress(source.read_bytes())):
            rotation = torch.tensor(frame["viewpoint"]["R"], dtype=torch.float64).reshape(3, 3)
            shift = torch.tensor(frame["viewpoint"]["T"], dtype=torch.float64).reshape(3)
            pose = torch.cat(((rotation * flip).T, (shift * flip)[:, None]), dim=1)
            image = category.parent / frame["image"]["path"]
            sequences.setdefault(frame["sequence_name"], []).append((image, pad_pose(pose)))
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"Expected frames with image and viewpoint in {show_path(source)}, got others. Fetch CO3Dv2's "
            "annotations again."
        ) from error
    there = {name: [frame for frame in rows if frame[0].is_file()] for name, rows in sequences.items()}
    return {name: rows for name, rows in there.items() if len(rows) > 1}


def _read_colmap(scene: Path) -> PoseFrames:
    poses = parse_images(scene / "sparse" / "0" / "images.txt")
    return [(scene / "images" / name, pose) for name, pose in sorted(poses.items())]


def _read_transforms(scene: Path) -> PoseFrames:
    """Cameras of nerfstudio and NeRF: camera to world, y up, looking down -z."""
    source = scene / "transforms.json"
    flip = torch.tensor([*FLIP_Y_Z, 1.0], dtype=torch.float64)
    try:
        frames = [
            (scene / frame["file_path"], torch.tensor(frame["transform_matrix"], dtype=torch.float64))
            for frame in json.loads(read_text(source))["frames"]
        ]
        return [(path, torch.linalg.inv(pose.reshape(4, 4) * flip)) for path, pose in frames]
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"Expected frames with file_path and transform_matrix in {show_path(source)}, got others. Export "
            "the scene again."
        ) from error


def _read_realestate(source: Path) -> PoseFrames:
    """PoseFrames whose image is there; the first line is the video's address."""
    frames = []
    for number, line in enumerate(read_text(source).split("\n")[1:], 2):
        words = line.split()
        if not words:
            continue
        try:
            pose = torch.tensor([float(word) for word in words[7:19]], dtype=torch.float64).reshape(3, 4)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"Expected 19 numbers in line {number} of {show_path(source)}, got {len(words)} words. Fetch "
                "the file again."
            ) from error
        places = (source.with_suffix("") / f"{words[0]}{ending}" for ending in _ENDINGS)
        image = next((place for place in places if place.is_file()), None)
        if image is not None:
            frames.append((image, pad_pose(pose)))
    return frames
