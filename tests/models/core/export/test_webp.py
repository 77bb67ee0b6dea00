"""Animated WebP, read back by imageio and Pillow."""

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.core.export.webp import write_webp

FRAMES = torch.stack([torch.full((16, 24, 3), level) for level in (0.0, 0.5, 1.0, 0.5)])


def test_frames_size_time_and_loop(tmp_path):
    write_webp(tmp_path / "a.webp", FRAMES, fps=30)
    with Image.open(tmp_path / "a.webp") as picture:
        assert (picture.n_frames, picture.size, picture.info["loop"]) == (4, (24, 16), 0)
        durations = []
        for index in range(4):
            picture.seek(index)
            picture.load()
            durations.append(picture.info["duration"])
    assert sum(durations) == 133  # 4 / 30 s in whole milliseconds
    levels = imageio.imread(tmp_path / "a.webp", index=...).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, [0, 128, 255, 128], atol=2)


def test_lossless_is_exact(tmp_path):
    frames = [torch.rand(9, 11, 3) for _ in range(3)]
    write_webp(tmp_path / "a.webp", frames, lossless=True)
    wanted = np.stack([(frame * 255).round().numpy() for frame in frames])
    np.testing.assert_array_equal(imageio.imread(tmp_path / "a.webp", index=...), wanted)


def test_one_frame_is_a_still(tmp_path):
    with Image.open(write_webp(tmp_path / "a.webp", FRAMES[:1])) as picture:
        assert getattr(picture, "n_frames", 1) == 1


def test_bad_frames_are_worded(tmp_path):
    for frames in ([], [torch.zeros(4, 4, 3), torch.zeros(4, 5, 3)], [torch.zeros(4, 4, 4)]):
        with pytest.raises(ValueError, match="Expected one or more frames, all of one"):
            write_webp(tmp_path / "a.webp", frames)
    with pytest.raises(ValueError, match="frames a second, got 0"):
        write_webp(tmp_path / "a.webp", FRAMES, fps=0)
