"""The demo end to end with the shipped weights: every file it promises, read back by somebody else's
reader."""

import json
import os
import subprocess
import sys
from functools import partial

import imageio.v3 as imageio
import numpy as np
import OpenEXR
import pytest
import trimesh
from PIL import Image

from spatialweave.models.cli import console as cli
from spatialweave.models.cli import demo_sampling
from spatialweave.models.core.export.exr import encode_exr

FAST = ["--steps", "2", "--candidates", "1"]
SMALL = [*FAST, "--size", "64x64"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, exit code) of one joint run."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, cli.main(["demo", "a red ball to the left of a blue box", "--output", str(folder), *FAST])


@pytest.fixture(autouse=True)
def short_orbit(monkeypatch):
    """Most of a demo's time is its orbit of 30 frames: runs of single tests draw 2; `made`, of module scope,
    has all.
    """
    monkeypatch.setattr(demo_sampling, "render_orbit", partial(demo_sampling.render_orbit, frames=2))


def test_demo_writes_every_format(made):
    folder, code = made
    assert code == 0
    names = {
        "image.png",
        "depth.png",
        "depth.json",
        "depth.exr",
        "depth.npz",
        "points.ply",
        "orbit.webp",
        "sheet.png",
        "run.json",
    }
    assert {path.name for path in folder.iterdir()} == names


def test_demo_image_and_depth_have_the_size_asked_for(made):
    folder, _ = made
    assert Image.open(folder / "image.png").size == (128, 128)
    assert imageio.imread(folder / "depth.png").shape == (128, 128)
    assert imageio.imread(folder / "depth.png").dtype == np.uint16


def test_demo_depth_is_the_same_in_every_format(made):
    folder, _ = made
    facts = json.loads((folder / "depth.json").read_text())
    archive = np.load(folder / "depth.npz")
    exact, valid = archive["depth"].squeeze(), archive["mask"].squeeze().astype(bool)
    png = (
        imageio.imread(folder / "depth.png").astype(np.float64) * facts["depth_scale"] + facts["depth_offset"]
    )
    with OpenEXR.File(str(folder / "depth.exr")) as file:
        exr = file.channels()["Z"].pixels
    assert valid.any()
    assert np.array_equal(exr[valid], exact[valid])
    assert np.abs(png[valid] - exact[valid]).max() <= facts["depth_scale"]


def test_demo_points_lie_before_the_camera_at_the_depth_written(made):
    folder, _ = made
    points = trimesh.load(folder / "points.ply").vertices
    depth = np.load(folder / "depth.npz")["depth"]
    assert len(points) > 1000
    assert (points[:, 2] < 0).all()  # glTF: a camera looks down -z
    assert np.isin((-points[:, 2]).astype(np.float32), depth).mean() > 0.999, (
        "every point has the depth of a pixel; edges have none"
    )


