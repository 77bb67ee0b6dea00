"""Depth benchmarks on disk: the folders of MoGe's and Marigold's evaluations, and plain pairs of folders.

moge: `.index.txt` lists sample folders with image.jpg, depth.png (16 bits, logarithmic, near and far in its
text) and meta.json (intrinsics in widths and heights). marigold: a text file lists image and depth (and mask)
of each sample; format, range and crop are the dataset's. dataset: manifest.jsonl, as training reads it and
`spatialweave world` writes it. folder: image/NAME and depth/NAME, any depth file of Save Depth; a PNG
that does not state its scale needs one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..core.evaluation.benchmark import DepthSample
from ..core.export.depth_files import SUFFIXES, read_depth
from ..core.picture_files import open_values
from ..core.pictures import open_rgb
from ..core.text_files import read_text, show_path
from ..core.training.data import FolderDataset
from ..core.training.data_files import MANIFEST
from .moge_view import crop_to_view

BenchmarkLayout = Literal["moge", "marigold", "dataset", "folder"]
DATASETS = ("NYUv2", "KITTI", "ETH3D", "ScanNet", "DIODE")
INDEX = ".index.txt"
# width and height at which MoGe's evaluation renders each dataset
MOGE_SIZES = {
    "NYUv2": (640, 480),
    "KITTI": (750, 375),
    "ETH3D": (2048, 1365),
    "DIODE": (1024, 768),
    "iBims-1": (640, 480),
    "DDAD": (1400, 700),
}
_KNOWN = {name.lower(): name for name in (*DATASETS, *MOGE_SIZES)} | {"nyu": "NYUv2"}
_MOGE_FARTHEST = 1000.0  # times the depth's 1 % quantile
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_IMAGE_FOLDERS = ("image", "images", "rgb")
_KITTI_CROP = (352, 1216)  # height, width: the benchmark's


@dataclass(frozen=True)
class MarigoldFormat:
    """How Marigold's evaluation reads a dataset."""

    divisor: float  # stored values per metre
    limits: tuple[float, float]  # depths that count, in metres
    crop: tuple[float, float, float, float] | None = None  # top, bottom, left, right that count, as fractions
    kitti_crop: bool = False


# the Eigen crops, in fractions of a 480 x 640 and of a KITTI image
MARIGOLD = {
    "NYUv2": MarigoldFormat(1000.0, (1e-3, 10.0), (45 / 480, 471 / 480, 41 / 640, 601 / 640)),
    "KITTI": MarigoldFormat(256.0, (1e-5, 80.0), (0.3324324, 0.91351351, 0.0359477, 0.96405229), True),
    "ETH3D": MarigoldFormat(1.0, (1e-5, float("inf"))),
    "ScanNet": MarigoldFormat(1000.0, (1e-3, 10.0)),
    "DIODE": MarigoldFormat(1.0, (0.6, 350.0)),
}


@dataclass(frozen=True)
class DepthFolder:
    """A benchmark's samples by name, each read when it is asked for."""

    names: tuple[str, ...]
    layout: BenchmarkLayout
    dataset: str
    read: Callable[[str], DepthSample]


def open_depth_folder(
    folder: str | Path,
    *,
    layout: BenchmarkLayout | None = None,
    dataset: str | None = None,
    file_list: str | Path | None = None,
    scale: float | None = None,
) -> DepthFolder:
    """The samples of a folder; layout and dataset are found by the folder's files and name where they say it.

    `scale`: metres of a number in a PNG of the layout "folder". ValueError says what is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"Expected a dataset folder at {show_path(folder)}, got none. Check the path, and unpack "
            "archives."
        )
    if layout is not None and layout not in get_args(BenchmarkLayout):
        raise ValueError(f"Expected a layout of {get_args(BenchmarkLayout)}, got {layout!r}. Choose one.")
    layout = layout or _find_layout(folder, file_list)
    dataset = _KNOWN.get(dataset.lower(), dataset) if dataset else _find_dataset(folder, layout)
    if layout == "moge":
        names = _lines(folder / INDEX)
        return DepthFolder(names, layout, dataset, lambda name: _read_moge(folder, name, dataset))
    if layout == "marigold":
        return _open_marigold(folder, dataset, file_list or _own_list(folder))
    if layout == "dataset":
        return _open_dataset(folder, dataset)
    found = _match_files(folder)
    return DepthFolder(tuple(found), layout, dataset, lambda name: _read_pair(name, *found[name], scale))


def find_depth_folders(folder: str | Path) -> list[Path]:
    """The folder itself if it is a benchmark, else those inside it that are, by name."""
    folder = Path(folder)
    if not folder.is_dir() or _guess_layout(folder) is not None:
        return [folder]
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and _guess_layout(path) is not None]
    return inside or [folder]


def _guess_layout(folder: Path) -> BenchmarkLayout | None:
    if (folder / INDEX).is_file():
        return "moge"
    if (folder / MANIFEST).is_file():
        return "dataset"
    if (folder / "depth").is_dir() and any((folder / name).is_dir() for name in _IMAGE_FOLDERS):
        return "folder"
    return "marigold" if _own_list(folder) is not None else None


def _own_list(folder: Path) -> Path | None:
    """The one text file in the folder of a dataset of Marigold's evaluation, which is its list."""
    texts = list(folder.glob("*.txt"))
    known = _KNOWN.get(folder.resolve().name.lower()) in MARIGOLD
    return texts[0] if known and len(texts) == 1 else None


