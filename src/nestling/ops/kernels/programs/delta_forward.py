"""Triton: a linear memory over chunks, forward (the equations are in ``ops.kernels.delta``).

``prepare`` solves the triangular system of every chunk, ``advance`` goes from chunk to chunk, one program for some columns of one memory, and
``look`` reads. Run under the interpreter and compiled for sm_90; never yet run on a GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

CURRENT, BEFORE, START = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


class Given(NamedTuple):
    """Pointers to ``LinearTokens``."""

    q: Any
    k: Any
    u: Any
    now: Any
    frozen: Any
    log: Any


class Solved(NamedTuple):
    """Pointers to what ``prepare`` makes: A diag(cβ₋ + g) K (N, n, C, K), A U (N, n, C, V) and A (N, n, C, C)."""

    keys: Any
    written: Any
    inverse: Any


class Passed(NamedTuple):
    """Pointers to what ``advance`` makes: Wᵀ at the start of each chunk (N, n, K, V), P (N, n, C, V), the last weights and the anchor."""

    states: Any
    pairs: Any
    end: Any
    anchor: Any


class Sizes(NamedTuple):
    """Tokens, width of keys, width of values, chunks, tokens of a chunk; ``lone`` is 1 where the last token has its own chunk, else 0."""

    tokens: Any
    keys: Any
    outputs: Any
    chunks: Any
    chunk: Any
    lone: Any


@triton.jit
def dot(a, b, like):
    """The product in the type of ``like``, summed in float32."""
    return tl.dot(a.to(like.dtype), b.to(like.dtype), input_precision="tf32x3")


@triton.jit
def span(n, sizes, C: tl.constexpr):
    """The tokens of chunk n: C places, and in which of them there is one."""
    body = sizes.tokens - sizes.lone
    first = tl.minimum(n * sizes.chunk, body)
    stop = tl.where(n * sizes.chunk >= body, sizes.tokens, tl.minimum(first + sizes.chunk, body))
    rows = first + tl.arange(0, C)
    return rows, rows < stop


@triton.jit
def tile(pointer, rows, live, columns, width):
    """Rows of ``width`` numbers, zeros outside."""
    inside = live[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def put(pointer, rows, live, columns, width, x):
    """Store what ``tile`` loads."""
    inside = live[:, None] & (columns < width)[None, :]
    tl.store(pointer + rows[:, None] * width + columns[None, :], x.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def table(rows, columns, inside):
    """exp(rowsₜ − columnsⱼ), zero outside"""
    return tl.exp(tl.where(inside, rows[:, None] - columns[None, :], float("-inf")))


@triton.jit
def merge(a, b, like):
    """The product of float32 factors, as exact as what ``like`` will hold needs."""
    if like.dtype == tl.float32:
        return tl.dot(a, b, input_precision="tf32x3")
    return tl.dot(a, b, input_precision="tf32")


@triton.jit
def inverse(L, like, BLOCKS: tl.constexpr):
    """(I + L)⁻¹ for L strictly lower triangular, in blocks of 16.

    With E the inverse of the blocks on the diagonal, by forward substitution, and M = E times what stands below them, M⁴ = 0 and
    (I + L)⁻¹ = (I + M²)(I − M) E. Powers of L itself would grow without bound where keys repeat.
    """
    C: tl.constexpr = BLOCKS * 16
    block, i, r = tl.arange(0, BLOCKS), tl.arange(0, 16), tl.arange(0, C)
    own = block[:, None, None, None] == block[None, None, :, None]
    diagonal = tl.sum(tl.where(own, tl.reshape(L, (BLOCKS, 16, BLOCKS, 16)), 0.0), 2)
    E = tl.broadcast_to(tl.where(i[:, None] == i[None, :], 1.0, 0.0)[None, :, :], (BLOCKS, 16, 16))
    for row in range(1, 16):
        at = (i == row)[None, :, None]
        below = tl.sum(tl.where(at, diagonal, 0.0), 1)
        # Eᵣ = eᵣ − Σ_{j<r} Lᵣⱼ Eⱼ
        E = tl.where(at, E - tl.sum(below[:, :, None] * E, 1)[:, None, :], E)
    wide = tl.broadcast_to(tl.reshape(E, (C, 1, 16)), (C, BLOCKS, 16))
    whole = tl.reshape(tl.where((r[:, None] // 16 == block[None, :])[:, :, None], wide, 0.0), (C, C))
    if BLOCKS > 1:
        under = tl.where(r[:, None] // 16 == r[None, :] // 16, 0.0, L)
        M = merge(whole, under, like)
        whole -= merge(M, whole, like)
        if BLOCKS > 2:
            whole += merge(merge(M, M, like), whole, like)
    return whole


@triton.jit
def system(k, now, log, C: tl.constexpr):
    """(KKᵀ, D₋, cumulated log α, the same one token earlier)"""
    i = tl.arange(0, C)
    total = tl.cumsum(log, 0)
    earlier = total - log
    return dot(k, tl.trans(k), k), table(earlier, total, i[:, None] > i[None, :]), total, earlier


@triton.jit
def prepare(given, solved, sizes, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEEP: tl.constexpr):
    """Solve the system of one chunk of one memory; ``KEEP`` its inverse too. Programs: (chunks, memories)."""
    n, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows, live = span(n, sizes, C)
    columns, slots, full = tl.arange(0, BK), tl.arange(0, C), tl.full((C,), True, tl.int1)
    at, place = b * sizes.tokens, (b * sizes.chunks + n) * C
    k = tile(given.k + at * sizes.keys, rows, live, columns, sizes.keys)
    now = tl.load(given.now + at + rows, mask=live, other=0.0)
    frozen = tl.load(given.frozen + at + rows, mask=live, other=0.0)
    log = tl.load(given.log + at + rows, mask=live, other=0.0)
    overlaps, before, _, earlier = system(k, now, log, C)
    A = inverse(now[:, None] * overlaps * before, k, C // 16)
    seen = (now * tl.exp(earlier) + frozen)[:, None] * k.to(tl.float32)
    put(solved.keys + place * sizes.keys, slots, full, columns, sizes.keys, dot(A, seen, k))
    if KEEP:
        put(solved.inverse + place * C, slots, full, slots, C, A)
    for v in range(0, sizes.outputs, BV):
        outs = v + tl.arange(0, BV)
        u = tile(given.u + at * sizes.outputs, rows, live, outs, sizes.outputs)
        put(solved.written + place * sizes.outputs, slots, full, outs, sizes.outputs, dot(A, u, k))


@triton.jit
def weights(pointer, b, columns, outs, sizes):
    """Wᵀ (BK, BV) of weights (N, V, K), and where it stands"""
    where = pointer + b * sizes.outputs * sizes.keys + outs[None, :] * sizes.keys + columns[:, None]
    return where, (columns < sizes.keys)[:, None] & (outs < sizes.outputs)[None, :]


@triton.jit
def advance(given, solved, passed, start, sizes, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Some columns of one memory from chunk to chunk: P, and Wᵀ at the start of each. Programs: (V / BV, memories)."""
    v, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns, outs, slots = tl.arange(0, BK), v * BV + tl.arange(0, BV), tl.arange(0, C)
    kept, full = columns < sizes.keys, tl.full((C,), True, tl.int1)
    at = b * sizes.tokens
    where, inside = weights(start, b, columns, outs, sizes)
    W = tl.load(where, mask=inside, other=0.0)
    for n in range(sizes.chunks):
        place = b * sizes.chunks + n
        put(passed.states + place * sizes.keys * sizes.outputs, columns, kept, outs, sizes.outputs, W)
        if n == sizes.chunks - 1:
            where, _ = weights(passed.anchor, b, columns, outs, sizes)
            tl.store(where, W, mask=inside)
        keys = tile(solved.keys + place * C * sizes.keys, slots, full, columns, sizes.keys)
        values = tile(solved.written + place * C * sizes.outputs, slots, full, outs, sizes.outputs)
        # P = (A diag(cβ₋ + g) K) W₀ᵀ − A U
        pairs = dot(keys, W, keys) - values.to(tl.float32)
        put(passed.pairs + place * C * sizes.outputs, slots, full, outs, sizes.outputs, pairs)
        rows, live = span(n, sizes, C)
        k = tile(given.k + at * sizes.keys, rows, live, columns, sizes.keys)
        log = tl.load(given.log + at + rows, mask=live, other=0.0)
        last = tl.sum(log, 0)
        # W_C = β_C W₀ − Pᵀ (D_C ⊙ K)
        carried = tl.exp(last - tl.cumsum(log, 0))[:, None] * k.to(tl.float32)
        W = tl.exp(last) * W - dot(tl.trans(carried), pairs, k)
    where, _ = weights(passed.end, b, columns, outs, sizes)
    tl.store(where, W, mask=inside)


