"""The graph that infers the depth of a prompt beside OmniGen2, which then follows it: as a file, and run in a
real ComfyUI on small random files of core's own classes.
"""

import json
import re

import pytest

NAME = "spatial_fusion_omnigen2"


@pytest.fixture
def graph(root):
    return json.loads((root / "workflows" / f"{NAME}.json").read_text(encoding="utf-8"))


@pytest.fixture
def twin(root):
    return json.loads((root / "workflows/api" / f"{NAME}.json").read_text(encoding="utf-8"))


def of_kind(graph, kind):
    return next(key for key, node in graph.items() if node["class_type"] == kind)


def test_files_and_licences_are_named(graph):
    """Where ComfyUI offers the download, and in the note; ours are not offered, as none is published."""
    note = graph["nodes"][0]["widgets_values"][0]
    offered = {
        model["name"]: model for node in graph["nodes"] for model in node["properties"].get("models", ())
    }
    assert sorted(offered) == ["ae.safetensors", "omnigen2_fp16.safetensors", "qwen_2.5_vl_fp16.safetensors"]
    for name, model in offered.items():
        assert re.fullmatch(r"https://huggingface\.co/\S+\.safetensors", model["url"])
        assert name.removesuffix(".safetensors") in note and model["directory"] in note
    assert "none has been published" in note and "models/model_patches" in note
    assert "Apache-2.0" in note and "picture is rendered" in note


def test_the_depth_is_of_the_prompt_and_the_size_that_are_sampled(twin):
    prompts = {
        tuple(node["inputs"][name])
        for node in twin.values()
        for name in ("text", "prompt")
        if isinstance(node["inputs"].get(name), list)
    }
    assert prompts == {(of_kind(twin, "PrimitiveStringMultiline"), 0)}
    depth, latent = (
        twin[of_kind(twin, kind)]["inputs"] for kind in ("SpatialWeave_SpatialDepth", "EmptySD3LatentImage")
    )
    assert (depth["width"], depth["height"]) == (latent["width"], latent["height"])


@pytest.fixture(scope="module")
def files(installed):
    """A spatial transformer beside the small language model, and an adapter to OmniGen2's latents."""
    from dataclasses import replace

    import torch

    from spatialweave.models.spatial_fusion import config, network, weights

    torch.manual_seed(0)
    sizes = replace(
        config.find_transformer_preset("tiny"), mllm="small Qwen2.5-VL", mllm_width=256, width=64,
        ffn_width=96, queries_side=4, encoder_width=32, encoder_table_side=4, dpt_features=16,
        dpt_out_channels=(16, 16, 16, 16),
    )  # fmt: skip
    transformer = network.SpatialTransformer(sizes)
    for name, value in transformer.named_parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=1.0 if name == "queries" else value[0].numel() ** -0.5)
    adapter = network.AdapterNetwork(config.find_preset("omnigen2"))
    for value in adapter.parameters():  # the last layer begins at zero
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
    folder = installed / "models" / "model_patches"
    folder.mkdir(parents=True, exist_ok=True)
    weights.save_spatial_transformer(folder / "spatial_transformer_omnigen2.safetensors", transformer)
    weights.save_adapter(folder / "depth_adapter_omnigen2.safetensors", adapter)


def small(twin, runner, *changes):
    """Two steps of a small picture, with stand-ins of core's classes for the files of 16 GB."""
    twin = json.loads(json.dumps(twin))
    for kind, stand_in in (("UNETLoader", "SmallOmniGen2"), ("CLIPLoader", "SmallQwen")):
        twin[of_kind(twin, kind)] = {"class_type": stand_in, "inputs": {}}
    sizes = [
        f"{of_kind(twin, kind)}.{side}={value}"
        for kind in ("SpatialWeave_SpatialDepth", "EmptySD3LatentImage")
        for side, value in (("width", 128), ("height", 96))
    ]
    return runner.change_inputs(twin, [*sizes, f"{of_kind(twin, 'KSampler')}.steps=2", *changes])


@pytest.mark.comfyui
def test_the_graph_runs_and_prompt_and_depth_count(server, runner, twin, files, tmp_path):
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    kinds = ("SpatialWeave_DepthAdapter", "PrimitiveStringMultiline")
    adapter, prompt = (of_kind(twin, kind) for kind in kinds)

    def run(name, *changes):
        graph = small(twin, runner, *changes)
        paths = server[0].collect(server[0].wait(server[0].queue(graph), 300), tmp_path / name)
        (picture,) = [path for path in paths if path.suffix == ".png" and path.stem.split("_")[0] == "17"]
        depth = [path for path in paths if path.suffix == ".exr"]
        return np.asarray(image.open(picture).convert("RGB"), dtype=float), depth

    full, depth = run("full")
    without, _ = run("without", f"{adapter}.strength=0")
    other, other_depth = run("other", f"{prompt}.value=a green ball in front of a wall")
    assert full.shape == (96, 128, 3) and full.std() > 1
    assert np.abs(full - without).max() > 1 and np.abs(full - other).max() > 1
    assert len(depth) == 1 and depth[0].read_bytes() != other_depth[0].read_bytes()


@pytest.mark.comfyui
def test_another_encoder_is_refused_with_both_widths(server, runner, twin, files):
    """The tiny model's encoder has no language model to read."""
    graph = small(twin, runner)
    graph["tiny"] = {"class_type": "SpatialWeave_LoadTinyDiffusion", "inputs": {}}
    graph[of_kind(graph, "SpatialWeave_SpatialDepth")]["inputs"]["clip"] = ["tiny", 1]
    said = "Expected a CLIP with one language model of ComfyUI's Llama class"
    with pytest.raises(runner.RunError, match=said):
        server[0].wait(server[0].queue(graph), 300)
