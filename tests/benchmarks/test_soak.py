"""The program that soaks a ComfyUI: a few dozen of its runs, with every kind of fault,
and that it can fail.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak.py")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory and handles from /proc")


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def figures(comfyui, root, tmp_path):
    """Runs the program; (its exit status, the figures it wrote, what it printed)."""

    def run(*options):
        call = [
            sys.executable, str(SOAK), str(comfyui), str(root), "--json", str(tmp_path / "soak.json"),
            *options,
        ]
        done = subprocess.run(call, capture_output=True, text=True, timeout=1800)
        assert (tmp_path / "soak.json").is_file(), done.stdout[-2000:] + done.stderr[-3000:]
        return done.returncode, json.loads((tmp_path / "soak.json").read_text()), done.stdout

    return run


@linux
@pytest.mark.comfyui
@pytest.mark.slow
def test_runs_are_cancelled_meet_every_fault_and_stay_bit_equal(figures, root):
    """Memory is not judged: so few runs are all warming up."""
    status, found, printed = figures(
        "--runs", "33", "--window", "11", "--cancel-every", "7", "--fault-every", "6"
    )
    others = [line for line in found["failures"] if " grew by " not in line]
    assert not others, "\n".join(others)
    assert found["passed"] == (status == 0) == printed.endswith("PASSED\n") == (not found["failures"])
    kinds = ["missing when queued", "full disk", "killed client", "damaged weights", "missing when run"]
    assert [fault["kind"] for fault in found["faults"]] == kinds
    assert [fault["ended"] for fault in found["faults"]] == ["refused", "error", "success", "error", "error"]
    assert "the disk is full" in found["faults"][1]["said"] or "No space left" in found["faults"][1]["said"]
    assert found["cancelled"]["runs"] == 3
    again = found["compared with the first"]
    assert again["runs"] == 8 and again["files"] > again["runs"] and again["unequal"] == 0
    shipped = {path.stem for path in (root / "workflows/api").glob("*.json")}
    left_out = ("joyai_", "move_object_", "spatial_fusion_", "vggt_")
    assert {name for name in shipped if not name.startswith(left_out)} == set(found["workflows"])
    assert all(each["files"] for each in found["workflows"].values()), (
        "a workflow that saves nothing is not compared"
    )
    assert found["growth"]["rss"]["early"] > 100 and found["growth"]["handles"]["early"] > 3
    assert found["at the end, models unloaded"]["ours"] == []


def row(number, size, handles=7):
    sizes = dict.fromkeys(("rss", "pss", "private", "anonymous", "unsettled", "allocated"), size)
    return {
        "run": number, "kind": "run", "graph": f"graph {number % 3}", "handles": handles, "threads": 3,
        "children": 0, **dict.fromkeys(("objects", "tensors of core", "tensors of pack"), 10**6), **sizes,
    }


def judged(soak, rows, left=()):
    """What `summarize` calls a failure, of runs of 50 a window."""
    held = type("Held", (), {"rows": rows, "failures": [], "options": type("Options", (), {"window": 50})})
    return soak.results.summarize(held, {"ours": list(left), "children": 0})[1]


def test_growth_a_handle_and_an_open_file_are_failures(soak):
    flat = [row(number, 1_000_000_000 + number % 3) for number in range(200)]
    assert judged(soak, flat) == []
    assert judged(soak, flat, ["/output/a.png"]) == ["still open or mapped at the end: /output/a.png"]
    growing = [row(number, 1_000_000_000 + 101_000 * number) for number in range(200)]
    assert (
        [line.split(" by ")[0] for line in judged(soak, growing)]
        == ["rss grew", "pss grew", "private grew"]
    )
    just_not = [row(number, 1_000_000_000 + 99_000 * number) for number in range(200)]
    assert judged(soak, just_not) == []
    leaking = [row(number, 1_000_000_000, 7 + number // 100) for number in range(200)]
    assert judged(soak, leaking) == ["handles: 7.0 before, 8.0 at the end"]


def test_growth_a_run_is_that_of_like_runs(soak):
    """Workflows of very different sizes, one growth of 1000 bytes a run; a cancelled run does not count."""
    rows = [row(number, 10**9 + 10**8 * (number % 3) + 1000 * number) for number in range(60)]
    rows[30] |= {"kind": "cancelled, later", "rss": 0}
    growth, error = soak.results.slope(rows, "rss")
    assert growth == pytest.approx(1000) and error < 1
    for number in range(60):
        rows[number]["rss"] += 300 * (-1) ** (number // 3)
    growth, error = soak.results.slope(rows, "rss")
    assert abs(growth - 1000) < error and 3 < error < 6  # 2 x 300 / (17.3 x sqrt(57))
    # no workflow ran twice: nothing is claimed
    assert all(value != value for value in soak.results.slope(rows[:3], "rss"))


def test_a_result_is_known_by_its_numbers_not_by_its_file(soak, tmp_path):
    """The graph inside a file does not count, one number of its picture or arrays does."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    from PIL.PngImagePlugin import PngInfo

    notes, pixels = PngInfo(), np.zeros((4, 5, 3), np.uint8)
    notes.add_text("prompt", "other")
    image.fromarray(pixels).save(tmp_path / "a.png")
    image.fromarray(pixels).save(tmp_path / "b.png", pnginfo=notes)
    pixels[3, 4, 2] = 1
    image.fromarray(pixels).save(tmp_path / "c.png")
    a, b, c = (soak.clients.digest(tmp_path / f"{name}.png") for name in "abc")
    assert a == b != c
    np.savez(tmp_path / "a.npz", depth=pixels)
    np.savez_compressed(tmp_path / "b.npz", depth=pixels)
    np.savez(tmp_path / "c.npz", depth=pixels.astype(np.float32))
    a, b, c = (soak.clients.digest(tmp_path / f"{name}.npz") for name in "abc")
    assert a == b != c


@linux
def test_an_open_file_and_a_child_are_counted(soak, tmp_path):
    import os

    before = soak.process.measure(os.getpid(), [tmp_path])
    assert before["ours"] == [] and before["rss"] > 10_000_000 and before["rss"] >= before["private"]
    with (
        (tmp_path / "left.bin").open("wb"),
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child,
    ):
        during = soak.process.measure(os.getpid(), [tmp_path])
        child.communicate(b"\n")
    assert during["ours"] == [str(tmp_path / "left.bin")]
    assert (
        during["children"] == before["children"] + 1
        and during["kinds"]["file"] == before["kinds"].get("file", 0) + 1
    )
