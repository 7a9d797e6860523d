"""Triton: a linear memory over chunks, backward.

With a bar for the derivative by what stands under it, and r = cβ₋ + g, from the last chunk to the first::

    P̄ = −(QKᵀ ⊙ D)ᵀ Ȳ − (D_C ⊙ K) W̄_Cᵀ          W̄₀ᵀ = β_C W̄_Cᵀ + (β ⊙ Q)ᵀ Ȳ + (A diag(r) K)ᵀ P̄

``told`` is the first term, of all chunks at once, and ``retreat`` the rest; then ``derive``, again of all chunks at once, with R̄ = Aᵀ P̄ the
derivative of the right-hand side and −R̄ Pᵀ, below the diagonal, that of the system::

    Ū = −R̄          r̄ = rowsum(K ⊙ R̄ W₀)          Q̄ = β ⊙ (Ȳ W₀) − (ȲPᵀ ⊙ D) K
    K̄ = −(ȲPᵀ ⊙ D)ᵀ Q − (X + Xᵀ) K + r ⊙ (R̄ W₀) − D_C ⊙ (P W̄_C),          X = R̄Pᵀ ⊙ diag(c) D₋

and for log α the sum over the tables, each entry of which is the exponential of a difference of cumulated log α. Run under the interpreter
and compiled for sm_90; never yet run on a GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from nestling.ops.kernels.programs.delta_forward import (
    CURRENT,
    START,
    dot,
    put,
    seen,
    span,
    system,
    table,
    tile,
    weights,
)


class Back(NamedTuple):
    """Pointers to derivatives: of y, P (N, n, C, V), and Wᵀ at the end of each chunk (N, n, K, V)."""

    y: Any
    pairs: Any
    states: Any


class Made(NamedTuple):
    """Pointers to what the forward pass made: A, A diag(r) K, P, and Wᵀ at the start of each chunk."""

    inverse: Any
    keys: Any
    pairs: Any
    states: Any


class Kept(NamedTuple):
    """Pointers to what was made, and to derivatives."""

    made: Any
    back: Any


class Ends(NamedTuple):
    """Pointers to derivatives of the last weights, the anchor and the first weights, (N, V, K)."""

    end: Any
    anchor: Any
    start: Any


@triton.jit
def told(given, back, sizes, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr):
    """−(QKᵀ ⊙ D)ᵀ Ȳ into P̄. Programs: (chunks, V / BV, memories)."""
    n, v, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, live = span(n, sizes, C)
    columns, outs, slots = tl.arange(0, BK), v * BV + tl.arange(0, BV), tl.arange(0, C)
    at, place = b * sizes.tokens, b * sizes.chunks + n
    heard = tl.zeros((C, BV), tl.float32)
    if READ != START:
        q = tile(given.q + at * sizes.keys, rows, live, columns, sizes.keys)
        k = tile(given.k + at * sizes.keys, rows, live, columns, sizes.keys)
        log = tl.load(given.log + at + rows, mask=live, other=0.0)
        _, reads = seen(q, k, log, C, READ)
        y = tile(back.y + at * sizes.outputs, rows, live, outs, sizes.outputs)
        heard = -dot(tl.trans(reads), y, q)
    put(back.pairs + place * C * sizes.outputs, slots, slots < C, outs, sizes.outputs, heard)


@triton.jit
def retreat(given, kept, ends, sizes, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr):
    """Some columns of one memory from the last chunk to the first: P̄, and W̄ᵀ at the end of each. Programs: (V / BV, memories)."""
    back = kept.back
    v, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns, outs, slots = tl.arange(0, BK), v * BV + tl.arange(0, BV), tl.arange(0, C)
    real, full = columns < sizes.keys, tl.full((C,), True, tl.int1)
    at = b * sizes.tokens
    where, inside = weights(ends.end, b, columns, outs, sizes)
    W = tl.load(where, mask=inside, other=0.0)
    for step in range(sizes.chunks):
        n = sizes.chunks - 1 - step
        place = b * sizes.chunks + n
        rows, live = span(n, sizes, C)
        put(back.states + place * sizes.keys * sizes.outputs, columns, real, outs, sizes.outputs, W)
        q = tile(given.q + at * sizes.keys, rows, live, columns, sizes.keys)
        k = tile(given.k + at * sizes.keys, rows, live, columns, sizes.keys)
        y = tile(back.y + at * sizes.outputs, rows, live, outs, sizes.outputs)
        log = tl.load(given.log + at + rows, mask=live, other=0.0)
        total, last = tl.cumsum(log, 0), tl.sum(log, 0)
        # P̄ = −(QKᵀ ⊙ D)ᵀ Ȳ − (D_C ⊙ K) W̄_Cᵀ
        mine = back.pairs + place * C * sizes.outputs
        pairs = tile(mine, slots, full, outs, sizes.outputs).to(tl.float32)
        pairs -= dot(tl.exp(last - total)[:, None] * k.to(tl.float32), W, k)
        put(mine, slots, full, outs, sizes.outputs, pairs)
        # W̄₀ᵀ = β_C W̄_Cᵀ + (β ⊙ Q)ᵀ Ȳ + (A diag(r) K)ᵀ P̄
        if READ != START:
            read = total if READ == CURRENT else total - log
            q = (tl.exp(read)[:, None] * q.to(tl.float32)).to(k.dtype)
        solved = tile(kept.made.keys + place * C * sizes.keys, slots, full, columns, sizes.keys)
        W = tl.exp(last) * W + dot(tl.trans(q), y, k) + dot(tl.trans(solved), pairs, k)
        if step == 0:
            where, _ = weights(ends.anchor, b, columns, outs, sizes)
            W += tl.load(where, mask=inside, other=0.0)
    where, _ = weights(ends.start, b, columns, outs, sizes)
    tl.store(where, W, mask=inside)


@triton.jit
def derive(given, kept, by, sizes, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr):
    """The derivatives by the tokens of one chunk of one memory. Programs: (chunks, memories)."""
    made, back = kept.made, kept.back
    n, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows, live = span(n, sizes, C)
    columns, i = tl.arange(0, BK), tl.arange(0, C)
    real, full = columns < sizes.keys, tl.full((C,), True, tl.int1)
    at, place = b * sizes.tokens, b * sizes.chunks + n
    q = tile(given.q + at * sizes.keys, rows, live, columns, sizes.keys)
    k = tile(given.k + at * sizes.keys, rows, live, columns, sizes.keys)
    A = tile(made.inverse + place * C * C, i, full, i, C)
    YP, RP = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    YW, RW, PW = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    through = 0.0
    for v in range(0, sizes.outputs, BV):
        outs = v + tl.arange(0, BV)
        y = tile(back.y + at * sizes.outputs, rows, live, outs, sizes.outputs)
        P = tile(made.pairs + place * C * sizes.outputs, i, full, outs, sizes.outputs)
        R = dot(tl.trans(A), tile(back.pairs + place * C * sizes.outputs, i, full, outs, sizes.outputs), k)
        put(by.u + at * sizes.outputs, rows, live, outs, sizes.outputs, -R)
        W = tile(made.states + place * sizes.keys * sizes.outputs, columns, real, outs, sizes.outputs)
        after = tile(back.states + place * sizes.keys * sizes.outputs, columns, real, outs, sizes.outputs)
        YP, RP = YP + dot(y, tl.trans(P), k), RP + dot(R, tl.trans(P), k)
        YW, RW = YW + dot(y, tl.trans(W), k), RW + dot(R, tl.trans(W), k)
        PW += dot(P, tl.trans(after), k)
        through += tl.sum(W.to(tl.float32) * after.to(tl.float32))
    finish(given, by, (YP, RP, YW, RW, PW, through), (q, k, rows, live, at), sizes, C, BK, READ)


@triton.jit
def finish(given, by, sums, held, sizes, C: tl.constexpr, BK: tl.constexpr, READ: tl.constexpr):
    """What ``derive`` has summed over the columns, taken apart to q, k and the gates."""
    YP, RP, YW, RW, PW, through = sums
    q, k, rows, live, at = held
    i, columns = tl.arange(0, C), tl.arange(0, BK)
    now = tl.load(given.now + at + rows, mask=live, other=0.0)
    frozen = tl.load(given.frozen + at + rows, mask=live, other=0.0)
    log = tl.load(given.log + at + rows, mask=live, other=0.0)
    key, query = k.to(tl.float32), q.to(tl.float32)
    overlaps, before, total, earlier = system(k, now, log, C)
    last = tl.sum(log, 0)
    # the right-hand side: r = cβ₋ + g
    rate = tl.sum(key * RW, 1)
    seen_then = tl.exp(earlier)
    by_now, by_earlier = rate * seen_then, rate * now * seen_then
    by_key = (now * seen_then + frozen)[:, None] * RW
    # the system: diag(c) (KKᵀ ⊙ D₋)
    below = -RP * before
    by_now += tl.sum(below * overlaps, 1)
    below = below * now[:, None]
    by_key += dot(below, k, k) + dot(tl.trans(below), k, k)
    entries = below * overlaps
    by_earlier += tl.sum(entries, 1)
    by_total = -tl.sum(entries, 0)
    # W_C = β_C W₀ − Pᵀ (D_C ⊙ K)
    carried = tl.exp(last - total)
    by_key -= carried[:, None] * PW
    kept = -carried * tl.sum(key * PW, 1)
    by_total -= kept
    by_last = tl.sum(kept, 0) + tl.exp(last) * through
    # Y = β ⊙ (Q W₀ᵀ) − (QKᵀ ⊙ D) P
    if READ == START:
        by_query = YW
    else:
        if READ == CURRENT:
            until, D = total, table(total, total, i[:, None] >= i[None, :])
        else:
            until, D = earlier, before
        start = tl.exp(until)
        reads = -YP * D
        by_query = start[:, None] * YW + dot(reads, k, k)
        by_key += dot(tl.trans(reads), q, k)
        entries = reads * dot(q, tl.trans(k), k)
        by_total -= tl.sum(entries, 0)
        by_until = start * tl.sum(query * YW, 1) + tl.sum(entries, 1)
        if READ == CURRENT:
            by_total += by_until
        else:
            by_earlier += by_until
    put(by.q + at * sizes.keys, rows, live, columns, sizes.keys, by_query)
    put(by.k + at * sizes.keys, rows, live, columns, sizes.keys, by_key)
    tl.store(by.now + at + rows, by_now, mask=live)
    tl.store(by.frozen + at + rows, rate, mask=live)
    # earlier = total − log, and total is the sum of log up to a token
    by_log = tl.cumsum(by_total + by_earlier, 0, reverse=True) + by_last - by_earlier
    tl.store(by.log + at + rows, by_log, mask=live)
