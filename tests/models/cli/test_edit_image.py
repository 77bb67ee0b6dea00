"""`spatialweave edit` on a render of the world, with random weights: its files, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from spatialweave.models.cli import main
from spatialweave.models.spatial_diff.editor_files import new_text_encoder, save_editor, save_text
from spatialweave.models.spatial_diff.flux import PRESETS, Flux
from spatialweave.models.world.render import render
from spatialweave.models.world.scene import sample_scenes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_editor(path / "tiny_editor.safetensors", Flux(PRESETS["tiny"]).state_dict(), PRESETS["tiny"])
    save_text(path / "tiny_text.safetensors", new_text_encoder(PRESETS["tiny"].context_in_dim).state_dict())
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A render of one object, and the object's name."""
    (found,) = sample_scenes(5, 1, max_objects=1)
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray((render([found], 128, 128).image[0] * 255).round().byte().numpy()).save(path)
    return path, found.objects[0]


def test_an_edit_writes_its_image_its_page_and_its_facts(scene, weights, tmp_path, capsys):
    path, item = scene
    words, out = f"move the {item.name} to the left", tmp_path / "out"
    code = main(
        [
            "edit",
            str(path),
            words,
            "--out",
            str(out),
            "--steps",
            "2",
            "--weights",
            str(weights),
            "--seed",
            "3",
        ]
    )
    assert code == 0, capsys.readouterr().err
    edited = Image.open(out / "edited.png")
    assert edited.size == (128, 128) and edited.text == {"instruction": words, "seed": "3"}
    facts = json.loads((out / "edit.json").read_text())
    assert facts["before"] == [item.name] and facts["seed"] == 3 and facts["instruction"] == words
    page = np.asarray(Image.open(out / "page.png"))
    assert page.shape[1] > 4 * 320 and page.std() > 10
    assert str(out / "edited.png") in capsys.readouterr().out


def test_an_image_is_scaled_first_and_the_page_can_be_a_jpeg(scene, weights, tmp_path, capsys):
    path, item = scene
    words, out = f"move the {item.name} to the left", tmp_path / "out"
    Image.open(path).resize((256, 192)).save(tmp_path / "large.png")
    options = ["--out", str(out), "--steps", "1", "--weights", str(weights), "--size", "128", "--page", "jpg"]
    assert main(["edit", str(tmp_path / "large.png"), words, *options]) == 0, capsys.readouterr().err
    assert Image.open(out / "edited.png").size == (128, 96)
    page = Image.open(out / "page.jpg")
    assert page.format == "JPEG" and page.width > 4 * 320 and np.asarray(page).std() > 10
    assert not (out / "page.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("move the {other} to the left", "Expected the {other} in"),
        ("move the {name} upwards", "got 'upwards'"),
        ("to the left", "names an object"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_writes_nothing(
    scene, weights, tmp_path, capsys, words, message
):
    path, item = scene
    other = next(f"{color} {item.shape}" for color in ("red", "blue") if color != item.color)
    words, message = (text.format(name=item.name, other=other) for text in (words, message))
    assert main(["edit", str(path), words, "--out", str(tmp_path / "out"), "--weights", str(weights)]) != 0
    error = capsys.readouterr().err
    assert message in error and not (tmp_path / "out").exists()
    if "Expected the" in message:
        assert item.name in error


def test_an_existing_folder_is_not_overwritten(scene, weights, tmp_path, capsys):
    path, item = scene
    (tmp_path / "kept.txt").write_text("mine")
    words = f"move the {item.name} to the left"
    code = main(["edit", str(path), words, "--out", str(tmp_path), "--steps", "1", "--weights", str(weights)])
    assert code != 0 and (tmp_path / "kept.txt").read_text() == "mine"
