"""`spatialweave intrinsics build` with a real ComfyUI: two processes share a folder of pictures, and training
reads what they wrote.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
SIZE = (48, 64)
WORDS = "6.text=person:2, sky:1"  # two of the ten prompts: each takes a second on one core


def shipped(root):
    return root / "workflows" / "api" / "build_intrinsic_dataset.json"


def without_weights(root):
    """The shipped graph with nodes that need no download in the estimators' places: green is depth, red
    things are masked.
    """
    graph = json.loads(shipped(root).read_text(encoding="utf-8"))
    for node in ("2", "3", "4", "6", "7"):
        del graph[node]
    grey = {
        "image": ["23", 0],
        "values": "white is far",
        "units": "metric",
        "near": 1.0,
        "far": 10.0,
        "fov_degrees": 60.0,
    }
    graph["5"] = {"class_type": "SpatialWeave_ViewFromImage", "inputs": grey}
    graph["20"] = {"class_type": "ImageToMask", "inputs": {"image": ["1", 0], "channel": "red"}}
    graph["21"] = {"class_type": "ThresholdMask", "inputs": {"mask": ["20", 0], "value": 0.5}}
    graph["8"]["inputs"]["mask"] = ["21", 0]
    graph["22"] = {"class_type": "ImageToMask", "inputs": {"image": ["1", 0], "channel": "green"}}
    graph["23"] = {"class_type": "MaskToImage", "inputs": {"mask": ["22", 0]}}
    return graph


@pytest.fixture
def pictures(tmp_path):
    """Five pictures, grey to the right of red, one of them with a caption; and a file that is no picture."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(5):
        picture = Image.new("RGB", SIZE[::-1], (100 + number,) * 3)
        picture.paste((255, 100 + number, 100 + number), (0, 0, 20 + number, 48))
        picture.save(folder / ("more" if number == 4 else ".") / f"{number}.png")
    (folder / "0.txt").write_text("red beside grey")
    (folder / "2b.png").write_bytes(b"not a picture")
    return folder


@pytest.mark.comfyui
def test_two_processes_with_a_server_each_build_a_folder_that_trains(
    server, second, root, pictures, tmp_path
):
    from spatialweave.models.intrinsic_ldm.data.dataset import IntrinsicSamples

    graph, output, script = tmp_path / "graph.json", tmp_path / "dataset", tmp_path / "build.py"
    graph.write_text(json.dumps(without_weights(root)))
    script.write_text(
        "import os, pathlib, sys\n"
        "from spatialweave.models.intrinsic_ldm.data.build import build_dataset\n"
        "for turn in (1, 2):\n"
        f"    said = build_dataset({str(pictures)!r}, {str(output)!r}, "
        f"servers={[server[0].url, second[0].url]}, size={SIZE}, "
        f"workflow={str(graph)!r}, shard_size=2)\n"
        "    # a file each: in one stream, lines of two processes run into each other\n"
        "    pathlib.Path(f'said_{turn}_{os.environ[\"RANK\"]}').write_text(str(said))\n"
        "    print('turn over', file=sys.stderr)\n"
    )
    call = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = [set(one.get_json("/history")) for one in (server[0], second[0])]
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[:3000]
    # neither process ends a turn before the other has said all of it
    first, _, again = done.stderr.partition("turn over")
    assert "2b.png is left out: Expected an image in " in first and "is left out" not in again
    for turn, wanted in ((1, ["2", "3"]), (2, ["0", "0"])):  # the second time all is there
        said = [(tmp_path / f"said_{turn}_{rank}").read_text() for rank in range(2)]
        counts = r"5 samples, (\d) of them written in this process, 2 processes at work"
        assert sorted(re.findall(counts, "\n".join(said))) == wanted
        assert sum("1 left out: 2b.png (Expected an image in " in each for each in said) == 2, (
            "said by both, the second time too"
        )
    asked = [
        len(set(one.get_json("/history")) - old)
        for one, old in zip((server[0], second[0]), before, strict=True)
    ]
    assert sorted(asked) == [2, 3], (
        "each process asks a server of its own, once for each picture that can be read"
    )
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == ["0.png", "1.png", "2.png", "3.png", "more/4.png"]
    assert [line["caption"] for line in lines] == ["red beside grey", "", "", "", ""]
    for number, line in enumerate(lines):
        row = {name: tensor[line["row"]] for name, tensor in load_file(output / line["shard"]).items()}
        red = torch.arange(64) < 20 + number
        assert torch.equal(row["segmentation"] == 1, red.expand(SIZE))
        assert row["depth"][24, 50] == pytest.approx(1 + 9 * (100 + number) / 255, abs=1e-4)
        assert row["line"].max() == 1 and row["line"][:, 40:].max() == 0
        assert torch.equal(row["image"][0, 60], torch.full((3,), 100 + number, dtype=torch.uint8))
        assert abs(row["normals"][24, 50].tolist()[2] + 127) <= 1
    samples = IntrinsicSamples(output)
    assert len(samples) == 5 and samples[0]["maps"].shape == (8, *SIZE) and samples[0]["present"].all()


