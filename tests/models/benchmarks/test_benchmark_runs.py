"""Whole benchmark runs on the world's scenes: exact predictors score perfectly, stopped runs go on,
tables name their sources.
"""

import gzip
import json

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from spatialweave.models.benchmarks.depth_folders import open_depth_folder
from spatialweave.models.benchmarks.depth_run import depth_table, run_depth_benchmark
from spatialweave.models.benchmarks.pose_folders import open_pose_folder
from spatialweave.models.benchmarks.pose_run import pose_table, run_pose_benchmark
from spatialweave.models.benchmarks.published import published_rows
from spatialweave.models.cli import main
from spatialweave.models.core.export.scene_folder import write_scene_folder
from spatialweave.models.core.geometry.fusion import FusionSettings, fuse_views
from spatialweave.models.core.geometry.view import View
from spatialweave.models.world.export.dataset import export_dataset
from spatialweave.models.world.multiview import sample_views

ALIGNMENTS = ("scale", "scale-shift-robust")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "NYUv2"
    export_dataset(folder, 5, size=64, seed=1, split="test", layout="files")
    return folder


class Predictor:
    """The true depth times a number and plus another, and how often it was asked."""

    name, settings = "exact", {}

    def __init__(self, folder, shift=0.0, stop_at=None):
        self.folder, self.shift, self.stop_at, self.asked = folder, shift, stop_at, []

    def __call__(self, image, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(index)
        sample = self.folder.read(self.folder.names[index])
        assert torch.equal(sample.image, image)
        return View.from_depth(
            torch.where(sample.mask, 2 * sample.depth + self.shift, torch.nan), units="relative"
        )


def test_an_exact_predictor_scores_perfectly(world, tmp_path):
    folder = open_depth_folder(world)
    result = run_depth_benchmark(folder, Predictor(folder, 0.5), ALIGNMENTS, tmp_path / "w.jsonl")
    assert result["figures"]["scale-shift-robust"]["absrel"] < 1e-4 and result["samples"] == 5
    assert 0.01 < result["figures"]["scale"]["absrel"] < 0.5
    table = depth_table(result)
    ours = next(line for line in table if line.startswith("| exact") and "MoGe-2" in line)
    assert "| 0.00 | 100.0 |" in ours and "this run, 5 images" in ours
    assert "| Modality Forcing | 2.52 | 98.9 | - |" in "\n".join(table) and "arXiv 2606.13676" in table[-1]


def test_a_stopped_run_goes_on_and_asks_for_nothing_twice(world, tmp_path):
    folder, work = open_depth_folder(world), tmp_path / "w.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_depth_benchmark(folder, Predictor(folder, stop_at=3), ALIGNMENTS, work)
    with work.open("a") as file:
        file.write('{"name": "3", "resu')  # cut off in the middle of a line
    rest = Predictor(folder)
    result = run_depth_benchmark(folder, rest, ALIGNMENTS, work)
    assert rest.asked == [3, 4] and result["samples"] == 5 and result["figures"]["scale"]["absrel"] < 1e-6
    again = Predictor(folder)
    assert run_depth_benchmark(folder, again, ALIGNMENTS, work) == result and not again.asked
    assert run_depth_benchmark(folder, again, ALIGNMENTS, work, limit=2)["samples"] == 2
    assert len(work.read_text().splitlines()) == 6


def test_results_of_other_settings_are_not_mixed(world, tmp_path):
    folder, work = open_depth_folder(world), tmp_path / "w.jsonl"
    run_depth_benchmark(folder, Predictor(folder), ALIGNMENTS, work, limit=1)
    with pytest.raises(ValueError, match="Expected results of .* Choose another work file"):
        run_depth_benchmark(folder, Predictor(folder), ("scale",), work)
    work.write_text("not JSON\n")
    with pytest.raises(ValueError, match="Expected results of a benchmark"):
        run_depth_benchmark(folder, Predictor(folder), ALIGNMENTS, work)


def test_published_figures_are_there_for_each_dataset():
    for dataset, best in {
        "NYUv2": "2.52", "KITTI": "3.75", "ETH3D": "2.37", "ScanNet": "2.32", "DIODE": "3.14"
    }.items():
        rows = published_rows("depth", dataset)
        assert min(rows, key=lambda row: float(row.figures[0])).figures[0] == best
        assert all(row.source and row.alignment for row in rows)
    assert len(published_rows("depth", "ScanNet")) == 8 and published_rows("depth", "mine") == []
    assert published_rows("pose", "CO3Dv2")[0].figures == ("-", "-", "88.2")


def test_modality_forcing_from_the_command_line(world, tmp_path, capsys):
    call = [
        "benchmark", "depth", str(world), "--model", "modality_forcing", "--steps", "2", "--n", "2",
        "--ensemble", "2",
    ]
    files = [
        "--work", str(tmp_path / "w.jsonl"), "--json", str(tmp_path / "r.json"),
        "--markdown", str(tmp_path / "r.md"),
    ]
    assert main([*call, *files]) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "r.md").read_text() and "| Modality Forcing (tiny) |" in shown
    figures = json.loads((tmp_path / "r.json").read_text())
    assert (
        figures["settings"] == {"size": 128, "steps": 2, "seed": 0, "ensemble": 2}
        and figures["samples"] == 2
    )
    assert set(figures["figures"]) == {"scale", "scale-shift", "scale-shift-robust"}
    assert main([*call, *files]) == 0 and capsys.readouterr().out == shown


