"""NPZ files of other programs: their layouts and types read exactly, what cannot be read refused by file in
one sentence.
"""

import io
import zipfile

import numpy as np
import pytest
import torch

from spatialweave.models.core.export.npz import load_npz, read_npz, write_npz
from spatialweave.models.core.geometry.camera import look_at, upright_world
from spatialweave.models.core.geometry.view import View

HEIGHT, WIDTH = 6, 8
DEPTH = np.linspace(1, 5, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
PIXELS = np.array([[60.0, 0, 4], [0, 60, 3], [0, 0, 1]])
IMAGE = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)


def save(folder, **arrays):
    np.savez(folder / "o.npz", **arrays)
    return folder / "o.npz"


def test_depth_anything_3s_export(tmp_path):
    """Its layout: image uint8 n h w 3, depth, conf, extrinsics n 3 4 (world to camera, y down), intrinsics.
    """
    poses = torch.stack([look_at((0.0, 0, 3), (0.0, 0, 0)), look_at((1.0, 2, 3), (0.0, 0, 0))])
    path = save(
        tmp_path, image=np.stack([IMAGE, 255 - IMAGE]), depth=np.stack([DEPTH, DEPTH * 2]),
        conf=np.stack([DEPTH, DEPTH]) / 5,
        extrinsics=upright_world(poses)[:, :3].numpy(),
        intrinsics=np.stack([PIXELS, PIXELS]).astype(np.float32),
    )  # fmt: skip
    view, notes = load_npz(path, units="metric")
    assert notes == ()
    assert torch.equal(view.image[1], torch.from_numpy(255 - IMAGE) / 255)
    assert torch.equal(view.depth[1], torch.from_numpy(DEPTH * 2)) and torch.equal(
        view.confidence[0], torch.from_numpy(DEPTH / 5)
    )
    assert torch.equal(view.world_to_cam, poses) and view.intrinsics[1].tolist() == PIXELS.tolist()


def test_vggts_predictions(tmp_path):
    """Its layout: depth s h w 1, depth_conf, extrinsic s 3 4, intrinsic, images s 3 h w in [0, 1], and more.
    """
    pose = look_at((0.0, 0, 3), (0.0, 0, 0))
    images = np.moveaxis(IMAGE, -1, 0)[None] / 255
    path = save(
        tmp_path, depth=DEPTH[None, ..., None], depth_conf=DEPTH[None],
        extrinsic=upright_world(pose)[None, :3].double().numpy(),
        intrinsic=PIXELS[None], images=images, world_points=np.zeros((1, HEIGHT, WIDTH, 3), np.float32),
    )  # fmt: skip
    view, notes = load_npz(path, units="relative")
    assert torch.equal(view.depth, torch.from_numpy(DEPTH)[None]) and torch.equal(
        view.confidence[0], view.depth[0]
    )
    assert torch.equal(view.world_to_cam[0], pose) and view.intrinsics[0].tolist() == PIXELS.tolist()
    assert torch.equal(view.image[0], (torch.from_numpy(IMAGE).double() / 255).float())
    assert (
        len(notes) == 1
        and "o.npz, these arrays are not read: world_points (float32 (1, 6, 8, 3))." in notes[0]
    )


def test_identities_are_no_camera(tmp_path):
    path = save(tmp_path, depth=DEPTH, depth_conf=DEPTH, intrinsic=np.eye(3)[None])
    view, notes = load_npz(path, units="relative")
    assert view.intrinsics is None and "intrinsic (float64 (1, 3, 3))" in notes[0]


def test_names_whose_meaning_is_not_sure_are_left_out_and_named(tmp_path):
    path = save(
        tmp_path,
        depth=DEPTH,
        extrinsics=np.eye(4),
        pose=np.eye(4),
        meta=np.array({"a": 1}, object),
        remark=np.array("hello"),
    )
    view, notes = load_npz(path, units="metric")
    assert view.world_to_cam is None
    assert notes[0].endswith(
        "not read: extrinsics (float64 (4, 4)), meta (object ()), pose (float64 (4, 4))."
    )


