"""Torch's attention with its log-sum-exp, by which calls are merged: the backends that return one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from ..dispatch import Trust

CUDNN = Trust()  # self-checked before use: torch itself never reads its log-sum-exp


def returns_lse(q: Tensor) -> bool:
    """Whether torch has an attention with log-sum-exp for this tensor."""
    if q.device.type != "cuda":
        return q.device.type == "cpu"
    if q.dtype == torch.bfloat16 and torch.cuda.get_device_capability(q.device) < (8, 0):
        return False
    return q.dtype != torch.float64 and q.shape[3] % 8 == 0


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Output and natural log-sum-exp (b, h, n); by cuDNN, the fastest, where torch would choose it."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)
    if torch._fused_sdp_choice(q, k, v, scale=scale) == SDPBackend.CUDNN_ATTENTION.value:
        key = ("cuDNN's attention", str(q.device), str(q.dtype).removeprefix("torch."), q.shape[3])
        ran, result = CUDNN.launch(key, lambda: check_cudnn(q), lambda: attend_by_cudnn(q, k, v, scale=scale))
        if ran:
            return result
    flash = (
        q.dtype != torch.float32 and q.shape[3] <= 256 and torch.backends.cuda.is_flash_attention_available()
    )
    if flash and torch.cuda.get_device_capability(q.device) >= (8, 0):
        return attend_by_flash(q, k, v, scale=scale)
    return attend_by_efficient(q, k, v, scale=scale)


def attend_by_cudnn(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, False, False, scale=scale
    )[:2]
    return out, lse.reshape(q.shape[:3])  # (b, h, n, 1) in some versions


def attend_by_flash(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=scale)[:2]


def attend_by_efficient(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, False, scale=scale
    )[:2]
    return out, lse[..., : q.shape[2]]  # padded to a multiple of 32


def check_cudnn(q: Tensor) -> str | None:
    """cuDNN against float32 attention on 64 tokens of q's dtype and width: what is wrong, or None."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 64, 2, q.shape[3], generator=generator).to(q.device, q.dtype).transpose(1, 2)
        for _ in range(3)
    )
    out, lse = attend_by_cudnn(q, k, v, scale=0.2)
    scores = q.float() @ k.float().transpose(2, 3) * 0.2
    pairs = ((out.float(), scores.softmax(3) @ v.float()), (lse, scores.logsumexp(3)))
    errors = [float((got - expected).norm() / expected.norm()) for got, expected in pairs]
    return (
        None
        if all(error < 0.02 for error in errors)
        else f"output and log-sum-exp are off by {errors[0]:.3g} and {errors[1]:.3g}"
    )
