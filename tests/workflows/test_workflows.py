"""The shipped workflows: as files, and run in a real ComfyUI that has the pack as the registry delivers it."""

import json
import re

import pytest

CORE_VIRTUAL = {"MarkdownNote", "Note", "Reroute"}


def graphs(root):
    return sorted(path.stem for path in (root / "workflows").glob("*.json"))


def read(root, name, api=False):
    return json.loads((root / "workflows" / ("api" if api else "") / f"{name}.json").read_text(encoding="utf-8"))


JOINT = "joint_image_depth"
GRAPHS = [JOINT, "image_to_depth", "depth_to_image"]


@pytest.fixture(scope="module", params=GRAPHS)
def name(request):
    return request.param


def test_every_graph_is_tested_and_has_its_twin(root):
    assert graphs(root) == sorted(GRAPHS)
    assert sorted(path.stem for path in (root / "workflows/api").glob("*.json")) == graphs(root)


def test_graph_carries_what_browsers_and_managers_read(root, name):
    graph = read(root, name)
    version = re.search(r'version = "([\d.]+)"', (root / "pyproject.toml").read_text(encoding="utf-8")).group(1)
    assert graph["version"] == 0.4 and graph["groups"] and any(node["type"] == "MarkdownNote" for node in graph["nodes"])
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
        assert link in output["links"] and put["link"] == link and output["type"] == put["type"] == kind
    assert max(link[0] for link in graph["links"]) == graph["last_link_id"]
    boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
    title = 30
    for i, (x, y, w, h) in enumerate(boxes):
        for a, b, c, d in boxes[i + 1 :]:
            assert x + w <= a or a + c <= x or y + h <= b - title or b + d <= y - title


def test_twin_says_the_same(root, name):
    """Same nodes, same links, same widget values."""
    graph, twin = read(root, name), read(root, name, api=True)
    nodes = {str(node["id"]): node for node in graph["nodes"] if node["type"] not in CORE_VIRTUAL}
    assert {key: node["type"] for key, node in nodes.items()} == {key: node["class_type"] for key, node in twin.items()}
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    for key, node in nodes.items():
        linked = {put["name"]: links[put["link"]] for put in node["inputs"] if put.get("link") is not None}
        given = twin[key]["inputs"]
        assert linked == {name: value for name, value in given.items() if isinstance(value, list)}
        values = [value for value in node.get("widgets_values", []) if value not in ("fixed", "randomize")]
        assert values == [value for value in given.values() if not isinstance(value, list)]


def test_settings_are_those_of_the_demo(root):
    """The workflow gives the pair that the demo command gives."""
    from spatialweave.models.modality_forcing.config import DEFAULTS

    twin, defaults = read(root, "joint_image_depth", api=True), DEFAULTS["tiny"]
    inputs = {node["class_type"]: node["inputs"] for node in twin.values() if node["class_type"] != "CLIPTextEncode"}
    sampler, latent = inputs["KSampler"], inputs["SpatialWeave_EmptyJointLatent"]
    assert (sampler["steps"], sampler["cfg"]) == (defaults.joint.steps, defaults.joint.guidance)
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["denoise"]) == ("euler", "simple", 1.0)
    assert inputs["SpatialWeave_ModalityOrder"]["log2_alpha"] == (defaults.joint.log2_alpha or 0.0)
    assert latent["width"] == latent["height"] == defaults.size


@pytest.mark.parametrize("mode", ["image_to_depth", "depth_to_image"])
def test_settings_of_a_mode_are_those_of_the_pipeline(root, mode):
    from spatialweave.models.modality_forcing.config import DEFAULTS

    nodes = read(root, mode, api=True).values()
    sampler = [node["inputs"] for node in nodes if node["class_type"] == "KSampler"][-1]
    wanted = getattr(DEFAULTS["tiny"], mode)
    assert (sampler["steps"], sampler["cfg"]) == (wanted.steps, wanted.guidance)
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["denoise"]) == ("euler", "simple", 1.0)


@pytest.mark.comfyui
def test_graph_uses_nodes_that_are_there(server, root, name):
    known = server[0].get_json("/object_info")
    assert not {node["type"] for node in read(root, name)["nodes"]} - set(known) - CORE_VIRTUAL


@pytest.mark.comfyui
def test_the_pack_loads_in_under_a_third_of_a_second(server):
    """ComfyUI's own measurement, in its start-up log."""
    line = re.search(r"([\d.]+) seconds( \(IMPORT FAILED\))?: .*custom_nodes.spatialweave", server[1].read_text(errors="replace"))
    assert line and not line.group(2), server[1].read_text(errors="replace")[-2000:]
    assert float(line.group(1)) < 0.3


@pytest.mark.comfyui
def test_the_browser_finds_help_templates_and_translations(server, root, name):
    api, _ = server
    assert name in api.get_json("/workflow_templates")["spatialweave"]
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
        return twin, {int(path.name.split("_")[0]): image.open(path) for path in paths}

    return run


