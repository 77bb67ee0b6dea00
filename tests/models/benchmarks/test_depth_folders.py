"""The world's scenes written in the benchmarks' layouts by NumPy and Pillow, and the Middlebury motorcycle:
read back exactly.
"""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from spatialweave.models.benchmarks.depth_folders import find_depth_folders, open_depth_folder
from spatialweave.models.benchmarks.moge_view import crop_to_view
from spatialweave.models.benchmarks.predictors import ModalityForcingDepth
from spatialweave.models.core.evaluation.benchmark import score_depth_sample
from spatialweave.models.core.geometry.view import View
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import sample_scenes


@pytest.fixture(scope="module")
def frames():
    return lambda height, width, count=2: render(
        sample_scenes(4, count, split="test"), height, width, samples=1
    )


def picture(image):
    return Image.fromarray((image.numpy() * 255).round().astype(np.uint8))


def write_moge(folder, frames):
    """image.jpg, depth.png by its logarithmic code, meta.json; the list of samples."""
    names = [f"scene/{i}" for i in range(len(frames))]
    for i, name in enumerate(names):
        place = folder / name
        place.mkdir(parents=True)
        picture(frames.image[i]).save(place / "image.jpg", quality=95)
        depth = frames.depth[i].double().numpy()
        near, far = depth.min(), np.max(depth[np.isfinite(depth)])
        with np.errstate(invalid="ignore"):
            code = 1 + np.round(np.log(depth / near) / np.log(far / near) * 65533)
        code[np.isinf(depth)] = 65535
        code[0, :3] = 0
        text = PngImagePlugin.PngInfo()
        text.add_text("near", str(near))
        text.add_text("far", str(far))
        Image.fromarray(code.astype(np.uint16)).save(place / "depth.png", pnginfo=text)
        height, width = depth.shape
        camera = frames.intrinsics[i].double().numpy() / np.array([[width], [height], [1]])
        (place / "meta.json").write_text(json.dumps({"intrinsics": camera.tolist()}))
    (folder / ".index.txt").write_text("\n".join(names) + "\n")


def test_moges_layout(tmp_path, frames):
    home = tmp_path / "own"
    shown = frames(40, 56)
    write_moge(home, shown)
    folder = open_depth_folder(home)
    assert folder.layout == "moge" and folder.dataset == "own" and folder.names == ("scene/0", "scene/1")
    for i, name in enumerate(folder.names):
        sample = folder.read(name)
        expected = shown.depth[i].clone()
        expected[0, :3] = torch.inf
        mask = expected.isfinite()
        assert torch.equal(sample.mask, mask) and sample.metric
        torch.testing.assert_close(sample.depth[mask], expected[mask], rtol=1e-4, atol=0)
        assert float((sample.image - shown.image[i]).abs().mean()) < 0.03


def test_moges_layout_at_the_size_of_its_evaluation(tmp_path, frames):
    write_moge(tmp_path / "NYUv2", frames(96, 96, 1))
    sample = open_depth_folder(tmp_path / "NYUv2").read("scene/0")
    assert sample.depth.shape == (480, 640) and sample.image.shape == (480, 640, 3)
    wide = frames(480, 640, 1)  # the same camera: the crop's field of view is smaller, and known
    row, column = 240, 320
    assert float(sample.depth[row, column]) == pytest.approx(float(wide.depth[0, row, column]), rel=0.05)


def test_a_crop_keeps_the_camera():
    """A ramp whose depth is its column: of 100 x 60 pixels with the center at (40, 30) come 80 x 60,
    then 40 x 30.
    """
    depth = torch.arange(100.0).expand(60, 100)
    camera = torch.tensor([[0.9, 0, 0.4], [0, 1.5, 0.5], [0, 0, 1.0]])
    image = depth[..., None].expand(-1, -1, 3) / 100
    cropped, kept = crop_to_view(image, depth, camera, 40, 30)
    assert kept.shape == (30, 40) and kept[0, 0] == 1 and kept[0, -1] == 79
    assert float(cropped[15, 20, 0]) == pytest.approx(0.405, abs=0.01)
    same, untouched = crop_to_view(
        image, depth, torch.tensor([[0.9, 0, 0.5], [0, 1.5, 0.5], [0, 0, 1.0]]), 100, 60
    )
    assert torch.equal(same, image) and torch.equal(untouched, depth)


