"""How the templates look: as files, and drawn by the real frontend in Chromium, classic and Nodes 2.0."""

import json
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.once  # reads text, with the standard library alone

HERE = Path(__file__).resolve().parent
TEMPLATES = sorted(
    re.sub(r"^\d\d_", "", path.stem)
    for path in (HERE.parents[1] / "workflows").glob("*.json")
    if not path.name.endswith(".app.json")
)
SIZE = 1250, 900  # in the graph's units
TITLE = 30
READABLE = 0.6  # the zoom below which the classic view draws no text


def find(root, name):
    return next(
        path
        for path in (root / "workflows").glob(f"*{name}.json")
        if re.sub(r"^\d\d_", "", path.stem) == name
    )


def read(root, name):
    return json.loads(find(root, name).read_text(encoding="utf-8"))


def contrast(one, other):
    """WCAG's, of two colors #rgb."""
    light = []
    for color in (one, other):
        parts = [int(digit * 2, 16) / 255 for digit in color[1:]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear)))
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.fixture(params=TEMPLATES)
def name(request):
    return request.param


def test_the_graph_fits_a_window(root, name):
    boxes = [group["bounding"] for group in read(root, name)["groups"]]
    spans = [max(b[i] + b[i + 2] for b in boxes) - min(b[i] for b in boxes) for i in (0, 1)]
    assert spans[0] <= SIZE[0] and spans[1] <= SIZE[1]


def test_the_note_is_first_and_can_be_read(root, name):
    """In the upper left corner, large, and legible in newer frontends, which write notes in gray."""
    graph = read(root, name)
    note, *others = graph["nodes"]
    assert note["type"] == "MarkdownNote" and contrast("#999", note["bgcolor"]) >= 4.5
    assert all(note["pos"][0] <= node["pos"][0] for node in others)
    assert all(note["pos"][1] <= node["pos"][1] for node in others)
    assert note["size"][0] >= 226 and note["size"][1] >= 300


def test_every_node_stands_in_a_group(root, name):
    graph = read(root, name)
    for node in graph["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        height = 0 if node["flags"].get("collapsed") else height
        assert any(
            a <= x and x + width <= a + w and b <= y - TITLE and y + height <= b + h
            for a, b, w, h in (group["bounding"] for group in graph["groups"])
        ), node["type"]


def test_links_run_from_left_to_right(root, name):
    """From a group to itself or to one further right."""
    graph = read(root, name)
    lefts = sorted(group["bounding"][0] for group in graph["groups"])
    column = {
        node["id"]: max(k for k, left in enumerate(lefts) if left <= node["pos"][0])
        for node in graph["nodes"]
    }
    assert not [link for link in graph["links"] if column[link[1]] > column[link[3]]]


def overlap(a, b):
    """Of two boxes (x, y, width, height), the smaller side of what they share."""
    return min(min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))


def is_within(box, group):
    return all(
        group[i] - 1 <= box[i] and box[i] + box[i + 2] <= group[i] + group[i + 2] + 1 for i in (0, 1)
    )


@pytest.fixture(scope="module")
def drawn(browser, server, root, tmp_path_factory):
    """What browser_layout.cjs says of every template; of those that run as they are, after a few steps."""
    folder = tmp_path_factory.mktemp("asked")

    def draw(look, size):
        asked = []
        for name in TEMPLATES:
            graph = read(root, name)
            for node in graph["nodes"]:
                if node["type"] == "KSampler":
                    node["widgets_values"][2] = 3
            asked.append({"name": name, "graph": graph, "run": find(root, name).stem != name})
        file = folder / f"{look}.json"
        file.write_text(json.dumps(asked))
        call = ["node", str(HERE / "browser_layout.cjs"), server[0].url, look, size, str(file)]
        ended = subprocess.run(call, env=browser, capture_output=True, encoding="utf-8", timeout=1500)
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    return draw


@pytest.mark.comfyui
@pytest.mark.slow
@pytest.mark.parametrize("look", ["classic", "vue"])
def test_no_node_is_drawn_over_another_and_text_is_drawn_on_opening(drawn, look):
    """In a window of 1366 x 768, as the frontend opens a template."""
    seen = drawn(look, "1366x768")
    assert [entry["name"] for entry in seen] == TEMPLATES
    faults = []
    for entry in seen:
        name, nodes = entry["name"], entry["nodes"]
        assert all(node["elements"] for node in nodes) == (look == "vue"), "measured by what is drawn"
        assert entry["outcome"] in (None, "success") and not entry["errors"], entry
        assert entry["zoom"] > READABLE, f"{name} opens at {entry['zoom']:.2f}"
        for i, one in enumerate(nodes):
            faults += [
                f"{name}: {one['name']} and {other['name']}"
                for other in nodes[i + 1 :]
                if overlap(one["box"], other["box"]) > 1
            ]
            if not any(is_within(one["box"], group) for group in entry["groups"]):
                faults.append(f"{name}: {one['name']} {one['box']} sticks out of its group")
    assert not faults, "\n".join(faults)
