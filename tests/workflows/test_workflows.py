"""The shipped workflows: as files, and run in a real ComfyUI that has the pack as the registry
delivers it.
"""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request

import pytest

CORE_VIRTUAL = {"MarkdownNote", "Note", "Reroute"}
MUTED = 2  # LiteGraph's mode of a node that is no part of the run


def stem(path):
    """The template's name: its file may begin with its place in the list of those that run as they are."""
    return re.sub(r"^\d\d_", "", path.stem)


def graphs(root):
    paths = (root / "workflows").glob("*.json")
    return sorted(stem(path) for path in paths if not path.name.endswith(".app.json"))


def find(root, name):
    """The UI graph's file."""
    (path,) = [path for path in (root / "workflows").glob(f"*{name}.json") if stem(path) == name]
    return path


def read(root, name, api=False):
    path = root / "workflows" / "api" / f"{TWINS.get(name, name)}.json" if api else find(root, name)
    return json.loads(path.read_text(encoding="utf-8"))


JOINT = "joint_image_depth"
GRAPHS = [
    JOINT, "image_to_depth", "depth_to_image", "depth_to_blender", "rgbd_inpaint", "joint_klein_9b",
    "refine_depth",
]
GRAPHS += ["build_intrinsic_dataset", "intrinsic_cogeneration", "intrinsic_your_lora"]
GRAPHS += ["joyai_move", "joyai_rotate", "joyai_camera", "joyai_novel_views"]
GRAPHS += ["vggt_reconstruct", "vggt_to_splat"]
GRAPHS += ["depth_adapter", "spatial_fusion_omnigen2"]
GRAPHS += ["move_object", "move_object_kontext"]
# the template of three bases opens with the first; the others are what its note says of them
TWINS = {"intrinsic_your_lora": "intrinsic_sd21"}
OTHER_BASES = ["intrinsic_sdxl", "intrinsic_pixart"]
# in the browser the example that ships is connected, in a command's form the file that the command names
EXAMPLE = {"image_to_depth": {"nodes": {"12", "13"}, "link": ("3", "image", ["2", 0])}}


@pytest.fixture(scope="module", params=GRAPHS)
def name(request):
    return request.param


def test_every_graph_is_tested_and_has_its_twin(root):
    assert graphs(root) == sorted(GRAPHS)
    twins = [TWINS.get(name, name) for name in GRAPHS] + OTHER_BASES
    assert sorted(path.stem for path in (root / "workflows/api").glob("*.json")) == sorted(twins)


def test_templates_that_run_as_they_are_come_first_in_the_list(root):
    """Numbered from 01 on; without a number are those that name files which do not ship with the pack."""
    numbered = sorted(path.name for path in (root / "workflows").glob("[0-9]*.json"))
    numbered = [name for name in numbered if not name.endswith(".app.json")]
    assert [int(name[:2]) for name in numbered] == list(range(1, len(numbered) + 1))
    assert numbered[0] == f"01_{JOINT}.json"
    for name in GRAPHS:
        nodes = [node for node in read(root, name)["nodes"] if node["type"] not in CORE_VIRTUAL]
        values = [str(value) for node in nodes for value in node.get("widgets_values") or ()]
        needs = any(value.endswith(".safetensors") for value in values)
        assert needs == (find(root, name).stem == name), f"{name}: wanted a number just where it runs"


def test_graph_carries_what_browsers_and_managers_read(root, name):
    graph = read(root, name)
    version = re.search(r'version = "([\d.]+)"', (root / "pyproject.toml").read_text(encoding="utf-8")).group(
        1
    )
    assert (
        graph["version"] == 0.4
        and graph["groups"]
        and any(node["type"] == "MarkdownNote" for node in graph["nodes"])
    )
    for node in graph["nodes"]:
        ours = node["type"].startswith("SpatialWeave_")
        if node["type"] not in CORE_VIRTUAL:
            assert node["properties"]["Node name for S&R"] == node["type"]
            assert node["properties"]["cnr_id"] == ("spatialweave" if ours else "comfy-core")
            assert node["properties"]["ver"] == (version if ours else "0.33.0")


