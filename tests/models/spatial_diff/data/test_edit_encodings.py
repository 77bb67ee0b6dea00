"""Triples of the three layouts, and their encodings: what is stored, mirrored, resumed and refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spatialweave.models.core.export.depth_files import write_depth
from spatialweave.models.core.geometry.packets import from_da3
from spatialweave.models.spatial_diff.data import encode, geometry
from spatialweave.models.spatial_diff.data.encoders import TinyEncoders
from spatialweave.models.spatial_diff.data.triples import open_triples
from spatialweave.models.spatial_diff.grammar import tokenize_instructions

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")


def draw_image(seed, size=(32, 48)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_folders(folder, count=3, depth=True):
    for name in ("reference", "target", "instruction", *(["depth"] if depth else [])):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(draw_image(i)).save(folder / "reference" / f"{i}.png")
        Image.fromarray(draw_image(100 + i)).save(folder / "target" / f"{i}.png")
        (folder / "instruction" / f"{i}.txt").write_text(
            f"move the red ball\n to the {'left' if i else 'right'}"
        )
        if depth:
            steps = np.full((32, 48), 1000 * (i + 1), dtype=np.uint16)
            steps[:, :4] = 0
            Image.fromarray(steps).save(folder / "depth" / f"{i}.png")
    return folder


def write_3dit(folder, words=False):
    for uid, spot in (("a", [0.1, 0.9]), ("b", [0.5, 0.5])):
        edit = folder / "translate" / "train" / uid
        edit.mkdir(parents=True)
        Image.fromarray(draw_image(1)).save(edit / "1.png")
        Image.fromarray(draw_image(2)).save(edit / "2.png")
        values = {"translation_category": "Teapot", "end_location_2d": spot, "object_data": [{"uid": uid}]}
        (edit / "metadata.json").write_text(json.dumps(values))
    if words:
        (edit / "instruction.txt").write_text("put the teapot back")
    return folder


def test_three_folders_are_read(tmp_path):
    triples = open_triples(write_folders(tmp_path))
    first = triples.read(0)
    assert len(triples) == 3 and first.instruction == "move the red ball to the right"
    assert np.array_equal(first.reference.numpy(), draw_image(0))
    assert np.array_equal(first.target.numpy(), draw_image(100))
    assert first.depth[0, 10] == 1.0 and not first.depth[0, 0] > 0
    assert sorted(triples.source(0).files) == [
        "depth/0.png",
        "instruction/0.txt",
        "reference/0.png",
        "target/0.png",
    ]


def test_object_3dit_is_read(tmp_path):
    triples = open_triples(write_3dit(tmp_path, words=True))
    assert [triples.read(i).instruction for i in range(2)] == [
        "Move the teapot to the near left of the image", "put the teapot back",
    ]  # fmt: skip
    assert np.array_equal(triples.read(0).target.numpy(), draw_image(2))


def test_encodings_hold_the_codecs_latents_and_their_mirror_images(tmp_path):
    source, out = write_folders(tmp_path / "edits"), tmp_path / "out"
    encoders = TinyEncoders()
    encode.encode_triples(source, out, encoders, mirror=True, shard_size=4)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [(line["index"], line["mirrored"]) for line in lines] == [
        (0, False), (0, True), (1, False), (1, True), (2, False), (2, True),
    ]  # fmt: skip
    first = load_file(out / "shard-00000.safetensors")
    image = torch.from_numpy(draw_image(0)).float().movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        expected = encoders.codec.encode(torch.cat([image, image.flip(-1)])).half()
    torch.testing.assert_close(first["reference"][:2], expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(
        first["tokens"][:2],
        tokenize_instructions(["move the red ball to the right", "move the red ball to the left"]),
    )


def test_a_finished_folder_is_not_written_again_and_a_new_edit_is_added(tmp_path):
    source, out = write_folders(tmp_path / "edits"), tmp_path / "out"
    encode.encode_triples(source, out, TinyEncoders(), shard_size=2)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert encode.encode_triples(source, out, TinyEncoders(), shard_size=2).written == 0
    for part, seed in (("reference", 7), ("target", 8)):
        Image.fromarray(draw_image(seed)).save(source / part / "3.png")
    (source / "instruction" / "3.txt").write_text("slide the box behind the cone")
    assert encode.encode_triples(source, out, TinyEncoders(), shard_size=2).count == 4
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


def test_other_settings_of_a_begun_folder_are_refused(tmp_path):
    source, out = write_folders(tmp_path / "edits"), tmp_path / "out"
    encode.encode_triples(source, out, TinyEncoders())
    with pytest.raises(ValueError, match="mirror"):
        encode.encode_triples(source, out, TinyEncoders(), mirror=True)


def test_geometry_holds_the_references_tokens_and_the_targets_inverse_depth(tmp_path):
    source, out = write_folders(tmp_path / "edits", count=1), tmp_path / "out"
    geometry.encode_geometry(source, out, TinyEncoders(), pixels=True)
    stored = load_file(out / "shard-00000.safetensors")
    assert stored["geometry"].shape[0] == 1 and stored["geometry"].shape[2] == 256
    image = stored["depth_image"][0, 0]
    assert (image[:, :4] == -1).all() and (image[:, 4:] == 1).all()
    with torch.no_grad():
        latent = TinyEncoders().codec.encode(image.float().expand(1, 3, -1, -1))
    torch.testing.assert_close(stored["depth_latent"].float(), latent, rtol=2e-3, atol=2e-3)


def test_vggt_is_a_teacher_where_no_depth_is_given(tmp_path):
    source = write_folders(tmp_path / "edits", count=1, depth=False)
    with pytest.raises(ValueError, match="choose the teacher vggt"):
        geometry.encode_geometry(source, tmp_path / "given", TinyEncoders())
    geometry.encode_geometry(source, tmp_path / "seen", TinyEncoders(), teacher="vggt")
    assert load_file(tmp_path / "seen" / "shard-00000.safetensors")["depth_latent"].isfinite().all()


@pytest.mark.parametrize("kind", ["npz", "png"])
def test_depth_anything_is_a_teacher_by_the_files_of_save_depth(tmp_path, kind):
    """What core's DA3 gives, as View from DA3 Geometry reads it and Save Depth writes it; sky is unknown."""
    source = write_folders(tmp_path / "edits", count=1, depth=False)
    depth = torch.linspace(1, 3, 32 * 48).reshape(1, 32, 48)
    sky = torch.zeros(1, 32, 48)
    sky[:, :8] = 1
    (source / "depth").mkdir()
    view = from_da3({"depth": depth, "sky": sky, "mode": "mono"}, "relative")
    write_depth(source / "depth" / f"0.{kind}", view)
    read = open_triples(source).read(0).depth
    torch.testing.assert_close(read[8:], depth[0, 8:], rtol=1e-3, atol=0)
    assert not ((read[:8] > 0) & read[:8].isfinite()).any()
    out = tmp_path / "out"
    geometry.encode_geometry(source, out, TinyEncoders(), pixels=True)
    image = load_file(out / "shard-00000.safetensors")["depth_image"][0, 0].float()
    assert (image[:8] == -1).all() and image[8, 0] == 1 and (image[8:].diff(dim=1) <= 0).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "target" / "1.png").unlink(), "Expected target/1 as one of"),
        (lambda folder: (folder / "instruction" / "1.txt").write_text(" \n"), "an empty file"),
        (
            lambda folder: Image.fromarray(draw_image(0, (16, 16))).save(folder / "target" / "1.png"),
            "of one size",
        ),
    ],
)
def test_faulty_folders_are_refused_by_name(tmp_path, spoil, words):
    source = write_folders(tmp_path / "edits")
    spoil(source)
    with pytest.raises(ValueError, match=words):
        encode.encode_triples(source, tmp_path / "out", TinyEncoders())


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.jsonl, the folders reference, target, instruction"):
        open_triples(tmp_path)
