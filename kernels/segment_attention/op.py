"""The public ops and their registration with torch: opaque to torch.compile, and differentiable."""

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
from .prepared import Kept, Run, coupled_weights, find_kept, frozen_partner, is_plain, segment_weights
from .prepared_composition import prepare_composition
from .prepared_launch import prepare_launch
from .reference import segment_attention_reference
from .segments import (
    Segments,
    Source,
    check_scale,
    check_segments,
    check_tensors,
    check_values,
    full_weight,
    partner_rows,
)

Weight = Tensor | Sequence | float | None
NO_INNER = "an inner attention is given, which only the composition calls"


def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, log_weight: Weight = None, *,
    heads: int | None = None, scale: float | None = None, return_lse: bool = False,
    inner: Inner | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """One softmax over the keys of several sources, with log w added to the scores of each. Equation:
    reference.py.

    q (B, H, N, D) and k, v (R, H, M, D) of any strides; or, with `heads`, ComfyUI's (B, N, H * D). The output
    has q's shape. log_weight: (S, T), (B, S, T) or (B, H, S, T) for S query segments and T sources; None is w
    = 1; -inf masks a source. On the CPU its values are checked and masked sources skipped; on q's device they
    are not read back, and NaN propagates. return_lse: also the log-sum-exp (B, H, N). inner: a host's own
    attention, for inference. Raises ValueError or TypeError for invalid arguments, BackendUnavailableError if
    a forced backend does not support the call.
    """
    kept = None
    if inner is None and is_plain(q, k, v):
        known = segment_weights(log_weight, len(segments.queries), len(segments.sources), q.dtype)
        kept = find_kept(q, k, v, segments, known, (heads, scale, return_lse))
        found = kept.run(q, k, v) if kept is not None else None
        if found is not None:
            return found if return_lse else found[0]  # type: ignore[return-value]
    out, lse = _attend(q, k, v, segments, log_weight, heads, scale, return_lse, inner, kept)
    return (out, lse) if return_lse else out


def _attend(q, k, v, segments, log_weight, heads, scale, return_lse, inner, kept: Kept | None):
    """The long way, through all checks; what it worked out is kept for the next call of this layout."""
    if heads is not None:
        q, k, v = (_split_heads(tensor, heads) for tensor in (q, k, v))
    check_tensors(q, k, v)
    check_segments(q, k, segments)
    scale = check_scale(scale, q.shape[3])
    weight = full_weight(log_weight, q, segments)
    grads = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v, weight))
    if inner is not None:
        if grads:
            raise ValueError(
                "Expected tensors without requires_grad beside an inner attention, got some with it. "
                "Leave `inner` out in training, or call under torch.no_grad()."
            )
        check_values(weight)
        choose({"triton": NO_INNER, "composition": None, "reference": NO_INNER})
        out, lse = compose(q, k, v, segments, weight, scale=scale, need_lse=return_lse, inner=inner)
    elif type(q) is Tensor and not grads and not torch.compiler.is_compiling():
        # the dispatcher of a custom op is slow
        out, lse = _compute(q, k, v, weight, segments, scale, return_lse)
        if kept is not None:
            kept.keep(_prepare(q, k, v, segments, kept.weights, scale, return_lse, heads is not None))
    else:
        out, lse = _forward(q, k, v, weight, *_flatten(segments, q.shape[0]), scale, return_lse or grads)
    return out.transpose(1, 2).flatten(2) if heads is not None else out, lse


def _prepare(q, k, v, segments, weights, scale, need_lse, merged_heads) -> Run | None:
    """The call as it would be dispatched now, prepared; None for the reference."""
    name = choose(backend_reasons(q, k, v, segments, weights.logs))
    if name == "reference":
        return None
    prepare = prepare_composition if name == "composition" else prepare_launch
    return prepare(
        q, k, v, segments, weights, scale=scale, need_lse=need_lse, merged_heads=merged_heads
    )