def test_graph_is_whole(root, name):
    """Every link joins an output and an input that both know it; no two nodes overlap."""
    graph = read(root, name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) and max(nodes) == graph["last_node_id"]
    for link, source, slot, target, place, kind in graph["links"]:
        output, put = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in output["links"] and put["link"] == link and output["type"] == kind
        assert put["type"] == "*" or kind in put["type"].split(",")
    assert max(link[0] for link in graph["links"]) == graph["last_link_id"]
    boxes = [
        (*node["pos"], node["size"][0], 0 if node["flags"].get("collapsed") else node["size"][1])
        for node in graph["nodes"]
    ]
    title = 30  # all that is drawn of a collapsed node
    for i, (x, y, w, h) in enumerate(boxes):
        for a, b, c, d in boxes[i + 1 :]:
            assert x + w <= a or a + c <= x or y + h <= b - title or b + d <= y - title


def unlinked_values(node):
    """Of the widgets that no link replaces; a node with a link to a widget lists all its widgets
    among the inputs.
    """
    values = [value for value in node.get("widgets_values", []) if value not in ("fixed", "randomize")]
    widgets = [put for put in node["inputs"] if "widget" in put]
    return (
        [value for put, value in zip(widgets, values, strict=True) if put["link"] is None]
        if widgets
        else values
    )


def test_twin_says_the_same(root, name):
    """Same nodes, same links, same widget values."""
    graph, twin = read(root, name), read(root, name, api=True)
    example = EXAMPLE.get(name, {"nodes": set(), "link": (None, None, None)})
    nodes = {
        str(node["id"]): node
        for node in graph["nodes"]
        if node["type"] not in CORE_VIRTUAL
        and node["mode"] != MUTED
        and str(node["id"]) not in example["nodes"]
    }
    assert (
        {key: node["type"] for key, node in nodes.items()}
        == {key: node["class_type"] for key, node in twin.items()}
    )
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    for key, node in nodes.items():
        linked = {put["name"]: links[put["link"]] for put in node["inputs"] if put.get("link") is not None}
        if key == example["link"][0]:
            linked[example["link"][1]] = example["link"][2]
        given = twin[key]["inputs"]
        assert linked == {name: value for name, value in given.items() if isinstance(value, list)}
        assert unlinked_values(node) == [value for value in given.values() if not isinstance(value, list)]


def test_settings_are_those_of_the_demo(root):
    """The workflow gives the pair that the demo command gives."""
    from spatialweave.models.modality_forcing.config import DEFAULTS

    twin, defaults = read(root, "joint_image_depth", api=True), DEFAULTS["tiny"]
    inputs = {
        node["class_type"]: node["inputs"] for node in twin.values() if node["class_type"] != "CLIPTextEncode"
    }
    sampler, latent = inputs["KSampler"], inputs["SpatialWeave_EmptyJointLatent"]
    assert (sampler["steps"], sampler["cfg"]) == (defaults.joint.steps, defaults.joint.guidance)
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["denoise"]) == ("euler", "simple", 1.0)
    assert inputs["SpatialWeave_ModalityOrder"]["log2_alpha"] == (defaults.joint.log2_alpha or 0.0)
    assert inputs["SpatialWeave_GuidancePerStream"]["depth_cfg"] == defaults.joint.depth_guidance
    assert latent["width"] == latent["height"] == defaults.size


@pytest.mark.parametrize("mode", ["image_to_depth", "depth_to_image"])
def test_settings_of_a_mode_are_those_of_the_pipeline(root, mode):
    from spatialweave.models.modality_forcing.config import DEFAULTS

    nodes = read(root, mode, api=True).values()
    sampler = [node["inputs"] for node in nodes if node["class_type"] == "KSampler"][-1]
    wanted = getattr(DEFAULTS["tiny"], mode)
    assert (sampler["steps"], sampler["cfg"]) == (wanted.steps, wanted.guidance)
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["denoise"]) == ("euler", "simple", 1.0)


