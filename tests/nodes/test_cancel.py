"""Cancel at every step and in every phase: it stops there, and patches, memory and the next run are
as if nobody had pressed it.
"""

import pytest

pytestmark = pytest.mark.comfyui
FILE = "inside_cancel.py"


@pytest.fixture(scope="module")
def cancel(inside, tiny_weights):
    inside("inside_sampling.py", "start", weights=tiny_weights)
    inside("inside_matrix.py", "offered")  # what inside_compose.py and inside_cancel.py take from the others
    inside("inside_modes.py", "batches")
    inside("inside_compose.py", "registered")
    return lambda function, **kwargs: inside(FILE, function, **kwargs)


@pytest.mark.parametrize("kind", ["plain", "LoRA, order and guidance"])
def test_cancel_at_every_step_leaves_the_next_run_as_it_was(cancel, kind):
    """In every call of the network, and at twelve places between the first check of the run and its last."""
    seen = cancel("step_by_step", kind=kind)
    assert seen["calls"] == 3 and seen["checks"] > 100
    assert all(seen["cancelled"]), "Cancel was not heard"
    assert all(seen["same"]), "the next run differs"
    assert seen["grown"] <= 0, "bytes of tensors that were not there before the first Cancel"
    assert seen["state"] == [] and seen["plain"]


def test_cancel_stops_the_work_around_the_sampling(cancel):
    seen = cancel("phases")
    assert seen.pop("grown") <= 0, "bytes of tensors that were not there before the first Cancel"
    assert len(seen) == 6
    assert all(phase["checks"] and phase["stopped"] and phase["same"] for phase in seen.values()), seen


def test_cancel_stops_between_two_pictures(cancel, inside, tmp_path):
    """In every node that works on pictures one after the other: the bar counts them,
    and what is written is written whole.
    """
    inside("inside_geometry.py", "batches")
    seen = cancel("pictures", folder=str(tmp_path))
    single = {"SaveDepth npz", "PointCloud", "DepthMesh"}
    for name, node in seen.items():
        count = 1 if name in single else 3
        # scale, then normals
        assert node["checks"] == (6 if name == "CompareViews" else count), (
            f"{name}: one check before each picture"
        )
        assert all(node["stopped"]) and node["same"] and node["bar"][-1] == [count, count], f"{name}: {node}"
    assert seen["SaveDepth exr"]["files"] == [0, 1, 2]
    assert seen["SaveDepth png"]["files"] == [0, 2, 4], "each PNG with its JSON"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("pairs", "checks"), [(50 * 20, 3), (50 * 49, 2), (1, 50), (50 * 50, 0)])
def test_cancel_is_heard_within_the_attention_over_many_tokens(cancel, pairs, checks):
    """Rows of queries are independent, so that parts give what the whole gives."""
    seen = cancel("within_one_attention", pairs=pairs)
    assert seen["checks"] == checks and seen["stopped"] == [True] * checks
    assert seen["difference"] < 1e-6 and seen["run"] < 1e-4
