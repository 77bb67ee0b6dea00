"""The public ops, and their registration with torch: opaque to torch.compile, differentiable, one answer on every backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..dispatch import choose, forced_backend, refused
from . import launch
from .backward import segment_attention_backward
from .composition import Inner, compose, plan_of
from .plan import is_view
from .preference import preferred
from .reference import segment_attention_reference
from .segments import Segments, Source, check_scale, check_segments, check_tensors, check_values, full_weight, partner_rows

Weight = Tensor | Sequence | float | None
NO_INNER = "an inner attention is given, which only the composition calls"


def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, log_weight: Weight = None, *, heads: int | None = None, scale: float | None = None,
    return_lse: bool = False, inner: Inner | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Queries attend, in one softmax, to the keys of several sources, each with a weight that enters as log w. Equation: reference.py.

    q (B, H, N, D) and k, v (R, H, M, D) of any strides; or, with `heads`, ComfyUI's (B, N, H * D). The output has q's form.
    log_weight: (S, T), (B, S, T) or (B, H, S, T) for S query segments and T sources; None is w = 1; -inf leaves a source out. On the
    CPU its values are known before launch (checked, zeros spared); on q's device nobody waits for them, and NaN in is NaN out.
    return_lse: also the log-sum-exp, (B, H, N). inner: a host's own attention, for inference.
    Raises ValueError or TypeError for what it does not take, BackendUnavailableError for a forced backend that cannot.
    """
    if heads is not None:
        q, k, v = (_split_heads(tensor, heads) for tensor in (q, k, v))
    check_tensors(q, k, v)
    check_segments(q, k, segments)
    scale = check_scale(scale, q.shape[3])
    weight = full_weight(log_weight, q, segments)
    grads = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v, weight))
    if inner is not None:
        if grads:
            raise ValueError("The inner attention was given with tensors that require gradients; leave it out in training, or use no_grad.")
        check_values(weight)
        choose({"triton": NO_INNER, "composition": None, "reference": NO_INNER})
        out, lse = compose(q, k, v, segments, weight, scale=scale, need_lse=return_lse, inner=inner)
    elif type(q) is Tensor and not grads and not torch.compiler.is_compiling():
        out, lse = _compute(q, k, v, weight, segments, scale, return_lse)  # torch's own door is slow
    else:
        out, lse = _forward(q, k, v, weight, *_flatten(segments, q.shape[0]), scale, return_lse or grads)
    out = out.transpose(1, 2).flatten(2) if heads is not None else out
    return (out, lse) if return_lse else out


