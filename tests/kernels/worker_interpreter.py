"""Runs the Triton kernels in Triton's interpreter, in a process of its own: the environment decides at import. Prints one JSON line a case.

NaN fills every buffer before it is written.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.runtime.interpreter as interpreter

from spatialweave.kernels import segment_attention, use_backend
from spatialweave.kernels.segment_attention import launch
from spatialweave.kernels.segment_attention.cases import CASES
from spatialweave.kernels.segment_attention.reference import segment_attention_reference
from spatialweave.kernels.segment_attention.segments import Segments, full_weight
from spatialweave.kernels.testing import poisoned_memory

torch.set_num_threads(1)
_patch = interpreter._patch_lang_tensor


def patch(tensor, *scope):
    """Triton before 3.7.1 turns one-element arrays into numbers in a way that numpy 2.4 refuses."""
    _patch(tensor, *scope)
    setter = scope[0].set_attr if scope else (lambda owner, name, value: setattr(owner, name, value))
    setter(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = patch


def error(got, want):
    """Relative in the Frobenius norm; NaN anywhere is NaN."""
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def forward(case, dtype, tile):
    q, k, v = case.tensors(torch.Generator().manual_seed(len(case.name)), dtype)
    weight = full_weight(case.log_weight(), q, case.segments)
    want, want_lse = segment_attention_reference(q.double(), k.double(), v.double(), case.segments, weight.double(), scale=0.2)
    with poisoned_memory():
        out, lse = launch.forward(q, k, v, case.segments, weight, scale=0.2, need_lse=True, tile=tile)
        again, _ = launch.forward(q, k, v, case.segments, weight, scale=0.2, need_lse=False, tile=tile)
    seen = want_lse > float("-inf")
    return {
        "out": error(out, want), "lse": error(lse[seen], want_lse[seen]), "unseen": bool((lse > float("-inf")).eq(seen).all()),
        "same": bool(torch.equal(out, again)), "layout": out.transpose(1, 2).is_contiguous(),
    }  # fmt: skip


HALF = ("pairs-mixed", "halves-mixed")  # in float16, too


def main(part):
    small = launch.Config(32, 32, 4, 1)
    if part == "forward":
        for case in CASES:
            yield f"{case.name}-float32", forward(case, torch.float32, small)
            if case.name in HALF:
                yield f"{case.name}-float16", forward(case, torch.float16, small)
        yield "one-tile-float32", forward(CASES[0], torch.float32, launch.Config(64, 64, 4, 1))
    if part == "op":
        yield "op-float16", through_the_op()


def through_the_op():
    """As a user forces it: the self-check, then the call."""
    q, k, v = (torch.randn(2, 20, 3 * 24, generator=torch.Generator().manual_seed(n)).half() for n in range(3))
    given = dict(segments=Segments.coupled(20, (1, 0)), log_weight=[[0.0, -1.0]], heads=3)
    with use_backend("triton"):
        ours = segment_attention(q, k, v, **given)
    with use_backend("reference"):
        return {"out": error(ours, segment_attention(q, k, v, **given)), "proven": len(launch.TRUST.proven)}


if __name__ == "__main__":
    for name, result in main(sys.argv[1]):
        sys.stdout.write(json.dumps([name, result]) + "\n")
