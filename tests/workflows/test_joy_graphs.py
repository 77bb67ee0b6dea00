"""The Joy graphs: what they name and how they look as files, and run in a real ComfyUI on small random files
of core's own classes.
"""

import json
import re

import pytest

VIEWS = "joyai_novel_views"
GRAPHS = ["joyai_move", "joyai_rotate", "joyai_camera", VIEWS]
FILES = {
    "UNETLoader": ("joyai_image_edit_int8_convrot.safetensors", "diffusion_models"),
    "CLIPLoader": ("qwen3vl_8b_joyimage_edit_int8_convrot.safetensors", "text_encoders"),
    "VAELoader": ("wan_2.1_vae.safetensors", "vae"),
}


def read(root, name, api=False):
    return json.loads(
        (root / "workflows" / ("api" if api else "") / f"{name}.json").read_text(encoding="utf-8")
    )


def of_kind(graph, kind):
    return next(key for key, node in graph.items() if node["class_type"] == kind)


@pytest.fixture(params=GRAPHS)
def name(request):
    return request.param


def test_files_and_licence_are_named(root, name):
    """Where ComfyUI offers the download, and in the note."""
    graph = read(root, name)
    (note,) = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    for kind, (file, folder) in FILES.items():
        (loader,) = [node for node in graph["nodes"] if node["type"] == kind]
        url = f"https://huggingface.co/Comfy-Org/JoyAI-Image-Edit/resolve/main/{folder}/{file}"
        assert (
            loader["properties"]["models"] == [{"name": file, "url": url, "directory": folder}]
            and loader["widgets_values"][0] == file
        )
        assert file.removesuffix(".safetensors") in note and folder in note
    assert "Apache-2.0" in note and "GB" in note and "rendered" in note


def test_sampling_is_as_in_cores_template(root, name):
    sampler = read(root, name, api=True)[of_kind(read(root, name, api=True), "KSampler")]["inputs"]
    assert (
        (sampler["steps"], sampler["cfg"], sampler["sampler_name"], sampler["scheduler"])
        == (40, 4.0, "euler", "normal")
    )


@pytest.fixture(scope="module")
def photo(installed):
    """A picture of an odd size in the input folder."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    (installed / "input").mkdir(exist_ok=True)
    coarse = image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    coarse.resize((501, 333), image.BICUBIC).save(installed / "input" / "odd.png")
    return "odd.png"


def small(root, runner, name, photo):
    graph = read(root, name, api=True)
    changes = [f"{of_kind(graph, 'LoadImage')}.image={photo}", f"{of_kind(graph, 'KSampler')}.steps=1"]
    if name == "joyai_move":
        move = of_kind(graph, "SpatialWeave_JoyMoveObject")
        changes += [
            f"{move}.box.{side}={value}"
            for side, value in (("x", 300), ("y", 100), ("width", 100), ("height", 90))
        ]
    if name == VIEWS:
        asked = of_kind(graph, "SpatialWeave_AskAboutViews")
        changes += [f"{asked}.max_tokens=3", f"{asked}.tokens_per_image=64"]
    return runner.change_inputs(graph, changes)


@pytest.mark.slow
@pytest.mark.comfyui
def test_graph_gives_a_picture_of_the_inputs_size_and_does_not_run_twice(
    server, runner, root, name, photo, tmp_path
):
    image = pytest.importorskip("PIL.Image")
    graph = small(root, runner, name, photo)
    (path,) = server[0].collect(server[0].wait(server[0].queue(graph), 900), tmp_path)
    assert image.open(path).size == ((501, 333) if name != VIEWS else (2 * 501 + 8, 2 * 333 + 8)), (
        "four views in a sheet of two by two"
    )
    again = server[0].queue(graph)
    server[0].wait(again, 60)
    messages = dict(server[0].get_json(f"/history/{again}")[again]["status"]["messages"])
    assert set(messages["execution_cached"]["nodes"]) == set(graph), "unchanged inputs run nothing again"


@pytest.mark.comfyui
def test_a_graph_without_the_vaes_link_says_so(server, runner, root, name, photo):
    """ComfyUI alone would leave the reference image out, without an error."""
    graph = small(root, runner, name, photo)
    encoder = of_kind(graph, "TextEncodeJoyImageEdit")
    del graph[encoder]["inputs"]["vae"]
    with pytest.raises(
        runner.RunError,
        match=r"Joy.*VAE at .*Prompt \(node \d+\), got none: ComfyUI then leaves the reference image out",
    ):
        server[0].wait(server[0].queue(graph), 120)


def test_the_note_names_only_nodes_of_the_graph(root, name):
    graph = read(root, name)
    (note,) = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    names = set(re.findall(r"\*\*((?:Joy:|Ask) [\w ]+)\*\*", note))
    there = {node["type"] for node in graph["nodes"]}
    assert names and all(
        "spatialweave_" + name.replace(": ", "").replace(" ", "").lower() in {kind.lower() for kind in there}
        for name in names
    )
