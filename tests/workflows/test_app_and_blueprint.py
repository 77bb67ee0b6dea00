"""The app form of the first template, and the subgraph blueprint: as files, and run in the real frontend."""

import json
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TEMPLATE, APP, BLUEPRINT = "01_joint_image_depth", "01_joint_image_depth.app", "Image and Depth"
ASKED = [("text", "STRING"), ("width", "INT"), ("height", "INT"), ("seed", "INT")]


@pytest.fixture
def template(root):
    return json.loads((root / "workflows" / f"{TEMPLATE}.json").read_text(encoding="utf-8"))


@pytest.fixture
def app(root):
    return json.loads((root / "workflows" / f"{APP}.json").read_text(encoding="utf-8"))


@pytest.fixture
def blueprint(root):
    return json.loads((root / "subgraphs" / f"{BLUEPRINT}.json").read_text(encoding="utf-8"))


def test_the_app_is_the_template_with_a_form(app, template):
    """Prompt, size and seed in; the image with its depth, and the image, out."""
    form = app["extra"].pop("linearData")
    assert app["extra"].pop("linearMode") is True and app.pop("id") != template.pop("id")
    assert app == template
    nodes = {node["id"]: node["type"] for node in app["nodes"]}
    assert [(nodes[node], name) for node, name in form["inputs"]] == [
        ("CLIPTextEncode", "text"), ("SpatialWeave_EmptyJointLatent", "width"),
        ("SpatialWeave_EmptyJointLatent", "height"), ("KSampler", "seed"),
    ]  # fmt: skip
    assert [nodes[node] for node in form["outputs"]] == ["SpatialWeave_PreviewDepth", "SaveImage"]


def test_the_blueprint_holds_the_templates_run(blueprint, template):
    """Same nodes, values and links as the template has up to its decoder."""
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    inside = {node["id"]: node for node in subgraph["nodes"]}
    outside = {node["id"]: node for node in template["nodes"] if node["id"] in inside}
    inner, outer = (
        {i: (node["type"], node.get("widgets_values")) for i, node in nodes.items()}
        for nodes in (inside, outside)
    )
    assert inner == outer
    links = {
        (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"], link["type"])
        for link in subgraph["links"]
        if link["origin_id"] > 0 and link["target_id"] > 0
    }
    kept = {tuple(link[1:]) for link in template["links"] if link[1] in inside and link[3] in inside}
    assert links == kept and len(kept) == 11


def test_the_blueprint_is_whole(blueprint):
    """Every link is known at both its ends, and the node outside has the sockets of the subgraph."""
    (subgraph,), (node,) = blueprint["definitions"]["subgraphs"], blueprint["nodes"]
    assert node["type"] == subgraph["id"] and subgraph["name"] == BLUEPRINT
    assert [(put["name"], put["type"]) for put in subgraph["inputs"]] == [*ASKED, ("model_name", "COMBO")]
    assert [put["type"] for put in subgraph["outputs"]] == ["IMAGE", "SPATIALWEAVE_VIEW"]
    for side in ("inputs", "outputs"):
        assert [put["name"] for put in node[side]] == [put["name"] for put in subgraph[side]]
    inside = {one["id"]: one for one in subgraph["nodes"]}
    for link in subgraph["links"]:
        start, slot = link["origin_id"], link["origin_slot"]
        end, place = link["target_id"], link["target_slot"]
        known = subgraph["inputs"][slot]["linkIds"] if start < 0 else inside[start]["outputs"][slot]["links"]
        assert link["id"] in known
        if end < 0:
            assert link["id"] in subgraph["outputs"][place]["linkIds"]
        else:
            assert inside[end]["inputs"][place]["link"] == link["id"]


@pytest.mark.comfyui
@pytest.mark.slow
def test_both_open_and_run_in_the_frontend(browser, server):
    call = ["node", str(HERE / "browser_app.cjs"), server[0].url, APP, BLUEPRINT]
    ended = subprocess.run(call, env=browser, capture_output=True, encoding="utf-8", timeout=900)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert seen["subgraph"]["outcome"] == "success" and not seen["errors"], seen
    values = dict(seen["subgraph"]["widgets"])
    prompt = "a purple cone to the left of an orange ball on grass"
    assert values["text"] == prompt and values["width"] == 128
    assert seen["app"]["outcome"] == "success" and not seen["app"]["canvas"], seen
    assert prompt in seen["app"]["values"] and seen["app"]["images"] >= 1