def test_several_datasets_are_one_table(tmp_path, capsys):
    """A folder of datasets, as MoGe's evaluation has it;
    ours above every published row that knows one of them.
    """
    for name in ("NYUv2", "KITTI", "mine"):
        export_dataset(tmp_path / "eval" / name, 1, size=64, seed=len(name), layout="files")
    (tmp_path / "eval" / "notes").mkdir()
    call = ["benchmark", "depth", str(tmp_path / "eval"), "--model", "modality_forcing", "--steps", "1"]
    files = [
        "--work", str(tmp_path / "work"), "--json", str(tmp_path / "r.json"),
        "--alignment", "scale-shift-robust",
    ]
    assert main([*call, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| model | KITTI | NYUv2 | mine | alignment | source |"
    assert lines[2].startswith("| Modality Forcing (tiny) |") and len(lines) == 3 + 14
    assert "| Modality Forcing | 5.37 / 96.6 | 2.52 / 98.9 | - |" in lines[-1]
    assert [result["dataset"] for result in json.loads((tmp_path / "r.json").read_text())] == [
        "KITTI",
        "NYUv2",
        "mine",
    ]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        "KITTI.jsonl",
        "NYUv2.jsonl",
        "mine.jsonl",
    ]


def test_a_default_work_file_is_one_for_each_setting(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ["benchmark", "depth", str(world), "--model", "modality_forcing", "--n", "1", "--steps"]
    for steps in ("1", "2", "1"):
        assert main([*call, steps]) == 0
    assert len(list((tmp_path / "runs" / "benchmark").glob("depth_NYUv2_modality_forcing_*.jsonl"))) == 2


REFUSED = {
    "nowhere": (["depth", "nowhere", "--model", "modality_forcing"], "Expected a dataset folder"),
    "no graph": (["depth", "WORLD", "--model", "comfyui"], "Expected a graph for --model comfyui"),
    "idle": (["depth", "WORLD", "--model", "modality_forcing", "--graph", "x.json"], "Expected no --graph"),
    "server": (
        ["depth", "WORLD", "--model", "modality_forcing", "--server", "127.0.0.1:9"],
        "Expected no --server",
    ),
    "timeout": (["depth", "WORLD", "--model", "vggt", "--timeout", "5"], "Expected no --timeout"),
    "seed": (["depth", "WORLD", "--model", "vggt", "--seed", "1"], "Expected no --seed for --model vggt"),
    "device": (
        [
            "depth", "WORLD", "--model", "comfyui", "--graph", "workflows/api/image_to_depth.json",
            "--device", "cuda",
        ],
        "Expected no --device for --model comfyui",
    ),
    "scale": (
        ["depth", "WORLD", "--model", "modality_forcing", "--scale", "0.001"],
        "Expected no --scale for the layout dataset, got one: it is for folder",
    ),
    "list": (
        ["depth", "WORLD", "--model", "modality_forcing", "--layout", "dataset", "--list", "x.txt"],
        "Expected no --list for the layout dataset, got one: it is for marigold",
    ),
    "no server": (
        [
            "depth", "WORLD", "--model", "comfyui", "--graph", "workflows/api/image_to_depth.json",
            "--server", "127.0.0.1:9",
        ],
        "Expected a ComfyUI at http://127.0.0.1:9",
    ),
    "no such input": (
        [
            "depth", "WORLD", "--model", "comfyui", "--graph", "workflows/api/image_to_depth.json",
            "--set", "99.x=1",
        ],
        "Expected NODE.INPUT=VALUE",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_is_refused_in_one_sentence(case, world, root, tmp_path, capsys):
    call, words = REFUSED[case]
    call = [
        str(world) if part == "WORLD" else str(root / part) if part.startswith("workflows/") else part
        for part in call
    ]
    assert main(["benchmark", *call, "--work", str(tmp_path / "w.jsonl")]) == 1
    assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Three scenes of five views: as a COLMAP folder, as transforms.json,
    as RealEstate10K; and the true poses.
    """
    folder, true = tmp_path_factory.mktemp("poses") / "CO3Dv2", {}
    for kind, item in zip(
        ("colmap", "nerfstudio", "re10k"),
        sample_views(3, 3, 5, (32, 48), split="test", samples=1),
        strict=True,
    ):
        pose = torch.cat((item.world_to_cam, torch.tensor([0, 0, 0, 1.0]).expand(5, 1, 4)), 1)
        true[kind] = pose.double()
        depth = item.depth_metric.masked_fill(~item.mask, torch.inf)
        cameras = {"image": item.image, "intrinsics": item.intrinsics, "world_to_cam": pose}
        if kind != "re10k":
            fused = fuse_views(
                View.from_depth(depth, units="metric", **cameras),
                FusionSettings(tolerance=0.0, edge_rtol=0.0),
            )
            write_scene_folder(folder / kind, fused.thin(50), layout=kind)
            continue
        (folder / kind).mkdir()
        lines = ["https://www.youtube.com/watch?v=x"]
        for i in range(5):
            stamp = 1000 * (i + 1)
            imageio.imwrite(folder / kind / f"{stamp}.png", (item.image[i].numpy() * 255).astype(np.uint8))
            numbers = [0.5, 0.9, 0.5, 0.5, 0, 0, *item.world_to_cam[i].double().flatten().tolist()]
            lines.append(" ".join(str(number) for number in (stamp, *numbers)))
        lines.append("6000 " + " ".join(["0"] * 18))  # a frame without an image
        (folder / f"{kind}.txt").write_text("\n".join(lines) + "\n")
    return folder, true


def test_co3ds_annotations_give_the_true_poses(tmp_path):
    """Written from the convention's definition: row vectors, x to the left, y up."""
    (item,) = sample_views(3, 1, 3, (24, 24), split="test", samples=1)
    frames = []
    for i in range(3):
        name = f"apple/seq_1/images/frame{i:06}.jpg"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(tmp_path / name, (item.image[i].numpy() * 255).astype(np.uint8))
        pose = item.world_to_cam[i].double().numpy()
        axes = np.diag([-1.0, -1.0, 1.0]) @ pose  # the same camera with x left and y up
        viewpoint = {"R": axes[:, :3].T.tolist(), "T": axes[:, 3].tolist()}
        frames.append({"sequence_name": "seq_1", "image": {"path": name}, "viewpoint": viewpoint})
    frames.append({"sequence_name": "seq_2", "image": {"path": "apple/no.jpg"}, "viewpoint": viewpoint})
    (tmp_path / "apple" / "frame_annotations.jgz").write_bytes(gzip.compress(json.dumps(frames).encode()))
    folder = open_pose_folder(tmp_path, frames=10, dataset="CO3Dv2")
    assert folder.names == ("apple/seq_1",)
    scene = folder.read("apple/seq_1")
    torch.testing.assert_close(scene.world_to_cam[:, :3], item.world_to_cam.double(), atol=1e-6, rtol=0)
    (tmp_path / "apple" / "frame_annotations.jgz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="Expected frames with image and viewpoint"):
        open_pose_folder(tmp_path, frames=10)


class Poses:
    """The true poses of a scene in another world and scale,
    optionally turned by a known angle; found by the images.
    """

    name, settings = "exact poses", {}

    def __init__(self, scenes, degrees=0.0):
        self.scenes, self.degrees = scenes, degrees

    def __call__(self, images):
        (scene,) = (
            scene
            for scene in self.scenes
            if all(torch.equal(a, b) for a, b in zip(scene.images, images, strict=True))
        )
        turn = torch.eye(4, dtype=torch.float64)
        angle = np.radians(self.degrees)
        turn[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        poses = scene.world_to_cam.clone()
        poses[:, :3, 3] *= 3
        poses[1:] = turn @ poses[1:]
        return poses


def test_every_layout_gives_the_true_poses(scenes):
    folder, true = scenes
    opened = open_pose_folder(folder, frames=5)
    assert sorted(opened.names) == ["colmap", "nerfstudio", "re10k"] and opened.dataset == "CO3Dv2"
    for name in opened.names:
        scene = opened.read(name)
        assert [tuple(image.shape) for image in scene.images] == [(32, 48, 3)] * 5
        found, expected = (poses @ torch.linalg.inv(poses[0]) for poses in (scene.world_to_cam, true[name]))
        # transforms.json has a world of its own
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    some = open_pose_folder(folder, frames=3, seed=1).read("re10k")
    assert len(some.images) == 3 == len(some.world_to_cam)
    assert torch.equal(
        some.world_to_cam, open_pose_folder(folder, frames=3, seed=1).read("re10k").world_to_cam
    )


def test_pose_runs_count_all_pairs_and_go_on(scenes, tmp_path):
    opened = open_pose_folder(scenes[0], frames=4, seed=2)
    read = [opened.read(name) for name in opened.names]
    chosen = {"frames": 4, "seed": 2}
    exact = run_pose_benchmark(opened, Poses(read), tmp_path / "w.jsonl", **chosen)
    assert exact["figures"]["auc5"] == 100 and exact["pairs"] == 18 and exact["scenes"] == 3
    table = "\n".join(pose_table(exact))
    assert "| exact poses | 100.00 | 100.00 | 100.00 |" in table and "| VGGT | - | - | 88.2 |" in table
    assert run_pose_benchmark(opened, NotAsked(), tmp_path / "w.jsonl", **chosen) == exact
    turned = run_pose_benchmark(opened, Poses(read, 7.0), tmp_path / "turned.jsonl", **chosen)["figures"]
    assert turned["auc5"] < 60 and turned["auc30"] < 100
    with pytest.raises(ValueError, match="Expected results of"):
        run_pose_benchmark(opened, Poses(read), tmp_path / "w.jsonl", frames=3, seed=2)


class NotAsked:
    """A predictor whose results are all there."""

    name, settings = "exact poses", {}

    def __call__(self, images):
        raise AssertionError("asked again")


def test_what_is_no_pose_benchmark_is_refused_in_words(scenes, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad" / "scene").mkdir(parents=True)
    (tmp_path / "bad" / "scene" / "transforms.json").write_text('{"frames": [{"file_path": "a.png"}]}')
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a").mkdir()
    (tmp_path / "short" / "a.txt").write_text("address\n1 2 3\n")
    cases = {
        "Expected a dataset folder": lambda: open_pose_folder(tmp_path / "nowhere", frames=4),
        "Expected scenes in": lambda: open_pose_folder(tmp_path / "empty", frames=4),
        "Expected at least 2 frames of a scene": lambda: open_pose_folder(scenes[0], frames=1),
        "Expected frames with file_path": lambda: open_pose_folder(tmp_path / "bad", frames=4).read("scene"),
        "Expected 19 numbers in line 2": lambda: open_pose_folder(tmp_path / "short", frames=4).read("a"),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words):
            call()


@pytest.fixture(scope="module")
def small_vggt(tmp_path_factory):
    """A file of a small VGGT with random weights."""
    from spatialweave.models.vggt.config import VggtConfig
    from spatialweave.models.vggt.network import Vggt
    from spatialweave.models.vggt.training import init_weights
    from spatialweave.models.vggt.weights import save_network

    sizes = {
        "img_size": 28, "embed_dim": 32, "depth": 4, "num_heads": 2, "backbone_depth": 1,
        "backbone_num_heads": 2, "dpt_features": 8,
    }
    more = {
        "dpt_out_channels": (8, 8, 8, 8), "dpt_layers": (0, 1, 2, 3), "camera_trunk_depth": 1,
        "camera_num_heads": 2,
    }
    config = VggtConfig(**sizes, **more)
    network = Vggt(config)
    init_weights(network, torch.Generator().manual_seed(0))
    return save_network(tmp_path_factory.mktemp("vggt") / "small.safetensors", network, config)


def test_vggt_from_the_command_line(world, scenes, small_vggt, tmp_path, capsys):
    model = ["--model", "vggt", "--weights", str(small_vggt), "--n", "2"]
    depth = [
        "benchmark", "depth", str(world), *model, "--alignment", "scale-shift",
        "--work", str(tmp_path / "d.jsonl"),
    ]
    assert main([*depth, "--json", str(tmp_path / "d.json")]) == 0
    pose = ["benchmark", "pose", str(scenes[0]), *model, "--frames", "3", "--work", str(tmp_path / "p.jsonl")]
    assert main([*pose, "--json", str(tmp_path / "p.json"), "--name", "Ours"]) == 0
    shown = capsys.readouterr().out
    assert (
        "| VGGT (small.safetensors) |" in shown
        and "| Ours |" in shown
        and "| VGGT | - | - | 88.2 |" in shown
    )
    depth, pose = (json.loads((tmp_path / name).read_text()) for name in ("d.json", "p.json"))
    assert 0 < depth["figures"]["scale-shift"]["absrel"] < 1 and depth["settings"] == {"size": 0}
    assert pose["pairs"] == 6 and 0 <= pose["figures"]["auc5"] <= pose["figures"]["auc30"] <= 100
    assert main(["benchmark", "pose", str(scenes[0]), *model, "--set", "1.x=2"]) == 1
    assert main(["benchmark", "depth", str(world), *model, "--ensemble", "3"]) == 1
    assert "Expected no --ensemble for --model vggt" in capsys.readouterr().err
