"""8-bit PNG, read back by imageio and Pillow."""

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.core.export.png8 import write_png8


def test_levels_and_text_survive(tmp_path):
    image = torch.tensor([[[0.0, 0.5, 1.0], [-1.0, 2.0, 0.25]]])
    write_png8(tmp_path / "a.png", image, {"prompt": "ein roter Ball f\u00fcr \u732b", "seed": "7"})
    assert imageio.imread(tmp_path / "a.png").tolist() == [[[0, 128, 255], [0, 255, 64]]]
    assert Image.open(tmp_path / "a.png").text == {"prompt": "ein roter Ball f\u00fcr \u732b", "seed": "7"}


def test_every_level_is_exact(tmp_path):
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    write_png8(tmp_path / "a.png", torch.from_numpy(levels) / 255)
    np.testing.assert_array_equal(imageio.imread(tmp_path / "a.png"), levels)


def test_a_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected an image \(h, w, 3\), got \(1, 4, 4, 3\)"):
        write_png8(tmp_path / "a.png", torch.zeros(1, 4, 4, 3))
