"""Sky: depth that is not missing but infinite, through the View and the files."""

import numpy as np
import OpenEXR
import pytest
import torch

from spatialweave.models.core.export.exr import read_exr, write_exr
from spatialweave.models.core.export.npz import read_npz, write_npz
from spatialweave.models.core.geometry.view import View

DEPTH = torch.tensor([[[1.0, 3.0, torch.inf], [torch.nan, 0.0, 2.0]]])
SKY = torch.tensor([[[False, False, True], [False, False, False]]])


def test_sky_is_what_is_infinite_and_is_not_valid():
    view = View.from_depth(DEPTH, units="metric")
    assert torch.equal(view.sky, SKY)
    assert not (view.sky & view.mask).any()
    assert torch.equal(view[0].sky, SKY)


def test_sky_is_absent_where_nothing_is_infinite():
    assert View.from_depth(torch.ones(1, 2, 2), units="metric").sky is None


def test_sky_on_valid_pixels_is_refused():
    view = View.from_depth(DEPTH, units="metric")
    with pytest.raises(ValueError, match="got a sky and a mask that disagree"):
        View(view.depth, "metric", view.mask, sky=torch.ones_like(view.mask))


def test_sky_begins_where_it_is_said_to():
    """What another program writes for nothing becomes sky; what is missing stays missing,
    and sky that was known stays sky.
    """
    raw = torch.tensor([[[1.0, 3.0, 1e10], [torch.nan, torch.inf, 2.0]]])
    view = View.from_depth(raw, units="metric").with_sky_from(1e10)
    assert view.sky.tolist() == [[[False, False, True], [False, True, False]]]
    assert (
        view.mask.tolist() == [[[True, True, False], [False, False, True]]] and float(view.depth.max()) == 3
    )
    assert View.from_depth(torch.ones(1, 2, 2), units="metric").with_sky_from(1e10).sky.any().item() is False
    for depth in (0.0, -1.0, torch.nan):
        with pytest.raises(ValueError, match="Expected a depth above 0 from which on it is sky, got "):
            view.with_sky_from(depth)


def test_sky_survives_exr_and_npz(tmp_path):
    view = View.from_depth(DEPTH, units="metric")
    with OpenEXR.File(str(write_exr(tmp_path / "d.exr", view))) as file:
        assert np.array_equal(np.isinf(file.channels()["Z"].pixels), SKY[0].numpy())
    for read in (read_exr(tmp_path / "d.exr"), read_npz(write_npz(tmp_path / "d.npz", view))):
        assert (
            torch.equal(read.sky, SKY)
            and torch.equal(read.mask, view.mask)
            and torch.equal(read.depth, view.depth)
        )
