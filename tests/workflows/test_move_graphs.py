"""The graphs that move an object, with the tiny editor and with Flux-Kontext: as files, and run in a real
ComfyUI, the latter on small random files of core's own classes.
"""

import json
import re

import pytest

NAME = "move_object_kontext"
TINY_NAME = "move_object"


@pytest.fixture
def graph(root):
    return json.loads((root / "workflows" / f"{NAME}.json").read_text(encoding="utf-8"))


@pytest.fixture
def twin(root):
    return json.loads((root / "workflows/api" / f"{NAME}.json").read_text(encoding="utf-8"))


def of_kind(graph, kind):
    return next(key for key, node in graph.items() if node["class_type"] == kind)


def test_files_and_licences_are_named(graph):
    """Where ComfyUI offers the download, and in the note; the connector is not, as none is published."""
    note = graph["nodes"][0]["widgets_values"][0]
    offered = {
        model["name"]: model["directory"]
        for node in graph["nodes"]
        for model in node["properties"].get("models", ())
    }
    assert sorted(offered) == [
        "ae.safetensors", "clip_l.safetensors", "flux1-dev-kontext_fp8_scaled.safetensors",
        "t5xxl_fp8_e4m3fn_scaled.safetensors", "vggt_1b.safetensors",
    ]  # fmt: skip
    for node in graph["nodes"]:
        for model in node["properties"].get("models", ()):
            assert model["name"] in node["widgets_values"]
            assert re.fullmatch(r"https://huggingface\.co/\S+\.safetensors", model["url"])
    for name, folder in offered.items():
        assert name.removesuffix(".safetensors") in note and folder in note
    assert "none has been published" in note and "models/model_patches" in note
    assert "FLUX.1 [dev]" in note and "CC BY-NC 4.0" in note and "rendered" in note


def test_the_tokens_are_of_the_image_that_is_encoded(twin):
    encoded, seen = (
        twin[of_kind(twin, kind)]["inputs"][name]
        for kind, name in (("VAEEncode", "pixels"), ("SpatialWeave_VggtGeometryTokens", "image"))
    )
    assert encoded == seen and twin[encoded[0]]["class_type"] == "FluxKontextImageScale"


