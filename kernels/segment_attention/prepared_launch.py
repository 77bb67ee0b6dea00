"""The forward kernel as a prepared call: the compiled kernel with every argument but the tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from . import launch
from .prepared import Run, Weights
from .segments import Segments


def prepare_launch(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, weights: Weights, *,
    scale: float, need_lse: bool, merged_heads: bool,
) -> Run | None:  # fmt: skip
    """A prepared call for aligned tensors laid out as these (b, h, n, d), after the kernel ran on them once.

    None in the interpreter. The weights lie contiguous, in float32, so their strides follow from their shape.
    """
    if launch.interprets() or launch.TRUST.reason(launch.variant(q)) is not None:
        return None
    from .kernel import forward_kernel

    weight = weights.on(q.device)
    plan = launch.plan_forward(q, k, v, segments, weight, scale=scale, need_lse=need_lse)
    out, lse = plan.outputs(q)
    tensors = (q, k, v, out, out if lse is None else lse, weight, *plan.tables)
    grid = (plan.programs, 1, 1)
    with torch.cuda.device_of(q):
        # compiled and cached when it ran: this looks it up
        kernel = forward_kernel.warmup(*tensors, *plan.numbers, **plan.constants, **plan.options, grid=grid)
        start = kernel[grid]
    return _run(plan, start, launch.variant(q), q.device, merged_heads)


def _run(plan: launch.ForwardPlan, start, variant: tuple, device: torch.device, merged_heads: bool) -> Run:
    rest = (*plan.tables, *plan.numbers, *plan.constants.values())
    b, n, h, d = plan.shape
    shape, need_lse = (b, n, h * d) if merged_heads else plan.shape, plan.need_lse
    is_one_card = device.type != "cuda" or torch.cuda.device_count() == 1

    def run(q: Tensor, k: Tensor, v: Tensor, weights: Weights):
        if variant not in launch.TRUST.proven:
            return None  # the long way checks it
        out = torch.empty(shape, dtype=q.dtype, device=q.device)
        lse = torch.empty((b, h, n), dtype=torch.float32, device=q.device) if need_lse else None
        given = (q, k, v, out, out if lse is None else lse, weights.on(device), *rest)

        def begin():
            if is_one_card:
                start(*given)
            else:
                with torch.cuda.device_of(q):
                    start(*given)

        if not launch.TRUST.launch(variant, str, begin)[0]:
            return None
        return out if merged_heads else out.transpose(1, 2), lse

    return run