def test_settings_of_the_refining_run_are_those_of_the_pipeline(root):
    """As `refine`: the same prompt, seed and steps, without guidance and without an order."""
    twin, joint = (read(root, graph, api=True) for graph in ("refine_depth", JOINT))
    first, second = (twin[node]["inputs"] for node in ("6", "12"))
    changed = {name: second[name] for name in first if first[name] != second[name]}
    assert changed == {"model": ["1", 0], "cfg": 1.0, "latent_image": ["11", 0]}
    assert joint["6"]["inputs"] | {"model": None} == first | {"model": None}
    guided, alone = (graph[graph["6"]["inputs"]["model"][0]] for graph in (twin, joint))
    assert guided["inputs"] == alone["inputs"] and guided["class_type"] == alone["class_type"]


def test_the_plotted_steps_are_the_samplers(root):
    """Co-generation's plot of w is of the run in the same graph."""
    twin = read(root, "intrinsic_cogeneration", api=True)
    plotted = twin[twin["2"]["inputs"]["sigmas"][0]]
    (sampler,) = (node["inputs"] for node in twin.values() if node["class_type"] == "KSampler")
    assert (
        plotted["class_type"] == "BasicScheduler"
        and plotted["inputs"]["model"] == twin["2"]["inputs"]["model"]
    )
    assert all(
        plotted["inputs"][key] == sampler[value]
        for key, value in (("steps", "steps"), ("denoise", "denoise"))
    )
    assert plotted["inputs"]["scheduler"] == sampler["scheduler"]


def test_every_template_has_its_picture(root):
    """The browser shows FILE.jpg beside FILE.json in its list of templates."""
    image = pytest.importorskip("PIL.Image")
    templates = {path.name.removesuffix(".json") for path in (root / "workflows").glob("*.json")}
    pictures = {path.name.removesuffix(".jpg"): path for path in (root / "workflows").glob("*.jpg")}
    assert templates == set(pictures)
    for name, path in pictures.items():
        with image.open(path) as picture:
            assert picture.format == "JPEG" and min(picture.size) >= 200, name


@pytest.mark.parametrize("name", ["joint_klein_9b", "intrinsic_your_lora"])
def test_a_picture_of_a_model_that_was_not_run_is_said_to_be_the_tiny_ones(root, name):
    (note,) = [node for node in read(root, name)["nodes"] if node["type"] == "MarkdownNote"]
    assert "The picture in the list of templates is the **tiny** model's" in note["widgets_values"][0]


# intermediate results without a depth of their own: an edit, and estimates whose files are the result
WITHOUT_DEPTH = {"joyai_move", "joyai_rotate", "joyai_camera", "joyai_novel_views", "move_object_kontext"}


def test_every_graph_that_makes_depth_saves_it(root, name):
    """So that `run.py --output` brings it."""
    graph = read(root, name, api=True)
    kinds = [node["class_type"] for node in graph.values()]
    assert ("SpatialWeave_SaveDepth" in kinds) == (name not in WITHOUT_DEPTH)


@pytest.mark.parametrize(
    "page", ["SpatialWeave_LoadTinyDiffusion.md", "SpatialWeave_LoadTinyDiffusion/zh.md"]
)
def test_help_says_what_the_tiny_files_weigh(root, page):
    """The base alone, and all that ships for co-generation."""
    text = (root / "web" / "docs" / page).read_text(encoding="utf-8")
    sizes = {
        path.name: path.stat().st_size for path in (root / "models/intrinsic_ldm").glob("tiny_*.safetensors")
    }
    assert (
        sorted(sizes)
        == ["tiny_base.safetensors", "tiny_intrinsic_lora.safetensors", "tiny_intrinsic_vae.safetensors"]
    )
    wanted = [f"{size / 1e6:.1f} MB" for size in (sizes["tiny_base.safetensors"], sum(sizes.values()))]
    assert re.findall(r"[\d.]+ MB", text) == wanted


@pytest.mark.comfyui
def test_graph_uses_nodes_that_are_there(server, root, name):
    known = server[0].get_json("/object_info")
    assert not {node["type"] for node in read(root, name)["nodes"]} - set(known) - CORE_VIRTUAL


@pytest.mark.comfyui
def test_the_pack_loads_without_a_fault(server):
    """As ComfyUI's own start-up log has it."""
    line = re.search(
        r"([\d.]+) seconds( \(IMPORT FAILED\))?: .*custom_nodes.spatialweave",
        server[1].read_text(errors="replace"),
    )
    assert line and not line.group(2), server[1].read_text(errors="replace")[-2000:]


