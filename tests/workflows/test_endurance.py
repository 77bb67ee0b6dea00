"""A ComfyUI that is used for long: Cancel through its queue, and two hundred runs."""

import json
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
# the last: bytes that ComfyUI's own history and allocator may take meanwhile
RUNS, WARM, BESIDE = 200, 40, 8_000_000
SMALL = ["5.width=32", "5.height=32", "6.steps=1", "6.cfg=1.0"]


@pytest.fixture(scope="module")
def graph(runner, root):
    """The shipped joint workflow, small, with a seed."""
    whole = json.loads((root / "workflows/api/joint_image_depth.json").read_text(encoding="utf-8"))
    return lambda seed, *changes: runner.change_inputs(
        json.loads(json.dumps(whole)), [*SMALL, f"6.seed={seed}", *changes]
    )


def memory(process):
    """Bytes of the process that are in memory."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * 4096


def picture(server, outputs, folder):
    """The pixels that a run saved."""
    image = pytest.importorskip("PIL.Image")
    paths = [path for path in server.collect(outputs, folder) if path.name.startswith("8_")]
    return [image.open(path).tobytes() for path in paths]


def ended(server, run):
    """The status of a run that is over."""
    for _ in range(3000):
        entry = server.get_json(f"/history/{run}").get(run)
        if entry:
            return entry["status"]
        time.sleep(0.1)
    raise AssertionError("the run did not end")


def press_cancel(server):
    request = urllib.request.Request(f"{server.url}/interrupt", b"{}", {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).read()


def test_cancel_through_the_queue_leaves_the_next_run_as_it_was(second, graph, tmp_path):
    server, *_ = second
    want = picture(server, server.wait(server.queue(graph(1)), 600), tmp_path / "before")
    for index, delay in enumerate((0.0, 0.3, 1.0)):
        run = server.queue(graph(100 + index, "6.steps=5000"))
        while not server.get_json("/queue")["queue_running"]:
            time.sleep(0.02)
        time.sleep(delay)
        press_cancel(server)
        status = ended(server, run)
        kinds = [kind for kind, _ in status["messages"]]
        assert "execution_interrupted" in kinds and "execution_error" not in kinds, status
    again = picture(
        server, server.wait(server.queue(graph(1, '8.filename_prefix="again"')), 600), tmp_path / "after"
    )
    assert again == want and len(want) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_two_hundred_runs_leave_memory_flat(second, graph, record_property):
    """Queued one after another, each with its own seed;
    grown between the fortieth run and the two hundredth.
    """
    server, process, _ = second
    sizes = []
    for seed in range(RUNS):
        outputs = server.wait(server.queue(graph(seed)), 600)
        assert outputs
        sizes.append(memory(process))
    record_property("megabytes", [round(sizes[index] / 1e6, 1) for index in (0, WARM, RUNS // 2, RUNS - 1)])
    assert sizes[-1] - sizes[WARM] < BESIDE, (
        f"{(sizes[-1] - sizes[WARM]) / 1e6:.1f} MB more after {RUNS - WARM} runs"
    )