def cross_domain_attention(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor | Sequence[float] | float, *,
    partner: str | Sequence[int] | Tensor = "pairs", heads: int | None = None, scale: float | None = None,
    inner: Inner | None = None,
) -> Tensor:  # fmt: skip
    """I-LDM's equation 4: each row attends to itself at 1 and to its partner row at `weight`, in one softmax.

    weight: a scalar, (B,) or (B, H), at least 0: 0 is plain self-attention, 1 attention over the concatenated
    keys of both rows. partner: "pairs" (0-1, 2-3), "halves" (b, b + B/2) or B row indices. The rest: as
    `segment_attention`.
    """
    kept = None
    if inner is None and (of := frozen_partner(partner)) is not None and is_plain(q, k, v):
        kept = find_kept(q, k, v, of, coupled_weights(weight, q.dtype), (heads, scale, False))
        found = kept.run(q, k, v) if kept is not None else None
        if found is not None:
            return found[0]
    if q.dim() != (3 if heads is not None else 4):
        form = "(b, n, h * d)" if heads is not None else "(b, h, n, d)"
        raise ValueError(
            f"Expected q of shape {form}, got {tuple(q.shape)}. Pass `heads` with (b, n, h * d) alone."
        )
    check_rows = q.shape[0]
    # in half precision the logarithm would round
    weight = torch.as_tensor(weight, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
    if weight.requires_grad:
        raise ValueError(
            "Expected a weight without requires_grad, as log w has no gradient at w = 0, got one with it. "
            "Learn log w with segment_attention instead."
        )
    if weight.dim() > 2 or (weight.dim() > 0 and weight.shape[0] not in (1, check_rows)):
        raise ValueError(
            f"Expected a weight of shape (), ({check_rows},) or ({check_rows}, heads), "
            f"got {tuple(weight.shape)}. "
            "Pass one weight, one per row, or one per row and head."
        )
    weight = weight.reshape(*weight.shape, *(1,) * (2 - weight.dim()))[:, :, None, None]
    log_weight = torch.cat([torch.zeros_like(weight), weight.log()], dim=3)
    length = q.shape[1] if heads is not None else q.shape[2]
    segments = Segments.coupled(length, partner_rows(partner, check_rows))
    if kept is not None:
        return _attend(q, k, v, segments, log_weight, heads, scale, False, inner, kept)[0]
    out = segment_attention(q, k, v, segments, log_weight, heads=heads, scale=scale, inner=inner)
    return out if isinstance(out, Tensor) else out[0]


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    if tensor.dim() != 3 or heads < 1 or tensor.shape[2] % heads:
        raise ValueError(
            f"Expected (b, n, h * d) with heads={heads}, got {tuple(tensor.shape)}. "
            "Pass `heads` only for tensors without a head axis."
        )
    return tensor.unflatten(2, (heads, tensor.shape[2] // heads)).transpose(1, 2)


def backend_reasons(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, log_weight: Tensor
) -> dict[str, str | None]:
    """Per backend why it does not support the call, or None.

    Unless one is forced the first with None runs.
    """
    reason = launch.call_reason(q, k, v)
    if reason is None and forced_backend() is None:
        groups = plan_of(q, k, v, segments, log_weight)
        if (
            all(len(group.pieces) < 2 and is_view(group) for group in groups)
            and log_weight.device.type == "cpu"
        ):
            reason = "every query segment is one ordinary attention call on views"
        else:
            reason = preferred(launch.capability_of(q), q.shape[3], q.shape[2], log_weight.device.type)
    return {"triton": reason, "composition": None, "reference": None}


def _flatten(segments: Segments, batch: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Segments as the flat integer lists of the operator's schema."""
    starts, lengths = (
        [source.start for source in segments.sources],
        [source.length for source in segments.sources],
    )
    return list(segments.queries), starts, lengths, [row for rows in segments.rows(batch) for row in rows]


def _unflatten(
    queries: Sequence[int], starts: Sequence[int], lengths: Sequence[int], rows: Sequence[int]
) -> Segments:
    batch = len(rows) // len(starts)
    by_source = [tuple(rows[index * batch : (index + 1) * batch]) for index in range(len(starts))]
    return Segments(
        tuple(queries),
        tuple(Source(start, length, of) for start, length, of in zip(starts, lengths, by_source)),
    )


SHAPE = "int[] queries, int[] starts, int[] lengths, int[] rows, float scale"


def _compute(q, k, v, log_weight, segments, scale, need_lse):
    """Run the backend that dispatch chooses."""
    check_values(log_weight)
    name = choose(backend_reasons(q, k, v, segments, log_weight))
    run = {"composition": compose, "reference": _reference, "triton": _triton}[name]
    out, lse = run(q, k, v, segments, log_weight, scale=scale, need_lse=need_lse)
    return out, lse.to(_lse_dtype(q)).contiguous() if lse is not None and need_lse else q.new_empty(
        0, dtype=_lse_dtype(q)
    )


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
        key,
        lambda: launch.self_check(q),
        lambda: launch.forward(q, k, v, segments, log_weight, scale=scale, need_lse=need_lse),
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
    return q.new_empty(b, n, h, d).transpose(1, 2), q.new_empty(
        (b, h, n) if need_lse else (0,), dtype=_lse_dtype(q)
    )


@torch.library.custom_op(
    "spatialweave::segment_attention_backward", mutates_args=(),
    schema="(Tensor grad, Tensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor log_weight, Tensor out, "
    f"Tensor lse, {SHAPE}, bool need_weight, str forced) -> (Tensor, Tensor, Tensor, Tensor)",
)  # fmt: skip
def _backward(
    grad, grad_lse, q, k, v, log_weight, out, lse, queries, starts, lengths, rows, scale, need_weight, forced
):
    """forced: the backend forced in the forward, or "": `use_backend` does not reach autograd's thread."""
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
    # strides as the kernel's and the fake's: a compiled graph relies on them
    return *(launch.rows_together(gradient) for gradient in gradients), of_weight


@_backward.register_fake
def _(
    grad, grad_lse, q, k, v, log_weight, out, lse, queries, starts, lengths, rows, scale, need_weight, forced
):
    gradients = (tensor.new_empty(tensor.transpose(1, 2).shape).transpose(1, 2) for tensor in (q, k, v))
    return *gradients, log_weight.new_empty(log_weight.shape)


def _keep(ctx, inputs, output) -> None:
    *tensors, queries, starts, lengths, rows, scale, need_lse = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.shape, ctx.need_lse, ctx.forced = (
        (queries, starts, lengths, rows, scale),
        need_lse,
        forced_backend() or "",
    )


def _differentiate(ctx, grad, grad_lse):
    *inputs, out, lse = ctx.saved_tensors
    if not ctx.need_lse:
        raise RuntimeError(
            "Expected the log-sum-exp of the forward, got need_lse=False. "
            "To train call segment_attention, not the operator."
        )
    gradients = _backward(grad, grad_lse, *inputs, out, lse, *ctx.shape, ctx.needs_input_grad[3], ctx.forced)
    return *gradients, *(None,) * 6


_forward.register_autograd(_differentiate, setup_context=_keep)