@pytest.mark.comfyui
def test_the_browser_finds_help_templates_and_translations(server, root, name):
    api, _ = server
    assert find(root, name).stem in api.get_json("/workflow_templates")["spatialweave"]
    node = "SpatialWeave_LoadModalityForcing"
    for page in (f"{node}.md", f"{node}/zh.md"):
        assert api.get(f"/extensions/spatialweave/docs/{page}").decode().startswith("# ")
    assert api.get_json("/i18n")["zh"]["nodeDefs"][node]["display_name"]


@pytest.fixture
def run_graph(server, runner, root, tmp_path):
    """Run a shipped graph with other values: the pictures it saved, by the number of their node."""
    image = pytest.importorskip("PIL.Image")

    def run(name, *changes):
        twin = runner.change_inputs(read(root, name, api=True), list(changes))
        paths = server[0].collect(server[0].wait(server[0].queue(twin), 300), tmp_path)
        pictures = [path for path in paths if path.suffix == ".png"]
        return twin, {int(path.name.split("_")[0]): image.open(path) for path in pictures}

    return run


@pytest.fixture
def pipeline(installed):
    """`ModalityForcingPipeline` with the installed pack's weights."""
    import torch

    from spatialweave.models.modality_forcing.pipeline import ModalityForcingPipeline
    from spatialweave.models.modality_forcing.weights import load_network
    from spatialweave.models.tiny.weights import load_codec, load_text_encoder

    folder = installed / "custom_nodes" / "spatialweave" / "models"
    network, config = load_network(folder / "modality_forcing/tiny.safetensors", dtype=torch.float32)
    text = load_text_encoder(folder / "tiny/text.safetensors")
    return ModalityForcingPipeline(network, config, load_codec(folder / "tiny/codec.safetensors"), text)


def rounding_steps(picture, wanted):
    """Largest difference of an 8-bit picture and one in [0, 1], in steps of 1/255."""
    np = pytest.importorskip("numpy")
    picture = np.asarray(picture, dtype=float)
    assert picture.shape == wanted.shape
    return np.abs(picture - wanted.numpy() * 255).max()


@pytest.mark.comfyui
def test_joint_graph_gives_the_pair_of_the_pipeline(run_graph, pipeline):
    """The pictures of the run equal those of the plain pipeline with the same weights and settings,
    to a rounding step.
    """
    twin, saved = run_graph(JOINT, "6.steps=8", "5.width=64", "5.height=48")
    assert sorted(saved) == [8, 9] and saved[9].width >= 64
    sampler = twin["6"]["inputs"]
    settings = {
        "seed": sampler["seed"], "steps": 8, "guidance": sampler["cfg"],
        "log2_alpha": twin["2"]["inputs"]["log2_alpha"],
        "depth_guidance": twin["12"]["inputs"]["depth_cfg"],
    }
    expected = pipeline(twin["3"]["inputs"]["text"], height=48, width=64, **settings)
    assert rounding_steps(saved[8], expected.image[0]) <= 1.01


@pytest.fixture
def given(installed):
    """The picture that lies in the input folder of every new ComfyUI, by its name; here noise."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    picture = image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    (installed / "input").mkdir(exist_ok=True)
    picture.save(installed / "input" / "example.png")
    return picture


@pytest.mark.comfyui
def test_image_to_depth_graph_gives_the_depth_of_the_pipeline(run_graph, pipeline, given):
    """Of a picture in ComfyUI's input folder, shown for ControlNets."""
    _, saved = run_graph("image_to_depth", "6.steps=4", "3.largest_size=64")
    assert sorted(saved) == [8, 9, 10]
    expected = pipeline("", mode="image_to_depth", image=given, seed=7, steps=4, guidance=1.0)
    assert (
        rounding_steps(saved[9], expected.view.to_control_image(near_percentile=0, far_percentile=100)[0])
        <= 1.01
    )