@pytest.mark.parametrize("kind", ["<f8", ">f4", ">f8", "<f2", "u2", "i8", ">u4"])
def test_number_types(tmp_path, kind):
    values = (np.round(DEPTH * 100)).astype(kind)
    view = read_npz(save(tmp_path, depth=values, intrinsics=PIXELS.astype(kind)), units="metric")
    assert (
        torch.equal(view.depth[0], torch.from_numpy(values.astype(np.float32)))
        and view.intrinsics[0].tolist() == PIXELS.tolist()
    )


@pytest.mark.parametrize(
    "shape", [(HEIGHT, WIDTH, 1), (1, HEIGHT, WIDTH, 1), (1, 1, HEIGHT, WIDTH), (1, HEIGHT, WIDTH)], ids=str
)
def test_layouts(tmp_path, shape):
    assert torch.equal(
        read_npz(save(tmp_path, depth=DEPTH.reshape(shape)), units="metric").depth,
        torch.from_numpy(DEPTH)[None],
    )


def test_fortran_order_is_read(tmp_path):
    assert torch.equal(
        read_npz(save(tmp_path, depth=np.asfortranarray(DEPTH)), units="metric").depth[0],
        torch.from_numpy(DEPTH),
    )


@pytest.mark.parametrize("shape", [(3, 5, 1), (1, 5, 1), (5, 1, 1), (2, 1, 4), (1, 1, 1)], ids=str)
def test_our_own_maps_one_pixel_wide_come_back(tmp_path, shape):
    view = View.from_depth(
        torch.rand(shape[0], 1, *shape[1:]) + 1, units="metric", confidence=torch.rand(shape)
    )
    assert tuple(view.depth.shape) == shape
    back = read_npz(write_npz(tmp_path / "v.npz", view))
    assert torch.equal(back.depth, view.depth) and torch.equal(back.confidence, view.confidence)


@pytest.mark.parametrize(
    ("word", "units"),
    [
        ("metric", "metric"),
        ("m", "metric"),
        ("Meters", "metric"),
        (b"metres", "metric"),
        ("relative", "relative"),
    ],
)
def test_words_for_units(tmp_path, word, units):
    assert read_npz(save(tmp_path, depth=DEPTH, units=np.array(word))).units == units


