"""`spatialweave benchmark` with a real ComfyUI over HTTP: a shipped graph scores as the pipeline does;
poses through a batch.
"""

import json

import pytest
import torch

from spatialweave.models.benchmarks.comfyui_graph import (
    ComfyServer,
    GraphDepth,
    GraphPoses,
    find_image_node,
    read_api_graph,
    set_seeds,
    with_batch,
    with_pose_saver,
    with_saver,
)
from spatialweave.models.benchmarks.depth_folders import open_depth_folder
from spatialweave.models.benchmarks.predictors import VggtPoses
from spatialweave.models.cli import main
from spatialweave.models.core.evaluation.benchmark import score_depth_sample
from spatialweave.models.world.export.dataset import export_dataset
from spatialweave.models.world.multiview import sample_views


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "NYUv2"
    export_dataset(folder, 2, size=(96, 128), seed=1, split="test", layout="files")
    return folder


@pytest.mark.comfyui
def test_the_shipped_graph_scores_from_the_command_line(world, server, root, tmp_path, capsys):
    graph = root / "workflows/api/image_to_depth.json"
    call = [
        "benchmark", "depth", str(world), "--model", "comfyui", "--graph", str(graph), "--server",
        server[0].url,
    ]
    files = [
        "--work", str(tmp_path / "w.jsonl"), "--json", str(tmp_path / "r.json"), "--set", "6.steps=4",
        "--ensemble", "2",
    ]
    assert main([*call, *files]) == 0
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "r.json").read_text())
    assert "| ComfyUI (image_to_depth) |" in shown and figures["samples"] == 2
    assert (
        figures["figures"]["scale"]["absrel"] < 0.35
        and figures["figures"]["scale-shift-robust"]["absrel"] < 0.25
    )
    assert main([*call, *files]) == 0 and capsys.readouterr().out == shown


@pytest.mark.comfyui
def test_a_graph_predicts_what_it_shows(world, server, root):
    folder = open_depth_folder(world)
    sample = folder.read("0")
    graph = read_api_graph(root / "workflows/api/image_to_depth.json", ["6.steps=2"])
    predict = GraphDepth(ComfyServer(server[0].url), graph, name="x")
    one, again = predict(sample.image, 0), predict(sample.image, 0)
    assert torch.equal(one.depth, again.depth) and one.units == "relative"
    other = predict(sample.image, 1)
    assert not torch.equal(one.depth, other.depth), "another image's index is another seed"
    assert score_depth_sample(one, sample, "scale")["absrel"] < 0.5


@pytest.mark.comfyui
def test_a_graph_that_fails_is_said_with_its_reason(server, root):
    graph = read_api_graph(root / "workflows/api/image_to_depth.json", ["6.sampler_name=nothing"])
    with pytest.raises(ValueError, match="accept /prompt.*sampler_name"):
        ComfyServer(server[0].url).run(graph)


@pytest.fixture(scope="module")
def vggt_file(installed):
    """A small VGGT with random weights, where ComfyUI finds it."""
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
    network = Vggt(config := VggtConfig(**sizes, **more))
    init_weights(network, torch.Generator().manual_seed(0))
    with torch.no_grad():  # poses that differ from view to view
        for value in network.parameters():
            value.add_(
                0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
            )
    return save_network(
        installed / "models" / "geometry_estimation" / "small_vggt.safetensors", network, config
    )


@pytest.mark.comfyui
def test_poses_of_a_graph_are_those_of_the_pipeline(server, vggt_file):
    """One Load Image becomes a batch, Fuse Views and Save COLMAP are added, and images.txt comes back."""
    reconstruct = {
        "vggt": ["1", 0], "image": ["2", 0], "fit": "pad", "longer_side": 0, "source": "depth",
        "global_queries": 0,
    }
    shown = {"style": "colour", "near_percentile": 0.0, "far_percentile": 100.0, "view": ["3", 0]}
    graph = {
        "1": {"class_type": "SpatialWeave_LoadVggt", "inputs": {"model_name": vggt_file.name}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "3": {"class_type": "SpatialWeave_VggtReconstruct", "inputs": reconstruct},
        "4": {"class_type": "SpatialWeave_PreviewDepth", "inputs": shown},
    }
    (item,) = sample_views(1, 1, 4, (28, 42), split="test", samples=1)
    images = [(image * 255).round() / 255 for image in item.image]  # as a PNG keeps them
    found = GraphPoses(ComfyServer(server[0].url), graph, name="x")(images)
    expected = VggtPoses(vggt_file)(images)
    assert len({tuple(pose.flatten().tolist()) for pose in expected}) == 4
    torch.testing.assert_close(found, expected.double(), atol=1e-4, rtol=0)


def small():
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "Estimate", "inputs": {"image": ["1", 0], "mask": ["1", 1], "seed": 3}},
        "7": {"class_type": "SpatialWeave_PreviewDepth", "inputs": {"view": ["2", 0]}},
    }


def test_a_saver_is_added_to_what_is_shown():
    graph = with_saver(small())
    assert graph["8"]["class_type"] == "SpatialWeave_SaveDepth" and graph["8"]["inputs"]["view"] == ["2", 0]
    assert with_saver(graph) == graph
    posed = with_pose_saver(small())
    assert posed["8"]["inputs"]["view"] == ["2", 0] and posed["9"]["inputs"]["cloud"] == ["8", 1]
    without = {name: node for name, node in small().items() if name != "7"}
    for add in (with_saver, with_pose_saver):
        with pytest.raises(ValueError, match="got neither"):
            add(without)


def test_one_load_image_becomes_a_batch():
    graph = with_batch(small(), "1", ["x.png", "y.png", "z.png"])
    (last,) = (name for name, node in graph.items() if graph["2"]["inputs"]["image"] == [name, 0])
    loaded = []
    while graph[last]["class_type"] == "ImageBatch":
        loaded.append(graph[graph[last]["inputs"]["image2"][0]]["inputs"]["image"])
        last = graph[last]["inputs"]["image1"][0]
    loaded.append(graph[last]["inputs"]["image"])
    assert loaded == ["z.png", "y.png", "x.png"] and graph["2"]["inputs"]["mask"] == ["1", 1]
    assert small()["1"]["inputs"]["image"] == "a.png" and set_seeds(small(), 9)["2"]["inputs"]["seed"] == 9


def test_graphs_that_do_not_say_what_to_set_are_refused(tmp_path):
    two = small() | {"3": {"class_type": "LoadImage", "inputs": {"image": "b.png"}}}
    with pytest.raises(ValueError, match="Expected one Load Image node in the graph, got 1, 3"):
        find_image_node(two)
    assert find_image_node(two, "3") == "3"
    for text, words in {
        "[]": "got another JSON", "{": "got no JSON", '{"nodes": []}': "got another JSON",
    }.items():
        (tmp_path / "g.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            read_api_graph(tmp_path / "g.json")