def test_demo_orbit_is_an_animation_that_moves(made):
    folder, _ = made
    frames = imageio.imread(folder / "orbit.webp", index=None)
    assert len(frames) >= 24
    assert np.abs(frames[0].astype(float) - frames[len(frames) // 2]).mean() > 1


def test_demo_same_seed_gives_the_same_files(made, tmp_path):
    folder, _ = made
    assert cli.main(["demo", "a red ball to the left of a blue box", "--output", str(tmp_path), *FAST]) == 0
    for name in ("image.png", "depth.png", "depth.exr"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_demo_refines_the_depth_and_keeps_the_picture(made, tmp_path):
    folder, _ = made
    assert (
        cli.main(
            ["demo", "a red ball to the left of a blue box", "--refine", "--output", str(tmp_path), *FAST]
        )
        == 0
    )
    assert (tmp_path / "image.png").read_bytes() == (folder / "image.png").read_bytes()
    assert (tmp_path / "depth.exr").read_bytes() != (folder / "depth.exr").read_bytes()
    assert json.loads((tmp_path / "run.json").read_text())["refine"]


def test_demo_empty_prompt_works(tmp_path):
    assert cli.main(["demo", "", "--output", str(tmp_path), *SMALL]) == 0
    assert (tmp_path / "sheet.png").is_file()


def test_demo_names_unknown_words_with_the_nearest_known(tmp_path, capsys):
    assert cli.main(["demo", "a gren elephant", "--output", str(tmp_path), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "'gren' (nearest: 'green')" in said
    assert "'elephant'" in said


def test_demo_keeps_the_best_of_several_and_writes_all_on_request(tmp_path, capsys):
    """What is kept is a candidate, the one of the best score; its notes are its own."""
    asked = ["--output", str(tmp_path), "--candidates", "3", "--keep-candidates", "--size", "96x64"]
    asked += ["--steps", "2"]
    assert cli.main(["demo", "a red ball", *asked]) == 0
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / "candidates/scores.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["candidates"] == scores
    assert [score["number"] for score in scores] == [1, 2, 3] and scores[0]["facts_stated"] == 1
    (kept,) = [score for score in scores if score["kept"]]
    assert kept == max(scores, key=lambda s: (s["facts"], -s["flaws"], s["confidence"], -s["number"]))
    assert f"note: Of 3 candidates number {kept['number']} was kept" in printed
    assert "of 18432 depth pixels" not in printed  # of all three
    number = f"{kept['number']:02}"
    for name, suffix in (("image", "png"), ("depth", "exr")):
        kept_file, candidate = tmp_path / f"{name}.{suffix}", tmp_path / f"candidates/{number}.{suffix}"
        assert kept_file.read_bytes() == candidate.read_bytes()
    assert len(list((tmp_path / "candidates").iterdir())) == 7


@pytest.mark.slow
def test_the_demo_without_arguments_shows_what_it_says(tmp_path):
    """Default prompt and seed with the shipped weights: all facts, and no solid broken, hanging or odd."""
    assert cli.main(["demo", "--output", str(tmp_path)]) == 0
    candidates = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["candidates"]
    (kept,) = [score for score in candidates if score["kept"]]
    assert len(candidates) == 8 and kept["facts"] == kept["facts_stated"] == 3 and kept["flaws"] == 0


def test_demo_samples_one_where_a_stream_is_given_or_one_is_asked_for(tmp_path, capsys):
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "in.png")
    for more in (["a red ball", "--candidates", "1"], ["--image", str(tmp_path / "in.png")]):
        asked = ["--size", "32x32", "--output", str(tmp_path / "out"), "--steps", "2"]
        assert cli.main(["demo", *more, *asked]) == 0
        assert "candidates" not in capsys.readouterr().out
        assert "candidates" not in json.loads((tmp_path / "out/run.json").read_text(encoding="utf-8"))


def test_demo_says_that_it_replaces_an_earlier_run(tmp_path, capsys):
    assert cli.main(["demo", "a red ball", "--output", str(tmp_path), *SMALL]) == 0
    assert "earlier run" not in capsys.readouterr().out
    assert cli.main(["demo", "a blue box", "--seed", "3", "--output", str(tmp_path), *SMALL]) == 0
    first = f"note: {tmp_path} holds an earlier run ('a red ball', seed 0), which this one replaces;"
    assert first in capsys.readouterr().out
    (tmp_path / "run.json").write_text("[]")
    assert cli.main(["demo", "a blue box", "--output", str(tmp_path), *SMALL]) == 0
    assert "an earlier run (its run.json cannot be read)" in capsys.readouterr().out


def test_demo_reads_chinese_and_says_which_letters_the_sheet_lacks(tmp_path, capsys):
    chinese = "\u84dd\u76d2\u5b50"  # blue box
    assert cli.main(["demo", chinese, "--output", str(tmp_path / "1"), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "note: The tiny model reads 'a blue box'." in printed and "font" not in printed
    assert json.loads((tmp_path / "1/run.json").read_text(encoding="utf-8"))["prompt"] == chinese
    assert cli.main(["demo", "a \u0448\u0430\u0440", "--output", str(tmp_path / "2"), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "does not know '\u0448\u0430\u0440'" in printed
    assert "note: The sheet's font has no '\u0448', '\u0430', '\u0440': its title leaves them out." in printed


def test_demo_size_off_the_patch_comes_back_as_asked(tmp_path, capsys):
    assert cli.main(["demo", "--size", "70x41", "--output", str(tmp_path), *FAST]) == 0
    assert Image.open(tmp_path / "image.png").size == (70, 41)
    assert "not a multiple of 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "array"),
    [
        ("RGBA", np.random.default_rng(0).integers(0, 255, (33, 61, 4), np.uint8)),
        ("grey", np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)),
        ("16 bit", np.random.default_rng(0).integers(0, 65535, (31, 45), np.uint16)),
    ],
)
def test_demo_takes_any_picture(mode, array, tmp_path):
    imageio.imwrite(tmp_path / "in.png", array)
    assert (
        cli.main(["demo", "--image", str(tmp_path / "in.png"), "--output", str(tmp_path / "out"), *FAST]) == 0
    )
    assert imageio.imread(tmp_path / "out/depth.png").shape == array.shape[:2]


def test_demo_makes_a_picture_for_a_depth_with_holes(made, tmp_path, capsys):
    depth = np.tile(np.linspace(2, 8, 64, dtype=np.float32), (48, 1))
    depth[0, 0], depth[1, 1], depth[2, 2] = np.nan, -1, 0
    np.savez(tmp_path / "in.npz", depth=depth, units="metric")
    assert (
        cli.main(
            [
                "demo",
                "a green cone",
                "--depth",
                str(tmp_path / "in.npz"),
                "--output",
                str(tmp_path / "out"),
                *FAST,
            ]
        )
        == 0
    )
    assert "3 of 3072" in capsys.readouterr().out
    kept = np.load(tmp_path / "out/depth.npz")["depth"].squeeze()
    assert np.array_equal(kept[5:], depth[5:])  # given metric depth is handed on, bit for bit


def test_demo_constant_depth_works(tmp_path):
    np.savez(tmp_path / "in.npz", depth=np.full((32, 32), 3.0, np.float32), units="metric")
    assert (
        cli.main(["demo", "", "--depth", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out"), *FAST])
        == 0
    )


def test_demo_size_serves_a_given_picture_and_a_given_depth(tmp_path, capsys):
    imageio.imwrite(tmp_path / "in.png", np.zeros((48, 80, 3), np.uint8))
    assert (
        cli.main(
            [
                "demo",
                "--image",
                str(tmp_path / "in.png"),
                "--size",
                "40x24",
                "--output",
                str(tmp_path / "a"),
                *FAST,
            ]
        )
        == 0
    )
    assert imageio.imread(tmp_path / "a/depth.png").shape == (24, 40)
    assert "resized from 48 x 80 to 24 x 40" in capsys.readouterr().out
    np.savez(tmp_path / "in.npz", depth=np.full((48, 80), 3.0, np.float32), units="metric")
    assert (
        cli.main(
            [
                "demo",
                "--depth",
                str(tmp_path / "in.npz"),
                "--size",
                "40x24",
                "--output",
                str(tmp_path / "b"),
                *FAST,
            ]
        )
        == 0
    )
    assert Image.open(tmp_path / "b/image.png").size == (40, 24)


def test_demo_brings_a_large_picture_down_to_what_the_tiny_model_takes(tmp_path, capsys):
    """A photograph of 12 megapixels would be 47,000 tokens a stream."""
    imageio.imwrite(tmp_path / "in.png", np.zeros((300, 700, 3), np.uint8))
    assert (
        cli.main(["demo", "--image", str(tmp_path / "in.png"), "--output", str(tmp_path / "out"), *FAST]) == 0
    )
    assert imageio.imread(tmp_path / "out/depth.png").shape == (55, 128)
    said = capsys.readouterr().out
    assert "note: The longer side was scaled from 700 to 128 pixels" in said and "--size" in said
    assert json.loads((tmp_path / "out/run.json").read_text())["notes"][0].startswith("The longer side")


def test_demo_brings_the_depth_back_to_the_size_of_a_large_picture(tmp_path, capsys):
    array = np.full((192, 320, 3), 60, np.uint8)
    array[:, 160:] = 200
    Image.fromarray(array).save(tmp_path / "in.png")
    given = ["--image", str(tmp_path / "in.png"), "--output", str(tmp_path / "out"), "--full-size", *FAST]
    assert cli.main(["demo", *given]) == 0
    printed = capsys.readouterr().out
    assert "note: The depth was brought to 320 x 192 pixels, guided by the image." in printed
    assert np.load(tmp_path / "out/depth.npz")["depth"].shape[-2:] == (192, 320)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/image.png")), array)
    assert cli.main(["demo", "a red ball", "--full-size", "--output", str(tmp_path / "no")]) == 1
    assert "Expected --image for --full-size, got none." in capsys.readouterr().err


def test_demo_passes_the_prompt_on_beside_a_given_picture(tmp_path, capsys):
    imageio.imwrite(tmp_path / "in.png", np.zeros((32, 32, 3), np.uint8))
    given = ["--image", str(tmp_path / "in.png"), "--output", str(tmp_path / "out"), *FAST]
    assert cli.main(["demo", "a gren cone", *given]) == 0
    assert "'gren' (nearest: 'green')" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/run.json").read_text())["prompt"] == "a gren cone"
    assert cli.main(["demo", *given]) == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["prompt"] == "", (
        "the prompt of the joint demo describes another picture"
    )


@pytest.mark.parametrize("name", ["foreign.png", "foreign.exr", "foreign.npz"])
def test_demo_takes_a_depth_that_does_not_say_its_unit(tmp_path, capsys, name):
    values = np.tile(np.linspace(900, 4000, 48), (32, 1))
    if name.endswith("png"):
        imageio.imwrite(tmp_path / name, values.astype(np.uint16))
    elif name.endswith("npz"):
        np.savez(tmp_path / name, depth=values)
    else:
        (tmp_path / name).write_bytes(encode_exr({"Z": values, "R": values}))
    assert cli.main(["demo", "--depth", str(tmp_path / name), "--output", str(tmp_path / "out"), *FAST]) == 0
    assert f"note: {name} does not say its scale or unit" in capsys.readouterr().out
    made = np.load(tmp_path / "out/depth.npz")
    assert str(made["units"]) == "relative"
    assert np.allclose(made["depth"].squeeze(), values, atol=1)


def test_demo_refuses_a_batch_before_it_samples(tmp_path, capsys):
    np.savez(tmp_path / "two.npz", depth=np.ones((2, 32, 48)))
    assert (
        cli.main(["demo", "--depth", str(tmp_path / "two.npz"), "--output", str(tmp_path / "out"), *FAST])
        == 1
    )
    assert "two.npz, got a batch of 2. Save one to a separate file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_demo_names_what_it_leaves_of_a_file(tmp_path, capsys):
    np.savez(
        tmp_path / "d.npz",
        depth=np.ones((32, 48)),
        units="m",
        points=np.ones((32, 48, 3)),
        intrinsics=[[60, 0, 24], [0, 60, 16], [0, 0, 1]],
    )
    assert (
        cli.main(["demo", "--depth", str(tmp_path / "d.npz"), "--output", str(tmp_path / "out"), *FAST]) == 0
    )
    assert "d.npz, these arrays are not read: points (float64 (32, 48, 3))." in capsys.readouterr().out


def test_demo_reads_the_channel_of_an_exr_that_it_is_told(tmp_path, capsys):
    planes = {"ViewLayer.Far.V": np.full((32, 32), 2.0), "ViewLayer.Mist.V": np.full((32, 32), 7.0)}
    (tmp_path / "in.exr").write_bytes(encode_exr(planes))
    given = ["demo", "--depth", str(tmp_path / "in.exr"), "--output", str(tmp_path / "out"), *FAST]
    assert cli.main(given) == 1
    assert "ViewLayer.Far.V" in capsys.readouterr().err
    assert cli.main([*given, "--channel", "ViewLayer.Far.V"]) == 0
    assert (np.load(tmp_path / "out/depth.npz")["depth"] == 2).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "5x5"], "such as 128x128"),
        (["--size", "big"], "'big'"),
        (["--image", "a.png", "--depth", "b.npz"], "Expected --image or --depth, got both"),
        (["--image", "missing.png"], "missing.png"),
        (["--depth", "depth.jpg"], ".exr"),
        (["--weights", "missing.safetensors"], "missing.safetensors, got no file of this name"),
    ],
)
def test_demo_refuses_in_one_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.splitlines()[-1].startswith("spatialweave demo: ")  # before it at most the progress bar
    assert "Traceback" not in error


def test_demo_calls_a_foreign_weights_file_by_name(tmp_path, capsys):
    from spatialweave.models.tiny.weights import CODEC_FILE

    assert cli.main(["demo", "--weights", str(CODEC_FILE), "--output", str(tmp_path)]) == 1
    assert "tiny image codec" in capsys.readouterr().err


def test_demo_says_that_a_weights_file_is_cut_off(tmp_path, capsys):
    from spatialweave.models.modality_forcing.pipeline import TINY_NETWORK

    half = tmp_path / "half.safetensors"
    half.write_bytes(TINY_NETWORK.read_bytes()[: TINY_NETWORK.stat().st_size // 2])
    assert cli.main(["demo", "--weights", str(half), "--output", str(tmp_path)]) == 1
    assert "cut off" in capsys.readouterr().err


def test_demo_names_an_output_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--output", str(tmp_path / "file" / "out"), *FAST]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="only POSIX limits the size of a process's files")
def test_demo_keeps_what_it_made_when_the_disk_is_full(tmp_path):
    """A limit on file size stands for the full disk: the operating system refuses the write in the same
    place."""
    script = (
        "import resource, signal, sys; from spatialweave.models import cli; signal.signal(signal.SIGXFSZ, "
        "signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
        f"sys.exit(cli.main(['demo', *{FAST}, '--output', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-IB", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )  # B: Python does not notice that it cuts the bytecode of what it imports
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("spatialweave demo: ") and str(tmp_path / "out") in last
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "image.png" in left
    assert not any(name.endswith(".part") for name in left)
    assert Image.open(tmp_path / "out/image.png").size == (128, 128)