@pytest.mark.comfyui
def test_image_to_depth_graph_keeps_the_whole_picture(run_graph, given, installed):
    """Of any proportions: nothing is cropped, and the depth has those of the picture, padded inside
    and cut back.
    """
    given.resize((100, 37)).save(installed / "input" / "wide.png")
    _, saved = run_graph("image_to_depth", "2.image=wide.png", "6.steps=1", "3.largest_size=64")
    assert saved[9].size == (64, 24)


@pytest.mark.comfyui
def test_depth_to_image_graph_gives_the_image_of_the_pipeline(run_graph, pipeline):
    """A first run makes the depth, a second an image for it."""
    twin, saved = run_graph("depth_to_image", "5.steps=3", "9.steps=3", "3.width=64", "3.height=48")
    assert sorted(saved) == [11, 12, 13]
    settings = [
        {"steps": 3, "seed": twin[node]["inputs"]["seed"], "guidance": twin[node]["inputs"]["cfg"]}
        for node in ("5", "9")
    ]
    apart = {"log2_alpha": 0.0, "depth_guidance": twin["16"]["inputs"]["depth_cfg"]}
    first = pipeline(twin["2"]["inputs"]["text"], height=48, width=64, **apart, **settings[0])
    second = pipeline(twin["8"]["inputs"]["text"], mode="depth_to_image", depth=first.view, **settings[1])
    assert rounding_steps(saved[13], second.image[0]) <= 1.01


@pytest.fixture
def run_files(server, runner, root, tmp_path):
    """Run a shipped graph with other values: every file it saved, by the number of its node."""

    def run(name, *changes):
        twin = runner.change_inputs(read(root, name, api=True), list(changes))
        found = {}
        for path in server[0].collect(server[0].wait(server[0].queue(twin), 300), tmp_path):
            found.setdefault(int(path.name.split("_")[0]), path)
        return twin, found

    return run


@pytest.mark.comfyui
def test_depth_to_blender_graph_gives_files_that_fit_together(run_files, pipeline):
    """Mesh, points and EXR of one depth, read by other programs: the depth of the pipeline, upright,
    seen from the origin.
    """
    import numpy as np
    import OpenEXR
    import plyfile
    import trimesh

    twin, files = run_files(
        "depth_to_blender", "6.steps=3", "2.width=64", "2.height=48", "8.edge_threshold=0",
        "10.edge_threshold=0",
    )
    sampler = twin["6"]["inputs"]
    settings = {
        "seed": sampler["seed"], "steps": 3, "guidance": sampler["cfg"],
        "log2_alpha": twin["3"]["inputs"]["log2_alpha"],
        "depth_guidance": twin["20"]["inputs"]["depth_cfg"],
    }
    view = pipeline(twin["4"]["inputs"]["text"], height=48, width=64, **settings).view
    with OpenEXR.File(str(files[15]), separate_channels=True) as file:
        z, header = file.channels()["Z"].pixels, dict(file.header())
    depth = np.where(np.isinf(z), 0, z)
    np.testing.assert_allclose(depth, view.depth[0], rtol=1e-3, atol=1e-3)
    prompt = json.loads(header["prompt"])
    prompt["1"].pop("is_changed")  # core's note of the loader's fingerprint
    assert prompt == twin and header["depthUnits"] == "relative"
    points = plyfile.PlyData.read(files[11])["vertex"]
    assert len(points) == (depth > 0).sum() and points["z"].max() < 0
    np.testing.assert_allclose(np.sort(-points["z"]), np.sort(depth[depth > 0]), rtol=1e-4)
    (surface,) = trimesh.load(files[9]).geometry.values()
    assert surface.bounds[1, 2] < 0 and surface.visual.material.baseColorTexture.size == (64, 48)