def save_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def steps(depth, divisor):
    return np.where(np.isfinite(depth), np.round(np.nan_to_num(depth, posinf=0) * divisor), 0).astype(
        np.uint16
    )


@pytest.mark.parametrize(("dataset", "divisor"), [("NYUv2", 1000), ("ScanNet", 1000), ("KITTI", 256)])
def test_marigolds_16_bit_datasets(tmp_path, frames, dataset, divisor):
    size = {"NYUv2": (480, 640), "ScanNet": (60, 80), "KITTI": (375, 1242)}[dataset]
    shown = frames(*size, 1)
    depth = shown.depth[0].double().numpy()
    picture(shown.image[0]).save(tmp_path / "rgb_0.png")
    save_png(tmp_path / "depth" / "0.png", steps(depth, divisor))
    (tmp_path / "list.txt").write_text("rgb_0.png depth/0.png depth/0.png\nnot_there.png None 1.0\n")
    folder = open_depth_folder(tmp_path, dataset=dataset, file_list=tmp_path / "list.txt")
    assert folder.layout == "marigold" and folder.names == ("rgb_0.png",)
    own = tmp_path.rename(tmp_path.with_name(dataset))  # the dataset's name and its one list say the rest
    assert find_depth_folders(own) == [own]
    assert open_depth_folder(own).names == folder.names and open_depth_folder(own).layout == "marigold"
    folder = open_depth_folder(own)
    sample = folder.read("rgb_0.png")
    stored = steps(depth, divisor) / divisor
    if dataset == "KITTI":  # the benchmark's crop, lower middle, then Eigen's
        stored = stored[23:375, 13 : 13 + 1216]
    assert sample.depth.shape == stored.shape
    low, high = sample.limits
    inside = np.zeros(stored.shape, bool)
    crops = {"NYUv2": np.s_[45:471, 41:601], "ScanNet": np.s_[:, :]}
    crops["KITTI"] = np.s_[
        int(0.3324324 * 352) : int(0.91351351 * 352), int(0.0359477 * 1216) : int(0.96405229 * 1216)
    ]
    inside[crops[dataset]] = True
    mask = inside & (stored > low) & (stored < high)
    np.testing.assert_array_equal(sample.mask, mask)
    np.testing.assert_allclose(sample.depth[sample.mask], stored[mask], rtol=1e-6)


def test_marigolds_diode_and_eth3d(tmp_path, frames):
    shown = frames(48, 64, 1)
    depth = shown.depth[0].numpy()
    finite = np.where(np.isfinite(depth), depth, 0).astype(np.float32)
    picture(shown.image[0]).save(tmp_path / "a.png")
    np.save(tmp_path / "a_depth.npy", finite[..., None])
    keep = (np.arange(64) % 2 == 0) & (finite > 0)
    np.save(tmp_path / "a_mask.npy", keep.astype(np.float32))
    raw = np.where(np.isfinite(depth), depth, np.inf).astype("<f4")
    raw.tofile(tmp_path / "a.raw")
    (tmp_path / "diode.txt").write_text("a.png a_depth.npy a_mask.npy\n")
    (tmp_path / "eth.txt").write_text("a.png a.raw\n")
    diode, eth = (
        open_depth_folder(tmp_path, dataset=name, file_list=tmp_path / file).read("a.png")
        for name, file in (("DIODE", "diode.txt"), ("ETH3D", "eth.txt"))
    )
    np.testing.assert_array_equal(diode.mask, keep)
    np.testing.assert_array_equal(diode.depth[diode.mask], finite[keep])
    np.testing.assert_array_equal(eth.mask, np.isfinite(depth))
    np.testing.assert_array_equal(eth.depth[eth.mask], finite[np.isfinite(depth)])


