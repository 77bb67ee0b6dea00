"""The op's cases on a device: every backend, forward and backward, against the float64 reference."""

from __future__ import annotations

import secrets

import torch
from torch import Tensor

from ..dispatch import BackendUnavailableError, use_backend
from ..segment_attention import segment_attention
from ..segment_attention.cases import CASES, EXTREME, Case
from ..segment_attention.reference import segment_attention_reference
from ..segment_attention.segments import full_weight

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the norm
SCALE = 0.2


def verify(device: torch.device, dtype: torch.dtype, cases: tuple[Case, ...] = CASES + EXTREME) -> int:
    """Compare with a fresh random seed.

    Returns the number of comparisons; raises FloatingPointError at the first failure.
    """
    seed, count = secrets.randbelow(1 << 31), 0
    for case in cases:
        for backend in ("triton", "composition"):
            try:
                with use_backend(backend):
                    count += verify_case(
                        case, device, dtype, f"case {case.name}, {backend}, seed {seed}", seed
                    )
            except BackendUnavailableError:
                continue  # outside its limits, or it failed its self-check, which is logged
    return count


def verify_case(case: Case, device: torch.device, dtype: torch.dtype, name: str, seed: int) -> int:
    """Compare the output, and the gradients unless logits are large: then they cancel."""
    given = case.tensors(torch.Generator().manual_seed(seed), dtype, device)
    weight = full_weight(case.log_weight(), given[0], case.segments)
    train = case not in EXTREME
    leaves = [tensor.detach().requires_grad_(train) for tensor in (*given, weight)]
    exact = [tensor.to("cpu", torch.float64, copy=True).requires_grad_(train) for tensor in (*given, weight)]
    got = segment_attention(*leaves[:3], case.segments, leaves[3], scale=SCALE)
    expected, _ = segment_attention_reference(*exact[:3], case.segments, exact[3], scale=SCALE)
    check(name, got.detach().cpu(), expected.detach(), limit=LIMITS[dtype] * (1 if train else 4))
    if not train:
        return 1
    grad = torch.randn(
        expected.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    ).to(dtype)
    ours = torch.autograd.grad(got, leaves, grad.to(device))
    theirs = torch.autograd.grad(expected, exact, grad.double())
    # of the sums that are d log w: these cancel
    terms = float((expected.detach() * grad.double()).sum(-1).norm().clamp_min(1.0))
    for of, one, other, least in zip("qkvw", ours, theirs, (1.0, 1.0, 1.0, terms)):
        check(f"{name}, gradient of {of}", one.cpu(), other, limit=3 * LIMITS[dtype], least=least)
    return 5


def check(
    name: str, got: Tensor, expected: Tensor, *, limit: float | None = None, least: float = 0.0
) -> None:
    """Frobenius norm of the error relative to the expected one's or to `least`, the larger; NaN fails."""
    error = float((got.double() - expected).norm() / expected.norm().clamp_min(least))
    limit = LIMITS[got.dtype] if limit is None else limit
    if not error <= limit:
        raise FloatingPointError(f"{name} is off by {error:.3g}, {limit:g} is allowed; no time is reported.")
