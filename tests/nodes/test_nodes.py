"""The nodes in a real ComfyUI: declarations, the tiny model as core objects, decoding, and every refusal."""

import json

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_nodes.py"
IDS = ["LoadModalityForcing", "EmptyJointLatent", "ModalityOrder", "DecodeJointLatent", "PreviewDepth"]
IDS += [
    "ImageToDepthLatent",
    "DepthToImageLatent",
    "MaskedJointLatent",
    "RefineDepthLatent",
    "GuidancePerStream",
]
IDS += ["SplitJointLatent", "JoinJointLatent", "SaveJointLatent", "LoadJointLatent"]
IDS += ["ViewFromImage", "ViewToMask", "ViewFromMoge", "ViewToMoge", "ViewFromDa3", "ViewToDa3"]
IDS += ["PointCloud", "DepthMesh", "ViewCamera"]
IDS += ["SaveDepth", "LoadDepth"]
IDS += ["AlignDepth", "NormalsFromDepth", "CompareViews"]
IDS += ["CheckEdit", "PickBest"]
IDS += ["StereoPair", "UpscaleDepth"]
IDS += ["ScaleViews", "FuseViews", "SaveColmap"]
IDS += ["IntrinsicCoGeneration", "JoinIntrinsicLatent", "SplitIntrinsicLatent"]
IDS += ["LoadTinyDiffusion", "LoadIntrinsicVae", "EncodeIntrinsics", "DecodeIntrinsics"]
IDS += ["AskAboutViews"]
IDS += ["JoyFit", "JoyMoveObject", "JoyRotateObject", "JoyMoveCamera", "JoyRestore"]
IDS += ["LoadTinyEditor", "LoadGeometryConnector", "GeometryTokens", "MoveObjectInstruction"]
IDS += ["LoadVggt", "LoadExampleViews", "VggtReconstruct", "VggtGeometryTokens"]
IDS += ["LoadDepthAdapter", "DepthAdapter"]
IDS += ["LoadSpatialTransformer", "LoadTinyLanguageModel", "SpatialDepth"]


