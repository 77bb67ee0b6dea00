"""The backward kernels: dQ and d log w by tiles of queries, then dK and dV by tiles of keys.

Formulas: backward.py; names: kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel import (
    LN2,
    LOG2E,
    UNSPECIALISED,
    accumulate,
    load_rows,
    products,
    read_source,
    read_tile,
    store_rows,
    zeros,
)


@triton.jit
def probabilities(b_s, b_lse, scale2, w):
    """exp(scores - lse) in base 2; b_lse broadcasts over the scores and is +inf for masked queries."""
    return tl.exp2(b_s * scale2 - (b_lse - w))


@triton.jit
def load_lse(p, o_m, rest):
    """In base 2; +inf out of bounds and for queries that see no key, so that their probabilities are 0."""
    b_lse = tl.load(p + o_m, mask=o_m < rest, other=float("inf")) / LN2
    return tl.where(b_lse == float("-inf"), float("inf"), b_lse)


@triton.jit(do_not_specialize=UNSPECIALISED)
def query_gradient_kernel(
    q, k, v, o, do, dq, lse, dlse, delta, dw, weight, tiles, sources,
    s_qb, s_qh, s_qn, s_kb, s_kh, s_kn, s_vb, s_vh, s_vn, s_ob, s_oh, s_on, s_db, s_dh, s_dn, s_wb, s_wh,
    n_tiles, n_queries, heads, batch, scale,
    T: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EVEN: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """Also writes delta (B, H, N) for the other kernel, and the tile's partial d log w (n_tiles, B, H, T).

    Strides: s_o for o and dq, s_d for do.
    """
    i_t, i_bh = tl.program_id(0) % n_tiles, tl.program_id(0) // n_tiles
    i_b, i_h = (i_bh % batch).to(tl.int64), (i_bh // batch).to(tl.int64)
    segment, first, rest = read_tile(tiles, i_t)
    weight += i_b * s_wb + i_h * s_wh + segment * T
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    at = (i_b * heads + i_h) * n_queries + first
    b_d1, b_d2 = load_rows(do + i_b * s_db + i_h * s_dh + first * s_dn, o_m, rest, s_dn, D, D1, D2, True)
    b_o1, b_o2 = load_rows(o + i_b * s_ob + i_h * s_oh + first * s_on, o_m, rest, s_on, D, D1, D2, True)
    b_delta = tl.sum(b_d1.to(tl.float32) * b_o1.to(tl.float32), 1) - tl.load(
        dlse + at + o_m, mask=o_m < rest, other=0.0
    )
    if D2 > 0:
        b_delta += tl.sum(b_d2.to(tl.float32) * b_o2.to(tl.float32), 1)
    tl.store(delta + at + o_m, b_delta, mask=o_m < rest)
    b_q1, b_q2 = load_rows(q + i_b * s_qb + i_h * s_qh + first * s_qn, o_m, rest, s_qn, D, D1, D2, True)
    b_lse = load_lse(lse + at, o_m, rest)
    b_dq1, b_dq2 = zeros(BM, D1, D2)
    scale2, wide = scale * LOG2E, tl.full([], 1, tl.int64)
    for j in range(T):
        w, row, start, stop = read_source(sources, weight, j, i_b, batch)
        p_k, p_v = k + row * s_kb + i_h * s_kh, v + row * s_vb + i_h * s_vh
        b_dw = tl.zeros([BM], tl.float32)
        for n in range(start, stop, BN):
            b_k1, b_k2 = load_rows(p_k + wide * n * s_kn, o_n, stop - n, s_kn, D, D1, D2, not EVEN)
            b_v1, b_v2 = load_rows(p_v + wide * n * s_vn, o_n, stop - n, s_vn, D, D1, D2, not EVEN)
            b_p = probabilities(products(b_q1, b_q2, b_k1, b_k2, BM, BN, D2), b_lse[:, None], scale2, w)
            b_ds = b_p * (products(b_d1, b_d2, b_v1, b_v2, BM, BN, D2) - b_delta[:, None])
            if not EVEN:
                b_ds = tl.where(o_n[None, :] < stop - n, b_ds, 0.0)
            if DW:
                b_dw += tl.sum(b_ds, 1)
            b_dq1, b_dq2 = accumulate(b_ds, b_k1, b_k2, b_dq1, b_dq2, D2)
        if DW:
            tl.store(dw + ((i_t.to(tl.int64) * batch + i_b) * heads + i_h) * T + j, tl.sum(b_dw, 0))
    store_rows(
        dq + i_b * s_ob + i_h * s_oh + first * s_on, b_dq1 * scale, b_dq2 * scale, o_m, rest, s_on, D, D1, D2
    )


@triton.jit
def match(
    sources,
    weight,
    segments,
    index,
    i_r,
    i_h,
    first,
    last,
    s_wb,
    s_wh,
    batch,
    T: tl.constexpr,
    S: tl.constexpr,
):
    """The index-th (source, query row, segment): log2 weight, row, key range, query range.

    The query range is empty if it does not read keys `first` to `last` of row i_r.
    """
    j, b, segment = index // (batch * S), index // S % batch, index % S
    w, row, start, stop = read_source(sources, weight + b * s_wb + i_h * s_wh + segment * T, j, b, batch)
    head, tail = tl.load(segments + segment * 2), tl.load(segments + segment * 2 + 1)
    reads = (row == i_r) & (start < stop) & (start < last) & (stop > first)
    return w, b.to(tl.int64), start, stop, head, tl.where(reads, tail, head)


@triton.jit(do_not_specialize=[*UNSPECIALISED, "key_rows", "n_keys"])
def key_gradient_kernel(
    q, k, v, do, dk, dv, lse, delta, weight, segments, sources,
    s_qb, s_qh, s_qn, s_kb, s_kh, s_kn, s_vb, s_vh, s_vn, s_ob, s_oh, s_on, s_db, s_dh, s_dn, s_wb, s_wh,
    n_tiles, n_queries, heads, batch, key_rows, n_keys, scale,
    T: tl.constexpr, S: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A program computes BN keys and loops over the queries that read them.

    segments (S, 2): first and last-plus-one query. Strides: s_o for dk and dv, s_d for do. EVEN: every source
    starts and ends at a multiple of BN, and the length of every query segment is a multiple of BM.
    """
    i_t, i_rh = tl.program_id(0) % n_tiles, tl.program_id(0) // n_tiles
    i_r, i_h = (i_rh % key_rows).to(tl.int64), (i_rh // key_rows).to(tl.int64)
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    first, wide = i_t * BN, tl.full([], 1, tl.int64)
    rest = n_keys - first
    b_k1, b_k2 = load_rows(
        k + i_r * s_kb + i_h * s_kh + wide * first * s_kn, o_n, rest, s_kn, D, D1, D2, True
    )
    b_v1, b_v2 = load_rows(
        v + i_r * s_vb + i_h * s_vh + wide * first * s_vn, o_n, rest, s_vn, D, D1, D2, True
    )
    b_dk1, b_dk2 = zeros(BN, D1, D2)
    b_dv1, b_dv2 = zeros(BN, D1, D2)
    scale2 = scale * LOG2E
    for index in range(T * S * batch):
        w, b, start, stop, head, tail = match(
            sources, weight, segments, index, i_r, i_h, first, first + BN, s_wb, s_wh, batch, T, S
        )
        p_q, p_d, at = q + b * s_qb + i_h * s_qh, do + b * s_db + i_h * s_dh, (b * heads + i_h) * n_queries
        for m in range(head, tail, BM):
            b_q1, b_q2 = load_rows(p_q + wide * m * s_qn, o_m, tail - m, s_qn, D, D1, D2, not EVEN)
            b_d1, b_d2 = load_rows(p_d + wide * m * s_dn, o_m, tail - m, s_dn, D, D1, D2, not EVEN)
            b_lse = load_lse(lse + at + m, o_m, tail - m)
            b_p = probabilities(products(b_k1, b_k2, b_q1, b_q2, BN, BM, D2), b_lse[None, :], scale2, w)
            if not EVEN:
                b_p = tl.where((first + o_n >= start)[:, None] & (first + o_n < stop)[:, None], b_p, 0.0)
            b_delta = tl.load(delta + at + m + o_m, mask=o_m < tail - m, other=0.0)
            b_ds = b_p * (products(b_v1, b_v2, b_d1, b_d2, BN, BM, D2) - b_delta[None, :])
            b_dv1, b_dv2 = accumulate(b_p, b_d1, b_d2, b_dv1, b_dv2, D2)
            b_dk1, b_dk2 = accumulate(b_ds, b_q1, b_q2, b_dk1, b_dk2, D2)
    to = i_r * s_ob + i_h * s_oh + wide * first * s_on
    store_rows(dk + to, b_dk1 * scale, b_dk2 * scale, o_n, rest, s_on, D, D1, D2)
    store_rows(dv + to, b_dv1, b_dv2, o_n, rest, s_on, D, D1, D2)