@pytest.mark.comfyui
def test_rgbd_inpaint_graph_changes_the_window_alone(run_graph, server, runner, root, tmp_path):
    """Far left of both masks neither the picture nor its depth has moved; within them both have."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    _, saved = run_graph("rgbd_inpaint", "5.steps=3", "13.steps=3")
    assert sorted(saved) == [15, 16, 17]
    # picture, depth and legend
    pair = [np.asarray(saved[node].convert("RGB"), dtype=float) for node in (15, 16)]
    twin = read(root, "rgbd_inpaint", api=True)
    # what is kept has been encoded once more, so that is what it is compared with
    loader = next(
        key for key, node in twin.items() if node["class_type"] == "SpatialWeave_LoadModalityForcing"
    )
    twin["33"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["6", 0], "vae": [loader, 2]}}
    twin["32"] = {"class_type": "VAEDecode", "inputs": {"samples": ["33", 0], "vae": [loader, 2]}}
    twin["31"] = {"class_type": "SaveImage", "inputs": {"images": ["32", 0], "filename_prefix": "before"}}
    twin = runner.change_inputs(twin, ["5.steps=3", "13.steps=3"])
    paths = server[0].collect(server[0].wait(server[0].queue(twin), 300), tmp_path)
    before = np.asarray(image.open(next(path for path in paths if path.name.startswith("31_"))), dtype=float)
    after = np.asarray(saved[17], dtype=float)
    change = np.abs(before - after).mean(axis=-1)
    kept, made = change[:, :32].mean(), change[24:120, 56:].mean()
    # of the kept part only a trace moves: the codec's group norms see the whole picture
    assert change.shape == (128, 128) and made > 2 and kept < 0.05 * made, (kept, made)
    assert pair[0].shape == pair[1].shape and np.abs(pair[0] - pair[1]).mean() > 0


@pytest.mark.comfyui
def test_joint_klein_9b_graph_runs_on_cores_own_classes(run_files):
    """With small random weights under the names of the big files: text encoder, VAE and network
    as core loads them.
    """
    image = pytest.importorskip("PIL.Image")
    _, files = run_files("joint_klein_9b", "8.steps=2", "4.width=64", "4.height=48")
    assert sorted(files) == [10, 11, 12] and image.open(files[11]).size == (64, 48)
    assert len(image.open(files[11]).getcolors(64 * 48)) > 10, "a picture of one colour would prove nothing"


def test_joint_klein_9b_graph_names_the_files_it_needs(root):
    """The frontend offers the download by this metadata;
    it says what the registry of published files says.
    """
    from spatialweave.models.modality_forcing.released import released_files

    published = {file.name: file.as_template_model for file in released_files()}
    graph = read(root, "joint_klein_9b")
    named = {
        node["type"]: (node["widgets_values"][0], node["properties"]["models"])
        for node in graph["nodes"]
        if "models" in node["properties"]
    }
    assert sorted(named) == ["CLIPLoader", "SpatialWeave_LoadModalityForcing", "VAELoader"]
    assert all(models == [published[name]] for name, models in named.values())
    (note,) = (node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote")
    assert all(name in note for name, _ in named.values()) and "no commercial use" in note


@pytest.mark.comfyui
def test_a_failing_run_says_which_node_and_why(server, runner, root):
    """A plain latent into the joint model: our sentence reaches the user through ComfyUI's error box."""
    graph = read(root, JOINT, api=True)
    graph["5"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    with pytest.raises(
        runner.RunError, match=r"node 6 \(KSampler\): .*Expected a joint latent, .* got a plain latent"
    ):
        server[0].wait(server[0].queue(graph), 120)


@pytest.mark.comfyui
def test_a_graph_with_a_wrong_value_is_refused_before_it_runs(server, runner, root):
    graph = read(root, JOINT, api=True)
    graph["1"]["inputs"]["model_name"] = "no_such_file.safetensors"
    with pytest.raises(runner.RunError, match=r"node 1 \(SpatialWeave_LoadModalityForcing\).*no_such_file"):
        server[0].queue(graph)


@pytest.mark.comfyui
def test_cancel_of_a_co_generation_through_the_queue(server, runner, root, tmp_path):
    """Scenario 9: stopped within a step, no error box, and the next run of the same seed gives the same
    image and maps.
    """
    image, api = pytest.importorskip("PIL.Image"), server[0]
    # the last: ComfyUI shows no plot of a node that it has run for another test
    small = ["6.width=64", "6.height=64", "2.cut_below=0.002"]

    def run(folder, *changes):
        graph = runner.change_inputs(
            read(root, "intrinsic_cogeneration", api=True), [*small, "8.steps=2", *changes]
        )
        number = api.queue(graph)
        paths = api.collect(api.wait(number, 300), tmp_path / folder)
        cached = dict(api.get_json(f"/history/{number}")[number]["status"]["messages"])["execution_cached"][
            "nodes"
        ]
        return "8" not in cached and {
            path.name.split("_")[0]: path.read_bytes()
            if path.suffix == ".exr"
            else image.open(path).convert("RGB").tobytes()
            for path in paths
        }

    want = run("before")
    number = api.queue(
        runner.change_inputs(read(root, "intrinsic_cogeneration", api=True), [*small, "8.steps=5000"])
    )
    wait_until(lambda: api.get_json("/queue")["queue_running"])
    time.sleep(2)  # into the sampling
    pressed = time.monotonic()
    post(api, "/interrupt", {})
    status = wait_until(lambda: api.get_json(f"/history/{number}").get(number))["status"]
    assert time.monotonic() - pressed < 30, "a step takes a fraction of a second"
    kinds = [kind for kind, _ in status["messages"]]
    assert "execution_interrupted" in kinds and "execution_error" not in kinds, status

    def run_again():  # until ComfyUI has freed the first run's results, of which it says nothing
        post(api, "/free", {"free_memory": True})
        time.sleep(1)
        return run("after")

    again = wait_until(run_again)
    assert again == want and {"13", "14", "15", "16"} <= set(want)


def post(api, path, value):
    body = json.dumps(value).encode()
    urllib.request.urlopen(
        urllib.request.Request(api.url + path, body, {"Content-Type": "application/json"}), timeout=60
    ).read()


def wait_until(found, seconds=120):
    """What `found` gives, once that is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError(f"nothing came within {seconds} seconds")


def comfy(*arguments, cwd=None):
    """comfy-cli with these arguments; its exit status and what it said. It is no requirement of ours:
    without it these tests skip.
    """
    program = os.environ.get("COMFY_CLI") or shutil.which("comfy")
    if program is None:
        pytest.skip(
            "comfy-cli is not installed here, so its checks of nodes "
            "and workflows did not run; set COMFY_CLI to its `comfy`"
        )
    done = subprocess.run(
        [program, "--skip-prompt", *arguments], cwd=cwd, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


def test_comfy_cli_finds_no_fault_in_the_pack(root):
    status, said = comfy("--no-json", "node", "validate", cwd=root)
    assert status == 0 and "WARN" not in said.upper() and "error" not in said.lower(), said


def with_offered_files(known, graph):
    """What a server says of its nodes, had it the files that the graph offers to download."""
    for node in graph["nodes"]:
        offered = list(node["properties"].get("models", ()))
        if node["type"] == "SpatialWeave_LoadGeometryConnector":
            offered.append({"name": node["widgets_values"][0]})  # none is published: one's own
        for model in offered:
            for kind, *more in (
                entry for group in known[node["type"]]["input"].values() for entry in group.values()
            ):
                options = (
                    kind if isinstance(kind, list) else more[0].get("options") if kind == "COMBO" else None
                )
                if options is not None:
                    options.append(model["name"])
    return known


@pytest.mark.comfyui
def test_comfy_cli_finds_no_fault_in_a_workflow(server, root, name, given, tmp_path):
    """Offline, against what a ComfyUI with this pack, its files and the picture `given` says of its nodes."""
    known = tmp_path / "object_info.json"
    known.write_text(json.dumps(with_offered_files(server[0].get_json("/object_info"), read(root, name))))
    file = root / "workflows" / "api" / f"{TWINS.get(name, name)}.json"
    status, said = comfy("--no-json", "workflow", "validate", "--workflow", str(file), "--input", str(known))
    assert status == 0, said


@pytest.mark.comfyui
def test_comfy_cli_runs_a_workflow(server, root, tmp_path):
    """The README's `comfy run`, against a running server."""
    twin = read(root, JOINT, api=True)
    twin["6"]["inputs"]["steps"], twin["5"]["inputs"]["width"], twin["5"]["inputs"]["height"] = 1, 64, 48
    (tmp_path / "graph.json").write_text(json.dumps(twin))
    host, port = server[0].url.removeprefix("http://").split(":")
    status, said = comfy(
        "--no-json", "run", "--workflow", str(tmp_path / "graph.json"), "--host", host, "--port", port,
        "--wait",
    )
    assert status == 0, said