def _find_layout(folder: Path, file_list: str | Path | None) -> BenchmarkLayout:
    layout = "marigold" if file_list is not None else _guess_layout(folder)
    if layout is not None:
        return layout
    if (folder / "depth").is_dir():
        return "folder"
    raise ValueError(
        f"Expected {INDEX} (MoGe), a file list (Marigold), {MANIFEST}, or folders image and depth in "
        f"{show_path(folder)}, got none of these. Check the folder, or give the list."
    )


def _find_dataset(folder: Path, layout: BenchmarkLayout) -> str:
    name = _KNOWN.get(folder.resolve().name.lower())
    if name is None and layout == "marigold":
        raise ValueError(
            f"Expected the name of a dataset ({', '.join(MARIGOLD)}), got the folder {folder.name}. State "
            "--dataset: it decides how depth is stored and which pixels count."
        )
    return name or folder.resolve().name


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = tuple(line.strip() for line in read_text(path).split("\n") if line.strip())
    except OSError as error:
        raise ValueError(
            f"Expected the list of samples at {show_path(path)}, got none ({error.strerror}). Check the path."
        ) from error
    if not lines:
        raise ValueError(f"Expected at least one sample in {show_path(path)}, got none. Fill the list.")
    return lines


def _read_moge(folder: Path, name: str, dataset: str) -> DepthSample:
    """Depth at the size and field of view of MoGe's evaluation where the dataset has one."""
    place = folder / name
    image = _read_image(place / "image.jpg")
    depth = decode_moge_depth(place / "depth.png")
    if depth.shape != image.shape[:2]:
        raise ValueError(_sizes(place, depth, image))
    try:
        intrinsics = json.loads(read_text(place / "meta.json"))["intrinsics"]
        camera = torch.tensor(intrinsics, dtype=torch.float64).reshape(3, 3)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"Expected intrinsics (3 x 3) in {show_path(place / 'meta.json')}, got none. Unpack the sample "
            "again."
        ) from error
    if dataset in MOGE_SIZES:
        image, depth = crop_to_view(image, depth, camera, *MOGE_SIZES[dataset])
    mask = depth.isfinite() & (depth > 0)
    if bool(mask.any()):
        nearest = depth[mask].sort().values[int(0.01 * (int(mask.sum()) - 1))]
        mask &= depth <= nearest * _MOGE_FARTHEST
    return DepthSample(name, image, torch.where(mask, depth, torch.zeros_like(depth)), mask, metric=True)


def decode_moge_depth(path: Path) -> Tensor:
    """Depth (h, w) of MoGe's 16-bit PNG: logarithmic from near to far; NaN is unknown, infinite is sky."""
    found = open_values(path)
    try:
        near, far, unit = (float(found.text.get(key, default)) for key, default in
                           (("near", ""), ("far", ""), ("unit", "1")))  # fmt: skip
    except ValueError as error:
        raise ValueError(
            f"Expected near and far in the text of {show_path(path)}, got none. It is no depth of MoGe's "
            "evaluation: choose another layout."
        ) from error
    values = np.asarray(found.values).astype(np.float64)
    depth = unit * near * (far / near) ** ((values - 1) / 65533)
    depth = np.where(values == 0, np.nan, np.where(values == 65535, np.inf, depth))
    return torch.from_numpy(depth.astype(np.float32))


def _open_marigold(folder: Path, dataset: str, file_list: str | Path | None) -> DepthFolder:
    if dataset not in MARIGOLD:
        raise ValueError(
            f"Expected a dataset of {', '.join(MARIGOLD)} for Marigold's layout, got {dataset!r}. Choose one."
        )
    if file_list is None:
        raise ValueError(
            "Expected the list of files of Marigold's evaluation (data_split), got none. Give it with --list."
        )
    rows = {row.split()[0]: row.split()[1:] for row in _lines(Path(file_list))}
    known = {
        name: row for name, row in rows.items() if row and row[0] != "None"
    }  # KITTI lists images without truth
    if not known:
        raise ValueError(
            f"Expected image and depth in each line of {show_path(file_list)}, got one path. Give the list "
            "with depth."
        )
    return DepthFolder(
        tuple(known), "marigold", dataset, lambda name: _read_marigold(folder, name, known[name], dataset)
    )


