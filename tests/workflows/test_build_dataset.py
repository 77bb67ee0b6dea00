"""`spatialweave intrinsics build` with a real ComfyUI: two processes share a folder of pictures, and training reads what they wrote."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
SIZE = (48, 64)


def without_weights(root):
    """The shipped graph with nodes that need no download in the estimators' places: green is depth, red things are masked."""
    graph = json.loads((root / "workflows" / "api" / "build_intrinsic_dataset.json").read_text(encoding="utf-8"))
    for node in ("2", "3", "4", "6", "7"):
        del graph[node]
    grey = {"image": ["23", 0], "values": "white is far", "units": "metric", "near": 1.0, "far": 10.0, "fov_degrees": 60.0}
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
def test_two_processes_build_a_folder_that_trains(server, root, pictures, tmp_path):
    from spatialweave.models.intrinsic_ldm.dataset import IntrinsicSamples

    graph, output, script = tmp_path / "graph.json", tmp_path / "dataset", tmp_path / "build.py"
    graph.write_text(json.dumps(without_weights(root)))
    script.write_text(
        "from spatialweave.models.intrinsic_ldm.dataset_build import build_dataset\n"
        f"print(build_dataset({str(pictures)!r}, {str(output)!r}, servers=[{server[0].url!r}], size={SIZE}, workflow={str(graph)!r}, "
        "shard_size=2))\n"
    )
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for wanted in (["2", "3"], ["0", "0"]):  # the second time all is there
        done = subprocess.run(call, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr[:3000]
        assert sorted(re.findall(r"5 samples, (\d) of them written in this process, 2 processes at work", done.stdout)) == wanted
        assert ("2b.png is left out: it cannot be read" in done.stderr) == (wanted[0] != "0")
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
    from spatialweave.models.intrinsic_ldm.dataset_build import build_dataset

    with pytest.raises(ValueError, match=r"ComfyUI refuses the workflow: .*LoadMoGeModel.*set its inputs with --set"):
        build_dataset(pictures, tmp_path / "out", servers=[server[0].url], size=SIZE)
