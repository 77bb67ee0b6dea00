"""The Triton kernels' numbers, without a GPU: Triton's interpreter in its own process,
against the reference in float64.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spatialweave.kernels.segment_attention.cases import CASES, EXTREME, LONG

pytest.importorskip(
    "triton",
    reason="triton exists for Linux and Windows machines with a GPU; its tests run where torch brings it",
)
LIMIT = {"float32": 1e-6, "float16": 6e-4}
WORKER = Path(__file__).with_name("worker_interpreter.py")
PARTS = ("forward", "other_forward", "backward", "op", "long")
SHARED = [  # in both directions
    "halves-mixed", "partner-not-mutual", "one-token", "joint-three-streams", "more-keys", "sees-nothing",
    "other-rows", "one-short-of-a-tile", "one-short-of-two-tiles",
]
TRAINED = [f"{name}-float32" for name in [*SHARED, "other-tiles", "even"]] + ["halves-mixed-float16"]
HALF = ["pairs-mixed-float16", "halves-mixed-float16"]
HARD = [case.name for case in EXTREME]
# for these: a rounding of a logit of 80 is one of some 1e-6 in its weight
LOOSER = {"float32": 4e-6, "float16": 6e-4}


@pytest.fixture(scope="module")
def results(request):
    """{part: {case: what was found}} of the parts that the tests of this run ask for, by one process."""
    asked = {
        part
        for item in request.session.items
        if item.path == request.path
        for part in PARTS
        if part in item.fixturenames
    }
    call = [sys.executable, "-I", str(WORKER), *sorted(asked)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {part: {} for part in asked}
    for part, name, result in map(json.loads, done.stdout.splitlines()):
        found[part][name] = result
    return found


@pytest.fixture(scope="module")
def forward(results):
    return results["forward"]


WHOLE = [name.replace("float16", "whole-float32") for name in HALF]  # the head width as one padded part


@pytest.mark.parametrize(
    "name", [*(f"{name}-float32" for name in SHARED), *HALF, *WHOLE, "one-tile-float32"]
)
def test_the_kernel_is_the_reference(forward, name):
    is_the_reference(forward[name], LIMIT[name.rsplit("-", 1)[1]])


@pytest.fixture(scope="module")
def other_forward(results):
    return results["other_forward"]


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("name", [f"{case.name}-float32" for case in CASES if case.name not in SHARED])
def test_the_kernel_is_the_reference_in_the_other_cases(other_forward, name):
    is_the_reference(other_forward[name], LIMIT["float32"])


def is_the_reference(found, limit):
    assert found["out"] < limit and found["lse"] < 1e-6
    assert found["unseen"] and found["same"] and found["layout"] and found["bands"]


@pytest.mark.parametrize("name", [f"{name}-{dtype}" for name in HARD for dtype in LOOSER])
def test_large_logits_and_equal_keys(forward, name):
    found = forward[name]
    assert found["out"] < LOOSER[name.rsplit("-", 1)[1]] and found["lse"] < 1e-6
    assert found["unseen"] and found["same"] and found["bands"]


@pytest.fixture(scope="module")
def backward(results):
    return results["backward"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_the_gradients_are_the_formulas(backward, name):
    are_the_formulas(backward[name], LIMIT[name.rsplit("-", 1)[1]])


def are_the_formulas(found, limit):
    # how precise a gradient can be in this type depends on the order in which a processor adds:
    # torch's own may be worse than the limit
    limit = max(limit, 1.2 * found["plain"])
    assert max(found[of] for of in ("q", "k", "v")) < limit
    assert found["weight"] < max(limit, 5e-6), "a sum of thousands of float32 terms of both signs"
    assert found["zero"] and found["same"] and found["bands"]


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD)
def test_gradients_of_large_logits_and_equal_keys(backward, name):
    found = backward[f"{name}-float32"]
    assert max(found[of] for of in ("q", "k", "v", "weight")) < 1e-4
    assert found["zero"] and found["same"] and found["bands"]


@pytest.fixture(scope="module")
def op(results):
    return results["op"]


def test_identities_of_the_kernel(op):
    """Weight 0 is plain attention bit for bit, 1 is concatenation;
    for equal streams the weight does not matter, nor a common factor.
    """
    found = op["identities-float32"]
    assert found["zero"] and found["nan"] and max(found["one"], found["shift"], *found["twins"]) < 1e-6


def test_the_op_checks_the_kernels_and_runs_them(op):
    found = op["op-float16"]
    assert found["out"] < 6e-4 and found["op_grad"] < 2e-3
    assert found["proven"] == ["backward", "forward"] and not found["failed"]


@pytest.fixture(scope="module")
def long(results):
    return results["long"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.name for case in LONG])
def test_long_sequences_in_both_directions(long, name):
    is_the_reference(long[f"{name}-forward"], LIMIT["float32"])
    are_the_formulas(long[f"{name}-backward"], LIMIT["float32"])