@triton.jit
def seen(q, k, log, C: tl.constexpr, READ: tl.constexpr):
    """What a token reads of W₀ and of P: (β, QKᵀ ⊙ D), one token earlier if it reads before it writes."""
    i = tl.arange(0, C)
    total = tl.cumsum(log, 0)
    overlaps = dot(q, tl.trans(k), k)
    if READ == CURRENT:
        return tl.exp(total), overlaps * table(total, total, i[:, None] >= i[None, :])
    return tl.exp(total - log), overlaps * table(total - log, total, i[:, None] > i[None, :])


@triton.jit
def look(given, passed, y, sizes, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr):
    """Y = β ⊙ (Q W₀ᵀ) − (QKᵀ ⊙ D) P, some columns of one chunk of one memory. Programs: (chunks, V / BV, memories)."""
    n, v, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, live = span(n, sizes, C)
    columns, outs, slots = tl.arange(0, BK), v * BV + tl.arange(0, BV), tl.arange(0, C)
    at, place = b * sizes.tokens, b * sizes.chunks + n
    q = tile(given.q + at * sizes.keys, rows, live, columns, sizes.keys)
    states = passed.states + place * sizes.keys * sizes.outputs
    out = dot(q, tile(states, columns, columns < sizes.keys, outs, sizes.outputs), q)
    if READ != START:
        k = tile(given.k + at * sizes.keys, rows, live, columns, sizes.keys)
        log = tl.load(given.log + at + rows, mask=live, other=0.0)
        start, reads = seen(q, k, log, C, READ)
        pairs = passed.pairs + place * C * sizes.outputs
        out = start[:, None] * out - dot(reads, tile(pairs, slots, slots < C, outs, sizes.outputs), q)
    put(y + at * sizes.outputs, rows, live, outs, sizes.outputs, out)
