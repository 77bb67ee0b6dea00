"""The Triton forward kernel of segment attention, and what the backward kernels share with it.

A program computes one tile of one query segment (backward: or of keys) of one row and head. A device table
lists its sources. The log weight of a source is constant over a tile, so in base 2 it is folded into the
subtraction of the running maximum, and tiles of a source of weight zero are skipped. Head widths are split in
two parts, a power of two and a rest padded to at least 16: 40 is 32 + 16, 72 is 64 + 16, 160 is 128 + 32; or
the whole width is one padded part (D1 > D): 40 is 64. No atomics: every output is written once, by one
program, in a fixed order.

Names: i_ program, o_ offsets, p_ pointer, b_ block, s_ stride; a trailing 1 or 2 is the part of the head
width.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# arguments whose values must not trigger a recompilation
UNSPECIALISED = ["n_tiles", "n_queries", "heads", "batch", "s_wb", "s_wh"]


@triton.jit
def load_part(p, o_n, stop, s_n, o_d, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile (rows, part of D), zeros out of bounds. ROWS, COLUMNS: whether that axis needs a mask."""
    p += o_n[:, None] * s_n + o_d[None, :]
    if ROWS:
        if COLUMNS:
            return tl.load(p, mask=(o_n[:, None] < stop) & (o_d[None, :] < D), other=0.0)
        return tl.load(p, mask=o_n[:, None] < stop, other=0.0)
    if COLUMNS:
        return tl.load(p, mask=o_d[None, :] < D, other=0.0)
    return tl.load(p)


@triton.jit
def load_rows(p, o_n, stop, s_n, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ROWS: tl.constexpr):
    """Both parts of the head width; without a second part (D2 = 0) the first again, which is unused."""
    b_1 = load_part(p, o_n, stop, s_n, tl.arange(0, D1), D, ROWS, D1 > D)
    if D2 > 0:
        b_2 = load_part(p, o_n, stop, s_n, D1 + tl.arange(0, D2), D, ROWS, D1 + D2 > D)
    else:
        b_2 = b_1
    return b_1, b_2


@triton.jit
def store_rows(p, b_1, b_2, o_n, stop, s_n, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    o_1 = tl.arange(0, D1)
    b_m = o_n[:, None] < stop
    if D1 > D:
        b_m = b_m & (o_1[None, :] < D)
    tl.store(p + o_n[:, None] * s_n + o_1[None, :], b_1.to(p.dtype.element_ty), mask=b_m)
    if D2 > 0:
        o_2 = D1 + tl.arange(0, D2)
        tl.store(
            p + o_n[:, None] * s_n + o_2[None, :],
            b_2.to(p.dtype.element_ty),
            mask=(o_n[:, None] < stop) & (o_2[None, :] < D),
        )


@triton.jit
def zeros(ROWS: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    return tl.zeros([ROWS, D1], tl.float32), tl.zeros([ROWS, 16 if D2 == 0 else D2], tl.float32)


@triton.jit
def dot(a, b, c):
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def products(a_1, a_2, b_1, b_2, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D2: tl.constexpr):
    """a b^T over both parts of the head width."""
    b_s = dot(a_1, tl.trans(b_1), tl.zeros([ROWS, COLUMNS], tl.float32))
    if D2 > 0:
        b_s = dot(a_2, tl.trans(b_2), b_s)
    return b_s


@triton.jit
def accumulate(b_p, b_1, b_2, acc_1, acc_2, D2: tl.constexpr):
    """acc + p b, part by part."""
    acc_1 = dot(b_p.to(b_1.dtype), b_1, acc_1)
    if D2 > 0:
        acc_2 = dot(b_p.to(b_2.dtype), b_2, acc_2)
    return acc_1, acc_2


@triton.jit
def read_tile(tiles, i_t):
    """Segment, first query, number of queries up to the segment's end."""
    first, last = tl.load(tiles + i_t * 3 + 1).to(tl.int64), tl.load(tiles + i_t * 3 + 2).to(tl.int64)
    return tl.load(tiles + i_t * 3), first, (last - first).to(tl.int32)


@triton.jit
def read_source(sources, weight, j, i_b, batch):
    """Log2 weight, row, first and last-plus-one key; an empty range at weight zero. NaN propagates."""
    entry = sources + (j * batch + i_b) * 3
    w = tl.load(weight + j) * LOG2E
    start = tl.load(entry + 1)
    return w, tl.load(entry).to(tl.int64), start, tl.where(w == float("-inf"), start, tl.load(entry + 2))


@triton.jit(do_not_specialize=UNSPECIALISED)
def forward_kernel(
    q, k, v, o, lse, weight, tiles, sources,
    s_qb, s_qh, s_qn, s_kb, s_kh, s_kn, s_vb, s_vh, s_vn, s_ob, s_oh, s_on, s_wb, s_wh,
    n_tiles, n_queries, heads, batch, scale,
    T: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EVEN: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """tiles (n_tiles, 3): segment, first and last-plus-one query.

    sources (T, B, 3): row, first and last-plus-one key.
    """
    i_t, i_bh = tl.program_id(0) % n_tiles, tl.program_id(0) // n_tiles
    # rows of one head side by side: partners share keys in L2
    i_b, i_h = (i_bh % batch).to(tl.int64), (i_bh // batch).to(tl.int64)
    segment, first, rest = read_tile(tiles, i_t)
    weight += i_b * s_wb + i_h * s_wh + segment * T
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    b_q1, b_q2 = load_rows(q + i_b * s_qb + i_h * s_qh + first * s_qn, o_m, rest, s_qn, D, D1, D2, True)
    b_o1, b_o2 = zeros(BM, D1, D2)
    b_m, b_l = tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32)
    scale2, wide = scale * LOG2E, tl.full([], 1, tl.int64)
    for j in range(T):
        w, row, start, stop = read_source(sources, weight, j, i_b, batch)
        p_k, p_v = k + row * s_kb + i_h * s_kh, v + row * s_vb + i_h * s_vh
        for n in range(start, stop, BN):
            b_k1, b_k2 = load_rows(p_k + wide * n * s_kn, o_n, stop - n, s_kn, D, D1, D2, not EVEN)
            b_s = products(b_q1, b_q2, b_k1, b_k2, BM, BN, D2)
            if not EVEN:
                b_s = tl.where(o_n[None, :] < stop - n, b_s, float("-inf"))
            b_new = tl.maximum(b_m, tl.max(b_s, 1) * scale2 + w)
            b_p = tl.exp2(b_s * scale2 - (b_new - w)[:, None])
            b_a = tl.exp2(b_m - b_new)
            b_l, b_m = b_l * b_a + tl.sum(b_p, 1), b_new
            b_v1, b_v2 = load_rows(p_v + wide * n * s_vn, o_n, stop - n, s_vn, D, D1, D2, not EVEN)
            b_o1, b_o2 = accumulate(b_p, b_v1, b_v2, b_o1 * b_a[:, None], b_o2 * b_a[:, None], D2)
    b_r = 1.0 / tl.where(b_l == 0.0, 1.0, b_l)  # a query that sees no key: zeros
    store_rows(
        o + i_b * s_ob + i_h * s_oh + first * s_on,
        b_o1 * b_r[:, None],
        b_o2 * b_r[:, None],
        o_m,
        rest,
        s_on,
        D,
        D1,
        D2,
    )
    if LSE:
        tl.store(
            lse + (i_b * heads + i_h) * n_queries + first + o_m, (b_m + tl.log2(b_l)) * LN2, mask=o_m < rest
        )