def cross_domain_attention(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor | Sequence[float] | float, *, partner: str | Sequence[int] | Tensor = "pairs",
    heads: int | None = None, scale: float | None = None, inner: Inner | None = None,
) -> Tensor:  # fmt: skip
    """I-LDM's equation 4: each row attends to itself at 1 and to its partner row at `weight`, in one softmax.

    weight: one number, (B,) or (B, H) numbers, at least 0; partner: "pairs" (0-1, 2-3), "halves" (b, b + B/2) or a row for each row.
    0 is plain attention to the own row, 1 attention to both rows' tokens alike. q, k, v, heads, scale, inner: as `segment_attention`.
    """
    if q.dim() != (3 if heads is not None else 4):
        raise ValueError(
            f"Cross-domain attention got q {tuple(q.shape)}; give (rows, heads, tokens, width), or (rows, tokens, all) with heads."
        )
    check_rows = q.shape[0]
    weight = torch.as_tensor(weight, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)  # a logarithm in half would round
    if weight.requires_grad:
        raise ValueError("The weight requires gradients, which log w lacks at 0; learn log w with segment_attention instead.")
    if weight.dim() > 2 or (weight.dim() > 0 and weight.shape[0] not in (1, check_rows)):
        raise ValueError(f"The weight has shape {tuple(weight.shape)}; give one number, ({check_rows},) or ({check_rows}, heads) numbers.")
    weight = weight.reshape(*weight.shape, *(1,) * (2 - weight.dim()))[:, :, None, None]
    log_weight = torch.cat([torch.zeros_like(weight), weight.log()], dim=3)
    length = q.shape[1] if heads is not None else q.shape[2]
    segments = Segments.coupled(length, partner_rows(partner, check_rows))
    out = segment_attention(q, k, v, segments, log_weight, heads=heads, scale=scale, inner=inner)
    return out if isinstance(out, Tensor) else out[0]


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    if tensor.dim() != 3 or heads < 1 or tensor.shape[2] % heads:
        raise ValueError(f"With heads={heads} a tensor has shape {tuple(tensor.shape)}; give (rows, tokens, heads * width).")
    return tensor.unflatten(2, (heads, tensor.shape[2] // heads)).transpose(1, 2)


def backend_reasons(q: Tensor, k: Tensor, v: Tensor, segments: Segments, log_weight: Tensor) -> dict[str, str | None]:
    """For every backend why it does not take the call, or None. Without force the first that can is taken."""
    reason = launch.call_reason(q, k, v)
    if reason is None and forced_backend() is None:
        groups = plan_of(q, k, v, segments, log_weight)
        if all(len(group.pieces) < 2 and is_view(group) for group in groups) and log_weight.device.type == "cpu":
            reason = "every query segment is one ordinary attention call on views"
        else:
            reason = preferred(launch.capability_of(q), q.shape[3], q.shape[2], log_weight.device.type)
    return {"triton": reason, "composition": None, "reference": None}


def _flatten(segments: Segments, batch: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Segments as lists of integers, as an operator's schema takes them."""
    starts, lengths = [source.start for source in segments.sources], [source.length for source in segments.sources]
    return list(segments.queries), starts, lengths, [row for rows in segments.rows(batch) for row in rows]


def _unflatten(queries: Sequence[int], starts: Sequence[int], lengths: Sequence[int], rows: Sequence[int]) -> Segments:
    batch = len(rows) // len(starts)
    by_source = [tuple(rows[index * batch : (index + 1) * batch]) for index in range(len(starts))]
    return Segments(tuple(queries), tuple(Source(start, length, of) for start, length, of in zip(starts, lengths, by_source)))


SHAPE = "int[] queries, int[] starts, int[] lengths, int[] rows, float scale"


def _compute(q, k, v, log_weight, segments, scale, need_lse):
    """On the backend that dispatch chooses."""
    check_values(log_weight)
    name = choose(backend_reasons(q, k, v, segments, log_weight))
    run = {"composition": compose, "reference": _reference, "triton": _triton}[name]
    out, lse = run(q, k, v, segments, log_weight, scale=scale, need_lse=need_lse)
    return out, lse.to(_lse_dtype(q)).contiguous() if lse is not None and need_lse else q.new_empty(0, dtype=_lse_dtype(q))


@torch.library.custom_op(
    "spatialweave::segment_attention", mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor log_weight, {SHAPE}, bool need_lse) -> (Tensor, Tensor)",
)  # fmt: skip
def _forward(q, k, v, log_weight, queries, starts, lengths, rows, scale, need_lse):
    return _compute(q, k, v, log_weight, _unflatten(queries, starts, lengths, rows), scale, need_lse)


def _reference(q, k, v, segments, log_weight, *, scale, need_lse):
    out, lse = segment_attention_reference(q, k, v, segments, log_weight, scale=scale)
    return out.transpose(1, 2).contiguous().transpose(1, 2), lse


def _triton(q, k, v, segments, log_weight, *, scale, need_lse):
    key = launch.variant(q)
    ran, result = launch.TRUST.launch(
        key, lambda: launch.self_check(q), lambda: launch.forward(q, k, v, segments, log_weight, scale=scale, need_lse=need_lse)
    )
    if ran:
        return result
    if forced_backend() == "triton":
        raise refused("triton", launch.TRUST.refusal(key))
    return compose(q, k, v, segments, log_weight, scale=scale, need_lse=need_lse)


def _lse_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


@_forward.register_fake
def _(q, k, v, log_weight, queries, starts, lengths, rows, scale, need_lse):
    b, h, n, d = q.shape
    return q.new_empty(b, n, h, d).transpose(1, 2), q.new_empty((b, h, n) if need_lse else (0,), dtype=_lse_dtype(q))


@torch.library.custom_op(
    "spatialweave::segment_attention_backward", mutates_args=(),
    schema=f"(Tensor grad, Tensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor log_weight, Tensor out, Tensor lse, {SHAPE}"
    ", bool need_weight, str forced) -> (Tensor, Tensor, Tensor, Tensor)",
)  # fmt: skip
def _backward(grad, grad_lse, q, k, v, log_weight, out, lse, queries, starts, lengths, rows, scale, need_weight, forced):
    """forced: the forward's backend, or "": autograd calls from a thread of its own, where a context of ours is not seen."""
    given = ((grad, grad_lse), (q, k, v, log_weight), (out, lse), _unflatten(queries, starts, lengths, rows))
    name = forced or forced_backend()
    if name in (None, "triton"):
        reason = launch.call_reason(q, k, v, "backward")
        if reason is None:
            key = launch.variant(q, "backward")
            run = partial(launch.backward, *given, scale=scale, need_weight=need_weight)
            ran, result = launch.TRUST.launch(key, lambda: launch.backward_self_check(q), run)
            if ran:
                return result
            reason = launch.TRUST.refusal(key)
        if name == "triton":
            raise refused(name, f"for the gradients {reason}")
    *gradients, of_weight = segment_attention_backward(*given, scale=scale)
    return *(launch.rows_together(gradient) for gradient in gradients), of_weight  # laid out as the kernel's: a compiled graph counts on it


@_backward.register_fake
def _(grad, grad_lse, q, k, v, log_weight, out, lse, queries, starts, lengths, rows, scale, need_weight, forced):
    gradients = (tensor.new_empty(tensor.transpose(1, 2).shape).transpose(1, 2) for tensor in (q, k, v))
    return *gradients, log_weight.new_empty(log_weight.shape)


def _keep(ctx, inputs, output) -> None:
    *tensors, queries, starts, lengths, rows, scale, need_lse = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.shape, ctx.need_lse, ctx.forced = (queries, starts, lengths, rows, scale), need_lse, forced_backend() or ""


def _differentiate(ctx, grad, grad_lse):
    *inputs, out, lse = ctx.saved_tensors
    if not ctx.need_lse:
        raise RuntimeError("The gradient of segment attention needs its log-sum-exp; call segment_attention, not the operator, to train.")
    return *_backward(grad, grad_lse, *inputs, out, lse, *ctx.shape, ctx.needs_input_grad[3], ctx.forced), *(None,) * 6


_forward.register_autograd(_differentiate, setup_context=_keep)