@pytest.fixture(scope="module")
def files(installed):
    """A small VGGT and its connector to a Flux of width 128, and a picture of an odd size."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    import torch

    from spatialweave.models.spatial_diff.config import ConnectorConfig
    from spatialweave.models.spatial_diff.network import GeometryConnector
    from spatialweave.models.spatial_diff.weights import save_connector
    from spatialweave.models.vggt.config import VggtConfig
    from spatialweave.models.vggt.network import Vggt
    from spatialweave.models.vggt.weights import save_network

    torch.manual_seed(0)
    config = VggtConfig(
        img_size=56, embed_dim=64, depth=4, num_heads=2, backbone_depth=2, backbone_num_heads=2,
        dpt_features=16, dpt_out_channels=(16, 16, 24, 32), dpt_layers=(0, 1, 2, 3), camera_trunk_depth=1,
        camera_num_heads=4,
    )  # fmt: skip
    models = installed / "models"
    save_network(models / "geometry_estimation" / "vggt_1b.safetensors", Vggt(config), config)
    sizes = ConnectorConfig(geometry_width=128, width=128, grid=(8, 8), layers=1, heads=1)
    path = models / "model_patches" / "spatialdiff_kontext.safetensors"
    save_connector(path, GeometryConnector(sizes))
    (installed / "input").mkdir(exist_ok=True)
    cells = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image.fromarray(cells).resize((400, 300), image.BICUBIC).save(installed / "input" / "move.png")


def small(twin, runner, *changes):
    """One step, the text encoders by their stand-in, and an image of a size that a CPU samples."""
    encoder, scale = of_kind(twin, "CLIPTextEncode"), of_kind(twin, "FluxKontextImageScale")
    twin[encoder] = {"class_type": "SmallPrompt", "inputs": {"text": twin[encoder]["inputs"]["text"]}}
    del twin[of_kind(twin, "DualCLIPLoader")]
    values = {"width": 128, "height": 96, "upscale_method": "area", "crop": "disabled"}
    twin[scale] = {"class_type": "ImageScale", "inputs": {**values, "image": twin[scale]["inputs"]["image"]}}
    first = [f"{of_kind(twin, 'LoadImage')}.image=move.png", f"{of_kind(twin, 'KSampler')}.steps=2"]
    return runner.change_inputs(twin, [*first, *changes])


@pytest.mark.comfyui
def test_the_graph_runs_and_its_tokens_and_instruction_count(server, runner, twin, files, tmp_path):
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    kinds = ("GeometryTokens", "MoveObjectInstruction")
    tokens, move = (of_kind(twin, f"SpatialWeave_{kind}") for kind in kinds)

    def run(name, *changes):
        graph = small(json.loads(json.dumps(twin)), runner, *changes)
        (path,) = server[0].collect(server[0].wait(server[0].queue(graph), 300), tmp_path / name)
        return np.asarray(image.open(path).convert("RGB"), dtype=float)

    full, none = run("full"), run("none", f"{tokens}.strength=0")
    other = run("other", f"{move}.destination.direction=to the right")
    assert full.shape == (96, 128, 3) and full.std() > 1
    assert np.abs(full - none).max() > 1 and np.abs(full - other).max() > 1


@pytest.mark.comfyui
def test_tokens_of_another_image_are_refused_in_a_sentence(server, runner, twin, files):
    graph = small(twin, runner)
    graph[of_kind(graph, "SpatialWeave_VggtGeometryTokens")]["inputs"]["image"] = ["other", 0]
    size = {"width": 96, "height": 160, "batch_size": 1, "color": 0}
    graph["other"] = {"class_type": "EmptyImage", "inputs": size}
    said = r"KSampler.*128 x 96 pixels .*got tokens of an image of 96 x 160"
    with pytest.raises(runner.RunError, match=said):
        server[0].wait(server[0].queue(graph), 300)


@pytest.fixture
def tiny_twin(root):
    return json.loads((root / "workflows/api" / f"{TINY_NAME}.json").read_text(encoding="utf-8"))


def test_the_tiny_graph_has_the_pipelines_settings_and_one_image_everywhere(tiny_twin):
    from spatialweave.models.spatial_diff.config import DEFAULTS

    sampler = tiny_twin[of_kind(tiny_twin, "KSampler")]["inputs"]
    assert (sampler["steps"], sampler["cfg"]) == (DEFAULTS.steps, DEFAULTS.guidance)
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["denoise"]) == ("euler", "simple", 1.0)
    scaled = [of_kind(tiny_twin, "ImageScaleToMaxDimension"), 0]
    for kind, name in (
        ("VAEEncode", "pixels"), ("SpatialWeave_VggtGeometryTokens", "image"),
        ("SpatialWeave_MoveObjectInstruction", "image"), ("SaveImage", "images"),
    ):  # fmt: skip
        assert tiny_twin[of_kind(tiny_twin, kind)]["inputs"][name] == scaled, kind
    references = [node for node in tiny_twin.values() if node["class_type"] == "ReferenceLatent"]
    assert len(references) == 2 and references[0]["inputs"]["latent"] == references[1]["inputs"]["latent"]


def test_the_tiny_note_says_how_many_words_it_knows(root):
    from spatialweave.models.spatial_diff.grammar import VOCABULARY

    graph = json.loads((root / "workflows" / f"11_{TINY_NAME}.json").read_text(encoding="utf-8"))
    note = graph["nodes"][0]["widgets_values"][0]
    assert f"knows {len(VOCABULARY)} words" in note and "photographs" in note


@pytest.mark.comfyui
def test_the_tiny_graph_saves_the_edit_of_the_pipeline_and_both_depths(
    server, runner, tiny_twin, installed, tmp_path
):
    """The saved picture equals the plain pipeline's of the same files and settings, to a rounding step."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    import torch

    from spatialweave.models.spatial_diff.pipeline import SpatialDiffPipeline

    graph = runner.change_inputs(tiny_twin, [f"{of_kind(tiny_twin, 'KSampler')}.steps=4"])
    files = server[0].collect(server[0].wait(server[0].queue(graph), 300), tmp_path)
    saved = {
        what: np.asarray(image.open(path).convert("RGB"), dtype=float)
        for what in ("before", "after")
        for path in files
        if path.suffix == ".png" and f"_{what}_0" in path.name
    }
    pack = installed / "custom_nodes/spatialweave/models"
    shipped = np.asarray(image.open(pack / "vggt/example_views/boxes/1.jpg"), dtype=np.float32) / 255
    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(shipped).movedim(-1, 0)[None], (128, 128), mode="area"
    )[0].movedim(0, -1)  # fmt: skip
    assert np.abs(saved["before"] - scaled.numpy() * 255).max() <= 1.01
    sampler = graph[of_kind(graph, "KSampler")]["inputs"]
    result = SpatialDiffPipeline.from_preset("tiny", weights=pack / "spatial_diff")(
        "move the pink box one metre to the left", image=scaled, steps=4, guidance=sampler["cfg"],
        seed=sampler["seed"],
    )  # fmt: skip
    assert np.abs(saved["after"] - result.image[0].numpy() * 255).max() <= 1.01
    assert np.abs(saved["after"] - saved["before"]).max() > 8
    depths = [path.name for path in files if path.suffix == ".exr"]
    assert len(depths) == 2 and all(any(f"{what}_0" in name for name in depths) for what in saved)


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("the purple box", "Expected the purple box in the image, .* blue, pink"),
        ("the pink teapot", "the tiny editor's words, .* got 'teapot'"),
        ("the pink thing", "the tiny editor's words, .* got 'thing'"),
    ],
)
def test_an_object_that_is_not_there_is_a_sentence_of_its_node(server, runner, tiny_twin, name, said):
    tiny_twin[of_kind(tiny_twin, "SpatialWeave_MoveObjectInstruction")]["inputs"]["object"] = name
    with pytest.raises(runner.RunError, match=rf"SpatialWeave_MoveObjectInstruction.*{said}"):
        server[0].wait(server[0].queue(tiny_twin), 300)
