"""The I-LDM graphs in a real ComfyUI: those of big bases on small random models of core's own classes,
the tiny one as it is shipped.
"""

import json

import pytest
import torch
from safetensors.torch import load

from spatialweave.models.intrinsic_ldm.config import GUIDANCE, STEPS

TINY = "intrinsic_cogeneration"
RECIPES = {
    "intrinsic_sd21": ("sd21", "vae"), "intrinsic_sdxl": ("sdxl", "vae_sdxl"),
    "intrinsic_pixart": ("pixart", "vae"),
}
# name: pixels of a side; core's PixArt counts positions in units of 64 latent pixels,
# of which a picture needs half one at least
SIDES = {TINY: 128, "intrinsic_sd21": 64, "intrinsic_sdxl": 64, "intrinsic_pixart": 320}


def read(root, name, api=True):
    """A graph in API form, or the template of its base."""
    folder = root / "workflows" / ("api" if api else "")
    pattern = f"{name}.json" if api else f"*_{name}.json" if name == TINY else "intrinsic_your_lora.json"
    (path,) = folder.glob(pattern)
    return json.loads(path.read_text(encoding="utf-8"))


HEADINGS = {
    "intrinsic_sd21": "SD2.1**", "intrinsic_sdxl": "**SDXL**", "intrinsic_pixart": "**PixArt-alpha**",
}  # in the note of the template


def of_kind(graph, kind):
    (key,) = [key for key, node in graph.items() if node["class_type"] == kind]
    return key


@pytest.fixture(params=SIDES)
def name(request):
    return request.param


def shortened(graph, side):
    """The graph with two steps and a small picture, and what the base makes alone and with weight off,
    every latent saved.
    """
    coupled, sampler, split = (of_kind(graph, kind) for kind in (
        "SpatialWeave_IntrinsicCoGeneration", "KSampler", "SpatialWeave_SplitIntrinsicLatent",
    ))  # fmt: skip
    empty, joint = of_kind(graph, "EmptyLatentImage"), of_kind(graph, "SpatialWeave_JoinIntrinsicLatent")
    graph[sampler]["inputs"]["steps"] = 2
    graph[empty]["inputs"] |= {"width": side, "height": side}
    kept = {key: value for key, value in graph[coupled]["inputs"].items() if not key.startswith("schedule")}
    more = {
        "base": (
            "KSampler",
            graph[sampler]["inputs"]
            | {"model": graph[coupled]["inputs"]["model"], "latent_image": [empty, 0]},
        ),
        "off": ("SpatialWeave_IntrinsicCoGeneration", kept | {"schedule": "off"}),
        "join_off": ("SpatialWeave_JoinIntrinsicLatent", graph[joint]["inputs"] | {"model": ["off", 0]}),
        "sample_off": (
            "KSampler", graph[sampler]["inputs"] | {"model": ["off", 0], "latent_image": ["join_off", 0]},
        ),
        "split_off": ("SpatialWeave_SplitIntrinsicLatent", {"samples": ["sample_off", 0]}),
    }
    saved = {
        "image": [split, 0], "maps": [split, 1], "image_off": ["split_off", 0], "maps_off": ["split_off", 1],
        "base": ["base", 0],
    }
    for key, link in saved.items():
        more[f"save {key}"] = ("SaveLatent", {"samples": link, "filename_prefix": "latents/latent"})
    return graph | {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in more.items()}


@pytest.mark.comfyui
def test_graph_makes_an_image_and_its_maps_and_off_is_the_base(server, root, name, tmp_path):
    """Every map is there, all latents are finite, and with weight off the image is the base model's,
    bit for bit.
    """
    image, np = pytest.importorskip("PIL.Image"), pytest.importorskip("numpy")
    side = SIDES[name]
    graph = shortened(read(root, name), side)
    files = server[0].collect(server[0].wait(server[0].queue(graph), 900), tmp_path)
    assert any(path.suffix == ".exr" for path in files), "the depth is saved"
    latents = {
        path.name.split("_latent_")[0].removeprefix("save "): path
        for path in files
        if path.suffix == ".latent"
    }
    latents = {key: load(path.read_bytes())["latent_tensor"] for key, path in latents.items()}
    assert sorted(latents) == ["base", "image", "image_off", "maps", "maps_off"]
    assert all(bool(latent.isfinite().all()) and latent.std() > 0.01 for latent in latents.values())
    assert torch.equal(latents["image_off"], latents["base"])
    for other in ("base", "maps"):
        assert (latents["image"] - latents[other]).abs().max() > 1e-4, f"the image is the same as {other}"
    shown = {
        path.name.split("_")[0]: np.asarray(image.open(path).convert("RGB"))
        for path in files
        if path.suffix == ".png"
    }
    pictures = {
        graph[key]["_meta"]["title"].split(":")[0]: picture for key, picture in shown.items() if key != "off"
    }
    maps = {"Save the image", "Normals", "Segmentation", "Line art"}
    assert set(pictures) == maps | {"Image and depth", "IntrinsicCoGeneration"}  # the node shows its weights
    assert {pictures[title].shape for title in maps} == {(side, side, 3)}
    for title in maps - {"Segmentation"}:
        assert len(np.unique(pictures[title])) > 10, f"{title} of one color would prove nothing"


