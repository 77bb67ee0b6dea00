"""Building a dataset from pictures, without ComfyUI: graphs, savers, and saved files gathered to rows;
the whole is in tests/workflows.
"""

import io
import json

import pytest
import torch
from PIL import Image

from spatialweave.models.cli.console import main
from spatialweave.models.core.export.npz import encode_npz
from spatialweave.models.core.geometry.normals import normals_to_image
from spatialweave.models.core.geometry.view import View
from spatialweave.models.intrinsic_ldm.data import build as dataset_build
from spatialweave.models.intrinsic_ldm.data.dataset import IntrinsicSamples
from spatialweave.models.intrinsic_ldm.data.server import Server

SIZE = (16, 24)


def png(values):
    buffer = io.BytesIO()
    Image.fromarray((values * 255).round().to(torch.uint8).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def picture():
    return torch.arange(16 * 24 * 3).reshape(16, 24, 3).to(torch.uint8)


@pytest.fixture
def view():
    depth = 2 + torch.arange(24.0).expand(1, *SIZE) / 10
    depth = depth.index_fill(1, torch.tensor([0]), torch.inf).index_fill(1, torch.tensor([1]), 0)
    return View.from_depth(
        depth, units="metric", intrinsics=torch.tensor([[[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]])
    )


def box(top, bottom, left, right):
    mask = torch.zeros(SIZE)
    mask[top:bottom, left:right] = 1
    return mask


def test_saved_files_become_a_row(picture, view):
    """Sky from the depth, small masks on large ones, normals from the depth where the
    estimator gives none.
    """
    line = torch.linspace(0, 1, 24).expand(SIZE)
    files = {
        "depth": [encode_npz(view)], "segmentation": [png(box(5, 7, 5, 7)), png(box(3, 12, 2, 20))],
        "line": [png(line)],
    }  # fmt: skip
    row = dataset_build.assemble(picture, files)
    assert torch.equal(row["image"], picture) and torch.equal(row["depth"], view.depth[0])
    wanted = torch.zeros(SIZE, dtype=torch.int16)
    wanted[0], wanted[3:12, 2:20], wanted[5:7, 5:7] = -1, 2, 1
    assert torch.equal(row["segmentation"], wanted)
    assert (
        row["normals"].dtype == torch.int8
        and row["normals"][8, 12].float().norm() == pytest.approx(127, abs=1)
    )
    assert not row["normals"][:2].any()
    torch.testing.assert_close(row["line"].float(), line, atol=0.003, rtol=0)


def test_given_normals_count_and_absent_masks_are_none(picture, view):
    normals = torch.nn.functional.normalize(
        torch.randn(*SIZE, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    normals[0, 0] = 0
    row = dataset_build.assemble(
        picture,
        {"depth": [encode_npz(view)], "normals": [png(normals_to_image(normals))], "segmentation": []},
    )
    torch.testing.assert_close(row["normals"].float() / 127, normals, atol=0.02, rtol=0)
    assert not (row["segmentation"] > 0).any() and "line" not in row


def test_a_map_of_another_size_is_refused(picture):
    for files, words in (
        (
            {"line": [png(torch.zeros(8, 8))]},
            "Expected line of the image's 24 x 16 pixels from the workflow, got 8 x 8",
        ),
        ({"segmentation": [png(torch.zeros(8, 8))]}, r"got \(8, 8\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            dataset_build.assemble(picture, files)


def test_rows_that_lack_a_map_hold_zeros():
    stacked = dataset_build.stack_samples(
        [{"image": torch.ones(2, 2, 3)}, {"image": torch.ones(2, 2, 3), "depth": torch.ones(2, 2)}]
    )
    assert stacked["depth"].sum(dim=(1, 2)).tolist() == [0, 4]


def test_the_shipped_workflow_saves_every_map_but_those_that_the_depth_brings():
    graph = dataset_build.read_graph(dataset_build.WORKFLOW, ["9.low_threshold=0.2", "6.text=person"])
    assert graph["9"]["inputs"]["low_threshold"] == 0.2 and graph["6"]["inputs"]["text"] == "person"
    assert sorted(dataset_build.find_savers(graph).values()) == ["depth", "line", "segmentation"]
    saver = next(node for node in graph.values() if node["class_type"] == "SpatialWeave_SaveDepth")
    assert saver["inputs"]["format"] == "npz"


@pytest.mark.parametrize("graph, changes, words", [
    (None, [], "cannot be read"),
    ({"nodes": []}, [], "got one as the browser saves it. Export it in API form"),
    ([], [], "Expected a JSON object in .*, got a list"),
    (
        {"1": {"class_type": "LoadImage"}}, [],
        "Expected nodes with class_type and inputs in .*graph.json, got another entry '1'",
    ),
    ({"version": 0.4}, [], "got another entry 'version'"),
    (
        {"1": {"class_type": "LoadImage", "inputs": {}}}, [],
        "and a saving node whose filename_prefix ends in one of",
    ),
    (
        {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "a/line"}}}, [],
        "Expected a Load Image in ",
    ),
    (
        {"1": {"class_type": "LoadImage", "inputs": {}}}, ["2.image=x"],
        "with an input of graph.json, got '2.image'",
    ),
])  # fmt: skip
def test_a_workflow_that_cannot_serve_is_refused(tmp_path, graph, changes, words):
    path = tmp_path / "graph.json"
    if graph is not None:
        path.write_text(json.dumps(graph))
    with pytest.raises(ValueError, match=words):
        dataset_build.read_graph(path, changes)


def test_a_folder_without_pictures_and_a_silent_server_are_named(tmp_path):
    pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
    with pytest.raises(
        ValueError, match=r"Expected images \(.png, .* in a folder .*, got none. Name another"
    ):
        dataset_build.build_dataset(tmp_path, tmp_path / "out", servers=["http://127.0.0.1:9"])
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "in" / "a.png")
    with pytest.raises(
        OSError,
        match="Expected a ComfyUI at http://127.0.0.1:9, got no answer .* Start one, or give --server",
    ):
        dataset_build.build_dataset(tmp_path / "in", tmp_path / "out", servers=["http://127.0.0.1:9/"])


def test_pictures_that_cannot_be_read_are_named_when_all_are(tmp_path):
    pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"got none of 1; the first, a\.png: Expected an image in .*a\.png, got a file that"
    ):
        dataset_build.build_dataset(tmp_path / "in", tmp_path / "out", servers=["http://127.0.0.1:9"])


def test_pictures_are_cut_to_one_size(tmp_path):
    Image.new("RGB", (90, 30), (255, 0, 0)).save(tmp_path / "a.png")
    image, notes = dataset_build.read_cropped_image(tmp_path / "a.png", SIZE)
    assert image.shape == (16, 24, 3) and image.dtype == torch.uint8 and notes == ()
    Image.new("L", (20000, 1)).save(tmp_path / "b.png")
    with pytest.raises(
        ValueError, match=r"Expected an image that can cover 512 x 512 pixels in .*b\.png, got 20000 x 1"
    ):
        dataset_build.read_cropped_image(tmp_path / "b.png", (512, 512))
    assert Server("http://x/").url == Server("x").url == "http://x"


def test_the_commands_refuse_in_a_sentence_and_the_world_writes_normals(tmp_path, capsys):
    pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
    assert main(["world", str(tmp_path / "world"), "--scenes", "1", "--size", "16", "--normals"]) == 0
    assert IntrinsicSamples(tmp_path / "world")[0]["present"].all()
    capsys.readouterr()
    assert main(["intrinsics", "build", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("spatialweave intrinsics: ")
    given = ["--base", str(tmp_path), "--vae", str(tmp_path / "world" / "dataset.json"), "--size", "16x16"]
    assert main(["intrinsics", "encode", str(tmp_path / "world"), str(tmp_path / "out"), *given]) == 1
    assert "Expected a base in diffusers' layout" in capsys.readouterr().err