@pytest.mark.comfyui
def test_a_graph_that_comfyui_refuses_is_explained(server, root, pictures, tmp_path):
    """The shipped graph where the estimators' files are not there."""
    from spatialweave.models.intrinsic_ldm.data.build import build_dataset

    refused = r"Expected a workflow that ComfyUI accepts, got: .*LoadMoGeModel.*Set its inputs with --set"
    with pytest.raises(ValueError, match=refused):
        build_dataset(pictures, tmp_path / "out", servers=[server[0].url], size=SIZE)


@pytest.mark.comfyui
def test_the_shipped_graph_estimates_with_moge_and_sam(second, runner, root, pictures, tmp_path):
    """On small random models of core's own classes, under the names of the big files; a row holds what the
    same graph saves.
    """
    import numpy as np

    from spatialweave.models.intrinsic_ldm.data.build import build_dataset
    from spatialweave.models.intrinsic_ldm.data.dataset import SKY, IntrinsicSamples

    one, source = tmp_path / "one", pictures / "3.png"
    one.mkdir()
    shutil.copy(source, one)
    changes = [WORDS, "4.resolution_level=0"]
    summary = build_dataset(
        one, tmp_path / "out", servers=[second[0].url], size=SIZE, workflow=shipped(root), changes=changes
    )
    assert (summary.count, summary.written) == (1, 1)
    row = {
        name: tensor[0] for name, tensor in load_file(tmp_path / "out" / "shard-00000.safetensors").items()
    }
    assert sorted(row) == ["depth", "image", "line", "normals", "segmentation"]

    (second[2] / "input").mkdir(exist_ok=True)
    shutil.copy(source, second[2] / "input" / "again.png")
    graph = runner.change_inputs(
        json.loads(shipped(root).read_text(encoding="utf-8")), [*changes, "1.image=again.png"]
    )
    saved = second[0].collect(second[0].wait(second[0].queue(graph), 300), tmp_path / "saved")
    (npz,), masks = (
        [path for path in saved if path.suffix == ".npz"],
        [path for path in saved if path.name.startswith("11_")],
    )
    view = np.load(npz)
    valid, sky = view["mask"][0], view["sky"][0]
    assert 0.2 < valid.mean() < 0.95 and np.array_equal(valid, ~sky), "MoGe leaves out what it takes for sky"
    assert (
        np.array_equal(row["depth"].numpy(), np.where(valid, view["depth"][0], 0))
        and len(np.unique(view["depth"][0])) > 100
    )
    assert (
        np.abs(row["normals"].numpy() - view["normals"][0] * 127).max() <= 0.51 and view["units"] == "metric"
    )
    length = np.linalg.norm(row["normals"].numpy()[valid] / 127, axis=-1)
    assert np.abs(length - 1).max() < 0.02

    shown = np.stack([np.asarray(Image.open(path).convert("L")) > 127 for path in sorted(masks)])
    assert len(shown) == 3, "two of the first word, one of the second"
    ids = row["segmentation"].numpy()
    inside = shown.any(axis=0)
    assert np.array_equal(ids > 0, inside) and np.array_equal(ids == SKY, sky & ~inside) and inside.any()
    assert all(shown[number - 1][ids == number].all() for number in np.unique(ids[ids > 0]))
    samples = IntrinsicSamples(tmp_path / "out")
    assert samples[0]["maps"].isfinite().all() and samples[0]["present"].all()