def _read_marigold(folder: Path, name: str, others: Sequence[str], dataset: str) -> DepthSample:
    kind = MARIGOLD[dataset]
    image = _read_image(folder / name)
    depth = _read_numbers(folder / others[0], tuple(image.shape[:2])) / kind.divisor
    if tuple(depth.shape) != tuple(image.shape[:2]):
        raise ValueError(_sizes(folder / others[0], depth, image))
    low, high = kind.limits
    mask = (depth > low) & (depth < high)
    if dataset == "DIODE":  # its masks decide alone
        mask = _read_numbers(folder / others[1], tuple(image.shape[:2])) > 0
    if kind.kitti_crop:
        image, depth, mask = (_kitti_crop(part) for part in (image, depth, mask))
    if kind.crop is not None:
        height, width = depth.shape
        top, bottom, left, right = kind.crop
        inside = torch.zeros_like(mask)
        rows = slice(_floor(top * height), _floor(bottom * height))
        inside[rows, _floor(left * width) : _floor(right * width)] = True
        mask = mask & inside
    return DepthSample(
        name, image, torch.where(mask, depth, torch.zeros_like(depth)), mask, True, kind.limits
    )


def _floor(value: float) -> int:
    return int(value + 1e-6)  # 45 / 480 * 480 is 45


def _kitti_crop(part: Tensor) -> Tensor:
    height, width = _KITTI_CROP
    top, left = part.shape[0] - height, (part.shape[1] - width) // 2
    return part[top : top + height, left : left + width]


def _read_numbers(path: Path, size: tuple[int, int]) -> Tensor:
    """Stored numbers (h, w) of a PNG, an NPY, or of ETH3D's raw float32."""
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False).squeeze()
        elif path.suffix.lower() in _IMAGES:
            values = open_values(path).values
        else:
            values = np.fromfile(path, dtype="<f4").reshape(size)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected depth of {size[1]} x {size[0]} pixels in {show_path(path)}, got none ({error}). "
            "Unpack the dataset again."
        ) from error
    return torch.from_numpy(np.asarray(values).astype(np.float32))


def _open_dataset(folder: Path, dataset: str) -> DepthFolder:
    source = FolderDataset(folder, keys=("image", "depth", "mask"), needs=("image", "depth"))
    names = tuple(str(index) for index in range(len(source)))

    def read(name: str) -> DepthSample:
        sample = source[int(name)]
        image, depth, mask = sample["image"].float() / 255, sample["depth"], sample["mask"]
        if depth.shape != image.shape[:2]:
            raise ValueError(_sizes(folder / f"sample {name}", depth, image))
        return DepthSample(name, image, torch.where(mask, depth, torch.zeros_like(depth)), mask, metric=True)

    return DepthFolder(names, "dataset", dataset, read)


def _match_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Image and depth file of each name."""
    home = next((folder / name for name in _IMAGE_FOLDERS if (folder / name).is_dir()), None)
    if home is None:
        raise ValueError(
            f"Expected a folder image beside depth in {show_path(folder)}, got none. Put the images there."
        )
    images = {path.stem: path for path in sorted(home.iterdir()) if path.suffix.lower() in _IMAGES}
    depths = {
        path.stem: path for path in sorted((folder / "depth").iterdir()) if path.suffix.lower() in SUFFIXES
    }
    both = {name: (images[name], depths[name]) for name in images if name in depths}
    if not both:
        raise ValueError(
            f"Expected images and depths of one name in {show_path(home)} and depth, got {len(images)} "
            f"images and {len(depths)} depths without a pair. Name them alike."
        )
    return both


def _read_pair(name: str, image_file: Path, depth_file: Path, scale: float | None) -> DepthSample:
    stated = {"scale": scale, "units": "metric"} if scale and depth_file.suffix.lower() == ".png" else {}
    image, view = _read_image(image_file), read_depth(depth_file, **stated)
    if len(view) != 1 or tuple(view.depth.shape[1:]) != tuple(image.shape[:2]):
        raise ValueError(_sizes(depth_file, view.depth[0], image))
    return DepthSample(name, image, view.depth[0], view.mask[0], metric=view.units == "metric")


def _read_image(path: Path) -> Tensor:
    return open_rgb(path)[0].float() / 255


def _sizes(path: Path, depth: Tensor, image: Tensor) -> str:
    got, wanted = (f"{part.shape[1]} x {part.shape[0]}" for part in (depth, image))
    return (
        f"Expected a depth of the image's {wanted} pixels in {show_path(path)}, got {got}. Replace the file."
    )