def read_note(root, name):
    (note,) = (
        node["widgets_values"][0]
        for node in read(root, name, api=False)["nodes"]
        if node["type"] == "MarkdownNote"
    )
    return note


@pytest.mark.parametrize("base", RECIPES)
def test_the_template_says_what_each_base_needs(root, base):
    """Under its heading in the note: every file of its graph, the runs that make them, size and cfg."""
    note, graph = read_note(root, base), read(root, base)
    part = note[note.index(HEADINGS[base]) :].split("\n\n")[0]
    values = [value for node in graph.values() for value in node["inputs"].values()]
    assert not [value for value in values if str(value).endswith(".safetensors") and value not in part]
    side = graph[of_kind(graph, "EmptyLatentImage")]["inputs"]["width"]
    assert f"{side} x {side}, cfg {graph[of_kind(graph, 'KSampler')]['inputs']['cfg']}" in part
    assert "No weights of the two" in note and "docs/intrinsic_training.md" in note and "**off**" in note
    for recipe in RECIPES[base]:
        output = json.loads(
            (root / "models/intrinsic_ldm/recipes" / f"{recipe}.json").read_text(encoding="utf-8")
        )["output"]
        assert f"`{output}`" in part


def test_the_templates_choice_of_base_gives_the_graph_of_that_base(root):
    """Changed as the note says: of SDXL by three files and the size, of PixArt by its muted loaders."""
    graphs = {name: read(root, name) for name in ("intrinsic_sd21", "intrinsic_sdxl")}
    for graph in graphs.values():
        changed = {
            "CheckpointLoaderSimple": ["ckpt_name"], "SpatialWeave_IntrinsicCoGeneration": ["lora_name"],
            "SpatialWeave_LoadIntrinsicVae": ["vae_name"], "EmptyLatentImage": ["width", "height"],
        }  # fmt: skip
        for kind, names in changed.items():
            inputs = graph[of_kind(graph, kind)]["inputs"]
            assert len([inputs.pop(name) for name in names]) == len(names)
        del graph[of_kind(graph, "SpatialWeave_SaveDepth")]
    first, second = ({key: node["inputs"] for key, node in graph.items()} for graph in graphs.values())
    assert first == second
    muted = {
        node["type"]: node["widgets_values"]
        for node in read(root, "intrinsic_sd21", api=False)["nodes"]
        if node["mode"] == 2
    }
    wanted = {
        node["class_type"]: list(node["inputs"].values())
        for node in read(root, "intrinsic_pixart").values()
        if node["class_type"] in muted
    }
    assert muted == wanted and sorted(muted) == ["CLIPLoader", "UNETLoader", "VAELoader"]


def test_every_graph_has_the_papers_gaussian_weight_and_one_note_on_off(root):
    names = {path.stem for path in (root / "workflows" / "api").glob("intrinsic_*.json")}
    assert names == {*SIDES}
    for name in names:
        graph = read(root, name)
        inputs = graph[of_kind(graph, "SpatialWeave_IntrinsicCoGeneration")]["inputs"]
        chosen = [inputs[f"schedule{part}"] for part in ("", ".alpha", ".tau", ".sigma")]
        assert chosen == ["gaussian", 1.0, 800.0, 100.0]
        sampler = graph[of_kind(graph, "KSampler")]["inputs"]
        assert (sampler["steps"], sampler["sampler_name"], sampler["scheduler"]) == (STEPS, "euler", "normal")
        assert sampler["cfg"] == {TINY: GUIDANCE, "intrinsic_pixart": 4.5}.get(name, 7.5), (
            "the paper's, PixArt's own, the tiny commands'"
        )
        assert "**off** (w = 0) gives the base model's image" in read_note(root, name)
