"""NPZ: numpy reads it as plain arrays, and it comes back bit for bit."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from spatialweave.models.core.export.npz import read_npz, write_npz
from spatialweave.models.core.geometry.camera import intrinsics_from_fov, look_at
from spatialweave.models.core.geometry.view import View


def full_view():
    random = torch.Generator().manual_seed(0)
    return View.from_depth(
        torch.rand(2, 5, 7, generator=random) - 0.1,
        units="relative",
        image=torch.rand(2, 5, 7, 3, generator=random),
        normals=torch.nn.functional.normalize(torch.randn(2, 5, 7, 3, generator=random), dim=-1),
        confidence=torch.rand(2, 5, 7, generator=random),
        intrinsics=intrinsics_from_fov(torch.tensor([60.0, 75.0]), 7, 5),
        world_to_cam=look_at(torch.rand(2, 3, generator=random), torch.rand(2, 3, generator=random) + 2),
    )


@pytest.mark.parametrize(
    "view", [full_view(), View.from_depth(torch.ones(3, 4), units="metric")], ids=["full", "bare"]
)
def test_reread_equals_written(tmp_path, view):
    write_npz(tmp_path / "v.npz", view)
    back = read_npz(tmp_path / "v.npz")
    for field in fields(View):
        ours, theirs = getattr(view, field.name), getattr(back, field.name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, field.name


def test_numpy_alone_reads_it(tmp_path):
    view = full_view()
    write_npz(tmp_path / "v.npz", view)
    with np.load(tmp_path / "v.npz", allow_pickle=False) as file:
        assert str(file["units"]) == "relative" and str(file["direction"]) == "larger = farther"
        np.testing.assert_array_equal(file["depth"], view.depth.numpy())
        assert file["mask"].dtype == bool


def test_files_of_others(tmp_path):
    np.savez(tmp_path / "o.npz", depth=np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="which does not state them, got none"):
        read_npz(tmp_path / "o.npz")
    assert read_npz(tmp_path / "o.npz", units="metric").mask.tolist() == [[[True, False]]]
    np.savez(tmp_path / "p.npz", disparity=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"Expected an array named 'depth' in .*p.npz, got \['disparity'\]"):
        read_npz(tmp_path / "p.npz")


def test_foreign_and_damaged_files_are_named(tmp_path):
    np.savez(tmp_path / "objects.npz", depth=np.array([{}, 1], dtype=object))
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("hello")
    write_npz(tmp_path / "cut.npz", full_view())
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match="Expected an NPZ of plain arrays, got .*objects.npz with pickled objects in the array 'depth'",
    ):
        read_npz(tmp_path / "objects.npz", units="metric")
    for name in ("array.npy", "text.npz", "cut.npz", "empty.npz"):
        with pytest.raises(
            ValueError,
            match=f"Expected an NPZ of plain arrays, got .*{name}, which is none, or a damaged one",
        ):
            read_npz(tmp_path / name, units="metric")
