"""Runs the Triton kernels in Triton's interpreter, in a process of its own: the environment decides
at import. For the parts named prints one JSON line a case: [part, case, what was found].

NaN fills every buffer before it is written, and marks lie before and after it.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.runtime.interpreter as interpreter

from spatialweave.kernels import segment_attention, use_backend
from spatialweave.kernels.segment_attention import launch
from spatialweave.kernels.segment_attention.backward import segment_attention_backward
from spatialweave.kernels.segment_attention.cases import CASES, EXTREME, LONG
from spatialweave.kernels.segment_attention.reference import segment_attention_reference
from spatialweave.kernels.segment_attention.segments import Segments, Source, full_weight
from spatialweave.kernels.testing import GuardedMemory

torch.set_num_threads(1)
_patch = interpreter._patch_lang_tensor


def patch(tensor, *scope):
    """Triton before 3.7.1 turns one-element arrays into numbers in a way that numpy 2.4 refuses."""
    _patch(tensor, *scope)
    setter = scope[0].set_attr if scope else (lambda owner, name, value: setattr(owner, name, value))
    setter(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = patch


def error(got, want):
    """Relative in the Frobenius norm, absolute where that is under 1 (a gradient that cancels);
    NaN anywhere is NaN.
    """
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1.0))


def forward(case, dtype, tile):
    q, k, v = case.tensors(torch.Generator().manual_seed(len(case.name)), dtype)
    weight = full_weight(case.log_weight(), q, case.segments)
    want, want_lse = segment_attention_reference(
        q.double(), k.double(), v.double(), case.segments, weight.double(), scale=0.2
    )
    with GuardedMemory() as memory:
        out, lse = launch.forward(q, k, v, case.segments, weight, scale=0.2, need_lse=True, tile=tile)
        again, _ = launch.forward(q, k, v, case.segments, weight, scale=0.2, need_lse=False, tile=tile)
    seen = want_lse > float("-inf")
    return {
        "out": error(out, want), "lse": error(lse[seen], want_lse[seen]),
        "unseen": bool((lse > float("-inf")).eq(seen).all()),
        "same": bool(torch.equal(out, again)), "layout": out.transpose(1, 2).is_contiguous(),
        "bands": memory.is_intact(),
    }  # fmt: skip


def backward(case, dtype, tiles):
    q, k, v = case.tensors(torch.Generator().manual_seed(len(case.name)), dtype)
    weight = full_weight(case.log_weight(), q, case.segments)
    out, lse = segment_attention_reference(q, k, v, case.segments, weight, scale=0.2)
    generator = torch.Generator().manual_seed(1)
    grads = tuple(
        torch.randn(shape, generator=generator).to(kind)
        for shape, kind in ((q.shape, dtype), (q.shape[:3], torch.float32))
    )
    with GuardedMemory() as memory:
        first, again = (
            launch.backward(
                grads, (q, k, v, weight), (out, lse), case.segments, scale=0.2, tiles=tiles, need_weight=need
            )
            for need in (True, False)
        )
    exact = [tuple(tensor.double() for tensor in given) for given in (grads, (q, k, v, weight), (out, lse))]
    want = segment_attention_backward(*exact, case.segments, scale=0.2)
    plain = segment_attention_backward(grads, (q, k, v, weight), (out, lse), case.segments, scale=0.2)
    return {
        "plain": max(error(one, other) for one, other in zip(plain[:3], want[:3])),
        **{name: error(one, other) for name, one, other in zip(("q", "k", "v"), first, want)},
        "bands": memory.is_intact(),
        "weight": float((first[3] - want[3]).norm() / (want[3].norm() + 1)),
        "zero": bool((first[3][weight == float("-inf")] == 0).all()),
        "same": all(torch.equal(one, other) for one, other in zip(first[:3], again[:3])),
    }  # fmt: skip


TRAINED = (
    "halves-mixed",
    "partner-not-mutual",
    "one-token",
    "one-short-of-a-tile",
    "one-short-of-two-tiles",
    "joint-three-streams",
    "more-keys",
    "sees-nothing",
    "other-rows",
)
HALF = ("pairs-mixed", "halves-mixed")  # in float16, too


SMALL, LARGE = launch.Config(32, 32, 4, 1), launch.Config(256, 256, 8, 1)


def all_forward():
    """What is asked under every Triton: the cases whose gradients are, too, and types, tiles and extremes."""
    for case in CASES:
        if case.name in TRAINED:
            yield f"{case.name}-float32", forward(case, torch.float32, SMALL)
        if case.name in HALF:
            yield f"{case.name}-float16", forward(case, torch.float16, SMALL)
    whole = launch.Config(32, 32, 4, 1, whole=True)
    for case in (case for case in CASES if case.name in HALF):  # of width 40: one part of 64
        yield f"{case.name}-whole-float32", forward(case, torch.float32, whole)
    yield "one-tile-float32", forward(CASES[0], torch.float32, launch.Config(64, 64, 4, 1))
    for case in EXTREME:
        yield f"{case.name}-float32", forward(case, torch.float32, SMALL)
        yield f"{case.name}-float16", forward(case, torch.float16, SMALL)


def other_forward():
    for case in CASES:
        if case.name not in TRAINED:
            yield f"{case.name}-float32", forward(case, torch.float32, SMALL)


def all_backward():
    cases = {case.name: case for case in CASES}
    for name in TRAINED:
        yield f"{name}-float32", backward(cases[name], torch.float32, (SMALL, SMALL))
    yield "halves-mixed-float16", backward(cases["halves-mixed"], torch.float16, (SMALL, SMALL))
    uneven = (launch.Config(16, 64, 4, 1), launch.Config(64, 16, 4, 1))
    yield "other-tiles-float32", backward(cases["halves-mixed"], torch.float32, uneven)
    yield (
        "even-float32",
        backward(cases["pairs-ildm-bnhd"], torch.float32, (SMALL, launch.Config(64, 64, 4, 1))),
    )
    for case in EXTREME:
        yield f"{case.name}-float32", backward(case, torch.float32, (SMALL, SMALL))


def long():
    for case in LONG:
        yield f"{case.name}-forward", forward(case, torch.float32, LARGE)
        yield f"{case.name}-backward", backward(case, torch.float32, (LARGE, LARGE))


def op():
    yield "op-float16", through_the_op()
    yield "identities-float32", identities()


def identities():
    """What holds whatever the numbers: bits where the same tiles are visited, else a relative error."""
    made = torch.randn(3, 2, 50, 3, 40, generator=torch.Generator().manual_seed(4)).transpose(2, 3)

    def run(q, k, v, segments, weight):
        return launch.forward(
            q, k, v, segments, full_weight(weight, q, segments), scale=0.2, need_lse=False, tile=SMALL
        )[0]

    (q, k, v), pair, own = made, Segments.coupled(50, (1, 0)), Segments((50,), (Source(0, 50),))
    beside = [torch.cat([tensor, tensor.flip(0)], 2) for tensor in (k, v)]
    alone, twins = run(q, k, v, own, None), [tensor[:1].expand(2, -1, -1, -1) for tensor in (k, v)]
    return {
        "zero": torch.equal(run(q, k, v, pair, [[0.0, float("-inf")]]), alone),
        "one": error(run(q, k, v, pair, None), run(q, *beside, Segments((50,), (Source(0, 100),)), None)),
        "twins": [
            error(run(q, *twins, pair, [[0.0, w]]), run(q, *twins, own, None))
            for w in (-14.0, -0.5, 0.0, 3.0)
        ],
        "nan": bool(run(q, k, v, pair, [[0.0, float("nan")]]).isnan().all()),
        "shift": error(run(q, k, v, pair, [[2.0, 1.5]]), run(q, k, v, pair, [[0.0, -0.5]])),
    }


def through_the_op():
    """As a user forces it: the self-check, then the call."""
    q, k, v = (
        torch.randn(2, 20, 3 * 24, generator=torch.Generator().manual_seed(n)).half() for n in range(3)
    )
    given = dict(segments=Segments.coupled(20, (1, 0)), log_weight=[[0.0, -1.0]], heads=3)
    with use_backend("triton"):
        ours = segment_attention(q, k, v, **given)
    with use_backend("reference"):
        theirs = segment_attention(q, k, v, **given)
        found = {
            "out": error(ours, theirs),
            "op_grad": error(*(gradient(name, q, k, v, given) for name in ("triton", "reference"))),
        }
        return found | {
            "proven": sorted(key[0] for key in launch.TRUST.proven),
            "failed": list(launch.TRUST.failed.values()),
        }


def gradient(name, q, k, v, given):
    """Of q, k and v in one, through the registered operator."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (q, k, v)]
    with use_backend(name):
        return torch.cat(torch.autograd.grad(segment_attention(*leaves, **given).square().sum(), leaves))


PARTS = {
    "forward": all_forward, "other_forward": other_forward, "backward": all_backward, "long": long, "op": op,
}

if __name__ == "__main__":
    for part in sys.argv[1:]:
        for name, result in PARTS[part]():
            sys.stdout.write(json.dumps([part, name, result]) + "\n")