@pytest.fixture(scope="module")
def nodes(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.fixture(scope="module")
def declared(nodes):
    return nodes("declarations")


def test_comfyui_lists_every_node(worker, declared):
    assert worker.started["value"]["loaded"]
    assert sorted(declared) == sorted(f"SpatialWeave_{name}" for name in IDS)


def test_loading_the_pack_is_next_to_nothing_beside_comfyui_itself(worker):
    """In processor seconds of one process; .02 where it was measured, see docs/performance.md."""
    seconds = worker.started["value"]["processor_seconds"]
    assert seconds["pack"] < 0.08 * seconds["comfyui"], seconds


def test_every_word_a_user_needs_is_there(declared):
    for name, node in declared.items():
        assert (
            node["display_name"]
            and node["description"].endswith(".")
            and node["category"].startswith("SpatialWeave/")
        ), name
        assert len(node["aliases"]) >= 3, name
        for put in (*node["inputs"].values(), *node["outputs"]):
            assert put["tooltip"] and put["tooltip"].endswith("."), f"{name}: {put}"


def test_execute_takes_what_the_schema_declares(declared):
    for name, node in declared.items():
        assert node["execute"] == list(node["inputs"]), name


def test_ids_are_literal_in_the_source(pack, declared):
    """The Manager reads them without running the code."""
    source = "".join(pack.text(name) for name in pack.code if name.startswith("nodes/"))
    assert all(f'node_id="{name}"' in source for name in declared)


def test_schema_changes_only_on_purpose(declared, root):
    """Ids and socket types of saved workflows.

    If this fails on purpose, update tests/nodes/schema.json and the changelog.
    """
    seen = {
        name: {
            "inputs": {key: put["type"] for key, put in node["inputs"].items()},
            "outputs": [put["type"] for put in node["outputs"]],
        }
        for name, node in declared.items()
    }
    assert seen == json.loads((root / "tests/nodes/schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_node_has_a_help_page_and_a_translation(declared, root, language):
    names = json.loads((root / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8"))
    assert sorted(names) == sorted(declared)
    for name, node in declared.items():
        place = (
            f"{name}.md" if language == "en" else f"{name}/{language}.md"
        )  # the first serves every language without its own
        page = (root / "web/docs" / place).read_text(encoding="utf-8")
        assert page.startswith("# ") and all(f"`{key}`" in page for key in node["inputs"]), (
            f"{name}: the page leaves an input out"
        )
        entry = names[name]
        assert entry["display_name"] and entry["description"]
        assert sorted(entry["inputs"]) == sorted([*node["inputs"], *node["chosen"]]), name
        assert all(
            put["name"] and put["tooltip"] for put in (*entry["inputs"].values(), *entry["outputs"].values())
        ), name
        assert sorted(entry["outputs"]) == [str(index) for index in range(len(node["outputs"]))], name


def test_english_translation_says_what_the_schema_says(declared, root):
    names = json.loads((root / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    for name, node in declared.items():
        assert (
            names[name]["display_name"] == node["display_name"]
            and names[name]["description"] == node["description"]
        )
        said = {key: put["tooltip"] for key, put in names[name]["inputs"].items()}
        assert {key: said[key] for key in node["inputs"]} == {
            key: put["tooltip"] for key, put in node["inputs"].items()
        }


def test_the_tiny_model_is_made_of_core_objects(nodes):
    assert nodes("core_objects") == {
        "model": True,
        "clip": True,
        "vae": True,
        "vae_lacks": [],
        "rebuilt": True,
    }


def test_stock_text_and_image_nodes_work_on_the_tiny_model(nodes):
    result = nodes("text_and_image")
    assert result["tiled"] == [2, 64, 48, 3]
    assert max(result["text"], result["encode"], result["decode"]) < 1e-5


def test_unknown_words_are_named_in_the_log_with_the_nearest_known(nodes, worker):
    assert nodes("unknown_words", text="a redd ball beside a zeppelin")[0] == 1
    (line,) = [line for line in worker.text().splitlines() if "redd" in line]
    assert "'redd' (nearest: 'red')" in line and "zeppelin" in line


def test_words_that_are_not_read_stand_under_the_node_that_encodes(nodes):
    """Also of other scripts, and Chinese as it is read; the next prompt clears the text."""
    chinese = "\u7ea2\u7403\u5728\u84dd\u76d2\u5b50\u5de6\u8fb9"  # red ball, left of blue box
    texts = ["a red ball", "a \u0448\u0430\u0440", chinese, "a blue box"]
    sent = nodes("said_under_the_encoder", texts=texts)
    nothing, ((russian, *at),), ((read, *_),), (cleared,) = sent
    assert nothing == [] and at == ["6", "page"] and cleared == ["", "6", "page"]
    assert russian.startswith("The tiny model does not know '\u0448\u0430\u0440'; it knows a, and, back")
    assert read == "The tiny model reads 'a red ball to the left of a blue box'."


def test_the_empty_prompt_is_a_prompt(nodes, worker):
    before = worker.text().count("does not know")
    assert nodes("unknown_words", text="")[0] == 1
    assert worker.text().count("does not know") == before


@pytest.mark.parametrize(("height", "width"), [(64, 48), (50, 70), (16, 16)])
def test_decoding_gives_the_size_that_was_asked_for(nodes, height, width):
    result = nodes("decode", height=height, width=width, batch=2)
    assert result["picture"] == [2, height, width, 3] and result["depth"] == [2, height, width]
    assert result["latent"][1] == [2, 1, -(-height // 16) * 16, -(-width // 16) * 16]
    assert result["units"] == "relative" and result["exact"] and result["invalid"] > 0
    assert 0 <= result["range"][0] <= result["range"][1] <= 1


def test_preview_says_unit_direction_and_range(nodes):
    result = nodes("preview", style="control")
    assert (
        result["text"]
        == "depth 1 x 30 x 40, 1 to 5 metres, larger = farther, 1 of 1200 pixels invalid (0.1%)"
    )
    assert result["near"] == [1, 1, 1] and result["far"] == [0, 0, 0]
    coloured = nodes("preview", style="colour")
    assert sum(coloured["near"]) > 2.3 and sum(coloured["far"]) < 0.5 and 0.6 < sum(coloured["hole"]) < 1
    assert coloured["shown"][0]["type"] == "temp"


@pytest.mark.parametrize("style", ["control", "colour"])
def test_a_controlnets_picture_is_near_white_whatever_is_shown(nodes, declared, style):
    """An output of its own, whose name says what it is: colours into a ControlNet would be wrong without a
    word.
    """
    assert nodes("preview", style=style)["control"] == [[1, 1, 1], [0, 0, 0]]
    (output,) = [
        put
        for put in declared["SpatialWeave_PreviewDepth"]["outputs"]
        if put["name"] == "control (near white)"
    ]
    assert output["type"] == "IMAGE"


REFUSALS = {
    "plain latent into the model": [
        "got a plain latent (1, ",
        "an image and its depth together",
        "Empty Joint Latent",
    ],
    "three streams": ["got 3 streams", "Empty Joint Latent"],
    "wrong channels": ["image latent (1, 16, 4, 4)", "32 channels", "Empty Joint Latent"],
    "wrong depth size": ["depth (1, 1, 64, 48)", "Expected a depth (1, 1, 64, 64)", "Empty Joint Latent"],
    "plain latent into decode": ["plain latent (1, 4, 8, 8)", "without a depth", "Empty Joint Latent"],
    "foreign nested into decode": ["(1, 8, 16)", "Expected an image", "Empty Joint Latent"],
    "batches of different size": ["4 images and 3 depth maps", "equally many"],
    "depth of another picture": ["(1, 1, 64, 48)", "does not cover the same image"],
    "wrong VAE": ["VAE with 128 channels at 1/16", "got one with 32 at 1/16", "flux2-vae"],
    "prompt of another model": [
        "got a prompt of width 768",
        "Expected a prompt of width 128",
        "Load Modality Forcing",
    ],
    "order of another model": ["got a SDXL model", "Load Modality Forcing"],
    "empty latent of another model": ["got a SDXL model", "Load Modality Forcing"],
    "clip layers": ["CLIP Set Last Layer", "no layers"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_input_is_refused_with_the_remedy(nodes, case):
    sentence = nodes("refused", case=case)
    assert sentence and sentence.count(". ") <= 1 and "\n" not in sentence
    assert not [part for part in REFUSALS[case] if part not in sentence], sentence


def test_a_wrong_file_is_called_by_its_name(nodes, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"double_stream_modulation_img.lin.weight": torch.zeros(2, 2)}, tmp_path / "given.safetensors")
    sentence = nodes("refused_file", path=str(tmp_path))
    assert "FLUX.2 text-to-image network" in sentence and "Expected a Modality Forcing network" in sentence


def test_a_damaged_file_is_called_damaged(nodes, tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at all}")
    assert "damaged" in nodes("refused_file", path=str(tmp_path), name="damaged.safetensors")


def test_a_file_of_the_user_gives_a_model_and_says_where_the_rest_is(nodes, root, tiny_weights, tmp_path):
    from pathlib import Path

    folder = Path(tiny_weights) if tiny_weights else root / "models" / "modality_forcing"
    (tmp_path / "copy.safetensors").write_bytes((folder / "tiny.safetensors").read_bytes())
    result = nodes("loaded_file", path=str(tmp_path))
    assert result["model"] == "JointModel"
    assert "Load CLIP" in result["clip"] and "Load VAE" in result["vae"]
