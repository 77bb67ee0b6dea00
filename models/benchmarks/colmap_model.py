"""COLMAP's images.txt, as far as poses go."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..core.text_files import read_text, show_path


def parse_images(path: Path) -> dict[str, Tensor]:
    """world_to_cam (4, 4) float64 by image name. ValueError names the file and line of what is no pose."""
    from scipy.spatial.transform import Rotation

    poses = {}
    lines = [
        (number, line)
        for number, line in enumerate(read_text(path).split("\n"), 1)
        if not line.startswith("#")
    ]
    for number, line in lines[::2]:  # every second line lists points
        if not line.strip():
            continue
        words = line.split()
        try:
            w, x, y, z, *shift = (float(word) for word in words[1:8])
            pose = torch.eye(4, dtype=torch.float64)
            pose[:3, :3] = torch.from_numpy(Rotation.from_quat((x, y, z, w)).as_matrix())
            pose[:3, 3] = torch.tensor(shift, dtype=torch.float64)
            poses[" ".join(words[9:])] = pose
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"Expected IMAGE_ID, quaternion, translation, CAMERA_ID and NAME in line {number} of "
                f"{show_path(path)}, got {line[:60]!r}. Export the model as text."
            ) from error
    return poses
