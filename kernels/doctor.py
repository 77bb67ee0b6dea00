"""Which backends of the attention op are available on each device of this machine, and why others are not."""

from __future__ import annotations

import torch

from .dispatch import VARIABLE, forced_backend
from .segment_attention import launch
from .segment_attention.composition import attend_with_lse, returns_lse
from .segment_attention.preference import LEFT_TO_TORCH


def examine() -> list[dict[str, str]]:
    """One row per device, backend and direction: device, backend, direction, available ("yes" or "no"), why.

    Runs the self-checks of the kernels.
    """
    rows = []
    for device in devices():
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        q = torch.zeros(1, 1, 64, 64, dtype=dtype, device=device)
        for direction, check in (("forward", launch.self_check), ("backward", launch.backward_self_check)):
            reason = launch.machine_reason(device) or launch.call_reason(q, q, q, direction)
            if reason is None:
                launch.TRUST.launch(
                    launch.variant(q, direction), lambda check=check, q=q: check(q), lambda: None
                )
                reason = launch.TRUST.reason(launch.variant(q, direction))
            rows.append(
                _row(
                    device,
                    "triton",
                    direction,
                    reason is None,
                    reason or f"its self-check passed; {_limits(device)}",
                )
            )
        rows.append(
            _row(device, "composition", "forward", True, f"weights other than 0 and 1 by {_merge(q)}")
        )
        rows.append(_row(device, "composition", "backward", True, "recomputed in torch"))
        rows.append(_row(device, "reference", "both", True, "plain torch, for checking"))
    return rows


def devices() -> list[torch.device]:
    found = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [
        *found,
        *([torch.device("mps")] if torch.backends.mps.is_available() else []),
        torch.device("cpu"),
    ]


def report() -> list[str]:
    """`examine` as lines of text."""
    forced = forced_backend()
    lines = [f"torch {torch.__version__}; backend forced by {VARIABLE}: {forced or 'none'}"]
    lines += [
        f"{device}: {torch.cuda.get_device_name(device)}" for device in devices() if device.type == "cuda"
    ]
    lines.append(f"{'device':8s} {'backend':12s} {'direction':9s} {'available':9s} why")
    return lines + [
        "{device:8s} {backend:12s} {direction:9s} {available:9s} {why}".format(**row) for row in examine()
    ]


def _row(device: torch.device, backend: str, direction: str, available: bool, why: str) -> dict[str, str]:
    return {
        "device": str(device),
        "backend": backend,
        "direction": direction,
        "available": "yes" if available else "no",
        "why": why,
    }


def _limits(device: torch.device) -> str:
    """What the kernel supports, and which calls torch's attention takes on this device unless forced."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else None
    left = [str(row) for row in LEFT_TO_TORCH if row.major == major]
    return "; ".join([launch.LIMITS, *(f"unless forced torch's attention takes {row}" for row in left)])


def _merge(q: torch.Tensor) -> str:
    if not returns_lse(q):
        return "a bias in the queries' dtype"
    try:
        attend_with_lse(q, q, q, scale=1.0)
    except RuntimeError as error:
        return f"log-sum-exp, which fails here: {str(error).splitlines()[0]}"
    return "merging calls by their log-sum-exp"