@pytest.fixture
def pipeline(installed):
    """`ModalityForcingPipeline` with the installed pack's weights."""
    import torch

    from spatialweave.models.demo.weights import load_codec, load_text_encoder
    from spatialweave.models.modality_forcing.pipeline import ModalityForcingPipeline
    from spatialweave.models.modality_forcing.weights import load_network

    folder = installed / "custom_nodes" / "spatialweave" / "models"
    network, config = load_network(folder / "modality_forcing/tiny.safetensors", dtype=torch.float32)
    text = load_text_encoder(folder / "demo/text.safetensors")
    return ModalityForcingPipeline(network, config, load_codec(folder / "demo/codec.safetensors"), text)


def rounding_steps(picture, wanted):
    """Largest difference of an 8-bit picture and one in [0, 1], in steps of 1/255."""
    np = pytest.importorskip("numpy")
    picture = np.asarray(picture, dtype=float)
    assert picture.shape == wanted.shape
    return np.abs(picture - wanted.numpy() * 255).max()


@pytest.mark.comfyui
def test_joint_graph_gives_the_pair_of_the_pipeline(run_graph, pipeline):
    """The pictures of the run equal those of the plain pipeline with the same weights and settings, to a rounding step."""
    twin, saved = run_graph(JOINT, "6.steps=8", "5.width=64", "5.height=48")
    assert sorted(saved) == [8, 9] and saved[9].width >= 64
    settings = {"seed": 7, "steps": 8, "guidance": twin["6"]["inputs"]["cfg"], "log2_alpha": twin["2"]["inputs"]["log2_alpha"]}
    expected = pipeline(twin["3"]["inputs"]["text"], height=48, width=64, **settings)
    assert rounding_steps(saved[8], expected.image[0]) <= 1.01


@pytest.mark.comfyui
def test_image_to_depth_graph_gives_the_depth_of_the_pipeline(run_graph, pipeline, installed):
    """Of a picture in ComfyUI's input folder, shown for ControlNets."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    given = image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    (installed / "input").mkdir(exist_ok=True)
    given.save(installed / "input" / "example.png")
    _, saved = run_graph("image_to_depth", "6.steps=4", "3.width=64", "3.height=48")
    assert sorted(saved) == [8, 9, 10]
    expected = pipeline("", mode="image_to_depth", image=given, seed=7, steps=4, guidance=1.0)
    assert rounding_steps(saved[9], expected.view.to_control_image(near_percentile=0, far_percentile=100)[0]) <= 1.01


@pytest.mark.comfyui
def test_depth_to_image_graph_gives_the_image_of_the_pipeline(run_graph, pipeline):
    """A first run makes the depth, a second an image for it."""
    twin, saved = run_graph("depth_to_image", "5.steps=3", "9.steps=3", "3.width=64", "3.height=48")
    assert sorted(saved) == [11, 12, 13]
    settings = {"steps": 3, "guidance": twin["9"]["inputs"]["cfg"]}
    first = pipeline(twin["2"]["inputs"]["text"], height=48, width=64, log2_alpha=0.0, seed=7, **settings)
    second = pipeline(twin["8"]["inputs"]["text"], mode="depth_to_image", depth=first.view, seed=8, **settings)
    assert rounding_steps(saved[13], second.image[0]) <= 1.01


@pytest.mark.comfyui
def test_a_failing_run_says_which_node_and_why(server, runner, root):
    """A plain latent into the joint model: our sentence reaches the user through ComfyUI's error box."""
    graph = read(root, JOINT, api=True)
    graph["5"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    with pytest.raises(runner.RunError, match=r"node 6 \(KSampler\): .*A plain latent .* arrived, but this model samples an image"):
        server[0].wait(server[0].queue(graph), 120)


@pytest.mark.comfyui
def test_a_graph_with_a_wrong_value_is_refused_before_it_runs(server, runner, root):
    graph = read(root, JOINT, api=True)
    graph["1"]["inputs"]["model_name"] = "no_such_file.safetensors"
    with pytest.raises(runner.RunError, match=r"node 1 \(SpatialWeave_LoadModalityForcing\).*no_such_file"):
        server[0].queue(graph)


def test_runner_refuses_the_browsers_form_and_unknown_inputs(runner, root, capsys):
    assert runner.main([str(root / "workflows/joint_image_depth.json")]) == 1
    assert "API form" in capsys.readouterr().err
    twin = str(root / "workflows/api/joint_image_depth.json")
    assert runner.main([twin, "--set", "6.sead=3"]) == 1
    assert "6.seed" in capsys.readouterr().err


def test_runner_says_that_no_server_answers(runner, root, capsys):
    twin = str(root / "workflows/api/joint_image_depth.json")
    assert runner.main([twin, "--server", "http://127.0.0.1:9", "--start-timeout", "0.5"]) == 1
    assert "No ComfyUI answered at http://127.0.0.1:9" in capsys.readouterr().err