def test_plain_folders_with_a_scale_and_the_worlds_own(tmp_path, frames):
    from spatialweave.models.world.export.dataset import export_dataset

    shown = frames(40, 48)
    (tmp_path / "plain" / "image").mkdir(parents=True)
    for i in range(2):
        picture(shown.image[i]).save(tmp_path / "plain" / "image" / f"{i}.png")
        save_png(tmp_path / "plain" / "depth" / f"{i}.png", steps(shown.depth[i].double().numpy(), 2000))
    folder = open_depth_folder(tmp_path / "plain", scale=1 / 2000)
    assert (folder.layout, folder.names) == ("folder", ("0", "1"))
    sample = folder.read("1")
    mask = shown.depth[1].isfinite()
    assert torch.equal(sample.mask, mask)
    torch.testing.assert_close(sample.depth[mask], shown.depth[1][mask], atol=3e-4, rtol=0)
    export_dataset(tmp_path / "world", 2, size=(40, 48), seed=4, split="test", layout="files")
    world = open_depth_folder(tmp_path / "world")
    assert world.layout == "dataset" and len(world.names) == 2 and world.read("0").mask.any()


def test_what_is_no_benchmark_is_refused_in_words(tmp_path, frames):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "depth").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("a.png\n")
    write_moge(tmp_path / "moge", frames(16, 16, 1))
    (tmp_path / "moge" / "scene" / "0" / "meta.json").unlink()
    cases = {
        "Expected a dataset folder": lambda: open_depth_folder(tmp_path / "nowhere"),
        "got none of these": lambda: open_depth_folder(tmp_path / "empty"),
        "Expected a folder image beside depth": lambda: open_depth_folder(tmp_path / "half"),
        "State --dataset": lambda: open_depth_folder(tmp_path / "empty", file_list=tmp_path / "list.txt"),
        "Expected image and depth in each line": lambda: open_depth_folder(
            tmp_path, dataset="NYUv2", file_list=tmp_path / "list.txt"
        ),
        "Expected a dataset of NYUv2": lambda: open_depth_folder(
            tmp_path, dataset="Sintel", file_list=tmp_path / "list.txt"
        ),
        "Expected intrinsics": lambda: open_depth_folder(tmp_path / "moge").read("scene/0"),
        "Expected a layout of": lambda: open_depth_folder(tmp_path / "moge", layout="zip"),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words):
            call()


@pytest.fixture(scope="session")
def motorcycle(tmp_path_factory):
    """Left image and disparity of Middlebury's motorcycle, which scikit-image 0.17.2 ships,
    as Pillow and NumPy read them.
    """
    folder = tmp_path_factory.mktemp("wheel")
    call = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--python-version", "3.8",
    ]
    ran = subprocess.run(
        [*call, "--dest", str(folder), "scikit-image==0.17.2"], capture_output=True, text=True, timeout=300
    )
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip(f"the wheel of scikit-image 0.17.2 could not be had: {ran.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        data = {name: wheel.read(f"skimage/data/motorcycle_{name}") for name in ("left.png", "disp.npz")}
    return Image.open(io.BytesIO(data["left.png"])), np.load(io.BytesIO(data["disp.npz"]))["arr_0"]


def test_a_real_picture_with_true_depth(tmp_path, motorcycle):
    """Middlebury's motorcycle: focal length 994.978 px, baseline .193001 m, offset 31.086 px."""
    image, disparity = motorcycle
    with np.errstate(invalid="ignore", divide="ignore"):
        depth = 994.978 * 0.193001 / (disparity + 31.086)
    depth = np.where(np.isfinite(depth), depth, 0).astype(np.float32)
    assert 1.5 < np.median(depth[depth > 0]) < 5 and (depth > 0).mean() > 0.7
    (tmp_path / "image").mkdir()
    (tmp_path / "depth").mkdir()
    image.save(tmp_path / "image" / "motorcycle.png")
    np.savez(tmp_path / "depth" / "motorcycle.npz", depth=depth, units="metric")
    sample = open_depth_folder(tmp_path).read("motorcycle")
    np.testing.assert_array_equal(sample.mask, depth > 0)
    exact = View.from_depth(torch.from_numpy(depth) / 3, units="relative")
    assert score_depth_sample(exact, sample, "scale")["absrel"] < 1e-5
    view = ModalityForcingDepth(steps=4)(sample.image, 0)
    assert view.depth.shape == (1, 86, 128)
    figures = score_depth_sample(view, sample, "scale-shift-robust")
    assert 0 < figures["absrel"] < 0.4 and figures["rmse"] < 2