def test_a_scale_that_the_file_states_makes_depths_of_its_numbers(tmp_path):
    path = save(
        tmp_path, depth=np.array([[0, 1000], [2560, 5000]], np.uint16), depth_scale=1 / 256, depth_units="m"
    )
    assert read_npz(path).depth.tolist() == [[[0, 3.90625], [10, 19.53125]]]
    path = save(
        tmp_path,
        depth=np.array([[0, 1], [2, 3]], np.uint8),
        depth_scale=0.5,
        depth_offset=10,
        units="relative",
    )
    assert read_npz(path).depth.tolist() == [[[0, 10.5], [11, 11.5]]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"direction": "larger = nearer"},
            "Expected the direction 'larger = farther' in .*o.npz, got 'larger = nearer'",
        ),
        ({"depth_direction": "larger = nearer"}, "Expected the direction"),
        ({"direction": 1}, "Expected text as 'direction' in .*o.npz, got int64"),
        ({"units": 1.0}, "Expected text as 'units' in .*o.npz, got float64"),
        ({"units": np.array(["metric", "metric"])}, "Expected text as 'units' in .*o.npz, got <U6 .2,."),
        ({"units": "mm"}, "Expected units 'metric' .* in .*o.npz, got 'mm'"),
        (
            {"units": "metric", "depth_units": "relative"},
            "Expected one units in .*o.npz, got .'metric', 'relative'.",
        ),
        ({"depth_scale": -1.0}, "Expected a finite number above 0 as 'depth_scale' in .*o.npz, got -1.0"),
        ({"depth_scale": np.nan}, "Expected a finite number above 0 as 'depth_scale'"),
        ({"depth_scale": "0.001"}, "Expected a finite number above 0 as 'depth_scale'"),
        ({"depth_offset": np.ones(2)}, "Expected a finite number as 'depth_offset'"),
        (
            {"depth": np.full((2, 2), "5")},
            "Cannot read .*o.npz: Expected real numbers in the array 'depth', got text",
        ),
        (
            {"depth": DEPTH + 1j},
            "Cannot read .*o.npz: Expected real numbers in the array 'depth', got complex numbers",
        ),
        (
            {"depth": np.array([{}, 1], object)},
            "Expected an NPZ of plain arrays, got .*o.npz with pickled objects in the array 'depth'",
        ),
        ({"depth": np.ones(5)}, "Cannot read .*o.npz: .* got .5,."),
        ({"depth": np.ones((0, 5))}, "Cannot read .*o.npz: .* empty depth map"),
        (
            {"image": IMAGE.astype(np.float32)},
            "Cannot read .*o.npz: Expected floats from 0 to 1 in the array 'image', got 0 to 143",
        ),
        ({"image": IMAGE[:3]}, "Cannot read .*o.npz: Expected image"),
        (
            {"intrinsics": PIXELS / [[WIDTH], [HEIGHT], [1]]},
            "Cannot read .*o.npz: Expected intrinsics in pixels of a map 8 x 6",
        ),
        (
            {"intrinsics": np.array([[None]], object)},
            "Expected an NPZ of plain arrays, got .*o.npz with pickled objects in the array 'intrinsics'",
        ),
        ({"world_to_cam": np.full((4, 4), np.nan)}, "Cannot read .*o.npz: Expected a pose"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_by_file(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        read_npz(save(tmp_path, **{"depth": DEPTH, **arrays}), units="metric")


def test_a_unit_of_neither_kind_is_relative_if_the_caller_says_so(tmp_path):
    assert read_npz(save(tmp_path, depth=DEPTH, units="mm"), units="relative").units == "relative"


def forge(path, *, shape, data=b"", dtype="<f4", method=zipfile.ZIP_DEFLATED):
    """An NPZ whose depth claims a shape, and holds this data."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("depth.npy", header.getvalue() + data)
    return path


@pytest.mark.parametrize("shape", [(10**6, 10**6), (4, 4), (1, 3), (-1, -4), (2**62, 2**62)], ids=str)
def test_arrays_of_another_size_than_they_claim_are_refused_before_they_fill_the_memory(tmp_path, shape):
    with pytest.raises(ValueError, match=r"(?s)f\.npz.*(Write it anew|write it anew)"):
        read_npz(forge(tmp_path / "f.npz", shape=shape, data=bytes(16)), units="metric")


def test_zip_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("spatialweave.models.core.export.npz._BOMB", (2**16, 200))
    path = forge(tmp_path / "f.npz", shape=(512, 512), data=bytes(2**20))
    with pytest.raises(
        ValueError,
        match=r"Expected a depth in .*f\.npz, got 1\.05e\+06 bytes of 'depth' packed into .* write it anew",
    ):
        read_npz(path, units="metric")


@pytest.mark.parametrize("position", range(0, 1200, 40))
def test_a_wrong_byte_anywhere_is_a_sentence_or_does_no_harm(tmp_path, position):
    data = bytearray(save(tmp_path, depth=DEPTH, units="metric").read_bytes())
    data[position % len(data)] ^= 0xFF
    (tmp_path / "o.npz").write_bytes(data)
    try:
        assert torch.equal(read_npz(tmp_path / "o.npz", units="metric").depth[0], torch.from_numpy(DEPTH))
    except ValueError as error:
        assert "o.npz" in str(error)


@pytest.mark.parametrize("kind", ["<U1", ">U1"])
def test_texts_of_no_characters_are_refused(tmp_path, kind):
    broken = np.frombuffer(b"\x7f" * 4, kind)
    with pytest.raises(
        ValueError, match=r"Expected text as 'direction' in .*o\.npz, got characters that are none"
    ):
        read_npz(save(tmp_path, depth=DEPTH, direction=broken), units="metric")


def test_resource_forks_are_passed_over(tmp_path):
    path = save(tmp_path, depth=DEPTH)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._depth.npy", b"\0\5\x16\7")
        archive.writestr("README.txt", b"hello")
    assert torch.equal(read_npz(path, units="metric").depth[0], torch.from_numpy(DEPTH))
