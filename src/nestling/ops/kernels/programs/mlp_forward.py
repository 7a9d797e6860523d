"""Triton: a memory of two layers over periods of tokens, forward (the equations are in ``ops.kernels.mlp``).

One program for each memory goes from period to period with the weights and momenta in global memory, which is to say in the cache, some
hidden units at a time: twice, because the error of the keys is a sum over all of them. Run under the interpreter and compiled for sm_90;
never yet run on a GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from nestling.ops.kernels.programs.delta_forward import dot, put, tile


class Form(NamedTuple):
    """What a program is compiled for: sizes of tiles, the memory, and what it does."""

    C: int
    BK: int
    BH: int
    BV: int
    eps: float
    normed: bool
    residual: bool
    momentum: bool
    current: bool
    """A token reads the weights as they are after it, else those at the start of the period."""
    looks: bool
    """Reads, else only writes."""


class Given(NamedTuple):
    """Pointers to queries and keys (N, T, K), and values (N, T, V)."""

    q: Any
    k: Any
    v: Any


class Coefficients(NamedTuple):
    """Pointers to ``ops.coefficients.Table`` of one weight: (N, n, C), (N, n, C, C), and the same of the momentum."""

    start: Any
    writes: Any
    trace: Any
    trace_start: Any
    trace_writes: Any


class Both(NamedTuple):
    """Pointers for either weight."""

    first: Any
    second: Any


class Held(NamedTuple):
    """Pointers to weights and momenta, (N, H, K) and (N, V, H), or with places for several periods in front of the last two."""

    w1: Any
    s1: Any
    w2: Any
    s2: Any


class Sizes(NamedTuple):
    """Tokens, widths of keys, hidden units and values, periods, and the tokens of a period."""

    tokens: Any
    keys: Any
    hidden: Any
    outputs: Any
    chunks: Any
    chunk: Any


class Some(NamedTuple):
    """Periods from ``first`` on, ``count`` of them; every ``stride``-th from ``origin`` on has one of ``places`` for its state."""

    first: Any
    count: Any
    origin: Any
    stride: Any
    places: Any


@triton.jit
def gelu(x):
    """σ(x) = x Φ(x)"""
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def bend(x):
    """σ'(x) = Φ(x) + x φ(x)"""
    return 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def normed(x, inside, sizes, FORM: tl.constexpr):
    """(LN(x), 1/s)"""
    centred = tl.where(inside, x - (tl.sum(x, 1) / sizes.outputs)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / sizes.outputs + FORM.eps)[:, None]
    return centred * scale, scale


@triton.jit
def unnormed(back, y, scale, inside, sizes):
    """x̄ = (ȳ − mean ȳ − y mean(ȳ ⊙ y)) / s"""
    mean, along = tl.sum(back, 1) / sizes.outputs, tl.sum(back * y, 1) / sizes.outputs
    return tl.where(inside, scale * (back - mean[:, None] - y * along[:, None]), 0.0)


@triton.jit
def said(x, key, inside, sizes, FORM: tl.constexpr):
    """[x +] [LN](o)"""
    if FORM.normed:
        x, _ = normed(x, inside, sizes, FORM)
    if FORM.residual:
        x += key
    return x


@triton.jit
def slope(o, key, value, inside, sizes, FORM: tl.constexpr):
    """δ₂, what the loss is moved by o"""
    error = said(o, key, inside, sizes, FORM) - value
    if FORM.normed:
        y, scale = normed(o, inside, sizes, FORM)
        error = unnormed(error, y, scale, inside, sizes)
    return error


@triton.jit
def places(n, sizes, FORM: tl.constexpr):
    """The tokens of period n, which of the C there are, and the slots of the table that they have."""
    slots = tl.arange(0, FORM.C)
    rows = n * sizes.chunk + slots
    return rows, (slots < sizes.chunk) & (rows < sizes.tokens), slots


@triton.jit
def row(pointer, at, slots, sizes):
    """A number for each slot of a period"""
    return tl.load(pointer + at * sizes.chunk + slots, mask=slots < sizes.chunk, other=0.0)


@triton.jit
def square(pointer, at, slots, sizes):
    """A table of slots by slots"""
    return tile(pointer + at * sizes.chunk * sizes.chunk, slots, slots < sizes.chunk, slots, sizes.chunk)


@triton.jit
def last(table, at, slots, sizes, FORM: tl.constexpr):
    """What a period leaves: (g (C,), n (C,), β, f, μ), zeros for a momentum that is not there"""
    end = sizes.chunk - 1
    g = tl.load(table.writes + (at * sizes.chunk + end) * sizes.chunk + slots, mask=slots < sizes.chunk, other=0.0)
    if FORM.momentum:
        n = row(table.trace_writes, at, slots, sizes)
        kept = tl.load(table.trace + at * sizes.chunk + end)
        return g, n, tl.load(table.start + at * sizes.chunk + end), kept, tl.load(table.trace_start + at)
    return g, g * 0.0, tl.load(table.start + at * sizes.chunk + end), 0.0, 0.0


@triton.jit
def above(held, b, units, sizes, FORM: tl.constexpr):
    """Rows of W₁ (or S₁) for some hidden units (BH, BK)"""
    columns = tl.arange(0, FORM.BK)
    return tile(held + b * sizes.hidden * sizes.keys, units, units < sizes.hidden, columns, sizes.keys)


@triton.jit
def below(held, b, units, sizes, FORM: tl.constexpr):
    """Columns of W₂ (or S₂) for some hidden units (BV, BH)"""
    outs = tl.arange(0, FORM.BV)
    return tile(held + b * sizes.outputs * sizes.hidden, outs, outs < sizes.outputs, units, sizes.hidden)


@triton.jit
def put_above(held, b, units, sizes, x, FORM: tl.constexpr):
    """Store what ``above`` loads."""
    columns = tl.arange(0, FORM.BK)
    put(held + b * sizes.hidden * sizes.keys, units, units < sizes.hidden, columns, sizes.keys, x)


@triton.jit
def put_below(held, b, units, sizes, x, FORM: tl.constexpr):
    """Store what ``below`` loads."""
    outs = tl.arange(0, FORM.BV)
    put(held + b * sizes.outputs * sizes.hidden, outs, outs < sizes.outputs, units, sizes.hidden, x)


@triton.jit
def put_held(marks, b, units, sizes, blocks, FORM: tl.constexpr):
    """Store some hidden units' weights and momenta."""
    W1, S1, W2, S2 = blocks
    put_above(marks.w1, b, units, sizes, W1, FORM)
    put_below(marks.w2, b, units, sizes, W2, FORM)
    if FORM.momentum:
        put_above(marks.s1, b, units, sizes, S1, FORM)
        put_below(marks.s2, b, units, sizes, S2, FORM)


@triton.jit
def load_held(held, b, units, sizes, FORM: tl.constexpr):
    """Some hidden units' weights and momenta; without momentum the weights twice"""
    W1, W2 = above(held.w1, b, units, sizes, FORM), below(held.w2, b, units, sizes, FORM)
    if FORM.momentum:
        return W1, above(held.s1, b, units, sizes, FORM), W2, below(held.s2, b, units, sizes, FORM)
    return W1, W1, W2, W2


@triton.jit
def predicted(held, b, k, sizes, FORM: tl.constexpr):
    """O = σ(K W₁ᵀ) W₂ᵀ, some hidden units at a time"""
    out = tl.zeros((FORM.C, FORM.BV), tl.float32)
    for h in range(0, sizes.hidden, FORM.BH):
        units = h + tl.arange(0, FORM.BH)
        H = gelu(dot(k, tl.trans(above(held.w1, b, units, sizes, FORM)), k))
        out += dot(H, tl.trans(below(held.w2, b, units, sizes, FORM)), k)
    return out


@triton.jit
def mixed(x, W, S, start, trace, like, FORM: tl.constexpr):
    """β ⊙ (x Wᵀ) + f ⊙ (x Sᵀ)"""
    y = start[:, None] * dot(x, tl.trans(W), like)
    if FORM.momentum and FORM.current:
        y += trace[:, None] * dot(x, tl.trans(S), like)
    return y


@triton.jit
def carried(W, S, pairs, inputs, ends, like, FORM: tl.constexpr):
    """W' = βW + fS + (g ⊙ δ)ᵀ X and S' = μS + (n ⊙ δ)ᵀ X"""
    g, n, start, trace, trace_start = ends
    after = start * W + dot(tl.trans(g[:, None] * pairs), inputs, like)
    if FORM.momentum:
        after += trace * S
        S = trace_start * S + dot(tl.trans(n[:, None] * pairs), inputs, like)
    return after, S


@triton.jit
def walk(given, tables, held, marks, y, some, sizes, FORM: tl.constexpr):
    """Some periods of one memory: what is read, the weights and momenta after them in place of those before. Programs: (memories,)."""
    b = tl.program_id(0).to(tl.int64)
    columns, outs = tl.arange(0, FORM.BK), tl.arange(0, FORM.BV)
    for n in range(some.first, some.first + some.count):
        rows, live, slots = places(n, sizes, FORM)
        at, tokens, inside = b * sizes.chunks + n, b * sizes.tokens, live[:, None] & (outs < sizes.outputs)[None, :]
        k = tile(given.k + tokens * sizes.keys, rows, live, columns, sizes.keys)
        v = tile(given.v + tokens * sizes.outputs, rows, live, outs, sizes.outputs).to(tl.float32)
        # The residual of the value's width; without one it is not used.
        key = tile(given.k + tokens * sizes.keys, rows, live, outs, sizes.keys).to(tl.float32)
        D2 = slope(predicted(held, b, k, sizes, FORM), key, v, inside, sizes, FORM)
        ends1, ends2 = last(tables.first, at, slots, sizes, FORM), last(tables.second, at, slots, sizes, FORM)
        q = tile(given.q + tokens * sizes.keys, rows, live, columns, sizes.keys)
        read = reader(tables, q, k, at, slots, sizes, FORM)
        out, A2 = tl.zeros((FORM.C, FORM.BV), tl.float32), tl.zeros((FORM.C, FORM.C), tl.float32)
        tl.debug_barrier()
        for h in range(0, sizes.hidden, FORM.BH):
            units = h + tl.arange(0, FORM.BH)
            W1, S1, W2, S2 = load_held(held, b, units, sizes, FORM)
            Z = dot(k, tl.trans(W1), k)
            H, D1 = gelu(Z), dot(D2, W2, k) * bend(Z)
            if FORM.looks:
                Hq = gelu(asked(q, D1, W1, S1, read, k, FORM))
                out += mixed(Hq, W2, S2, read[2], read[3], k, FORM)
                if FORM.current:
                    A2 += dot(Hq, tl.trans(H), k)
            # Every thread has read what others are about to write.
            tl.debug_barrier()
            if (n - some.origin) % some.stride == 0:
                place = b * some.places + (n - some.origin) // some.stride
                put_held(marks, place, units, sizes, (W1, S1, W2, S2), FORM)
            W1, S1 = carried(W1, S1, D1, k, ends1, k, FORM)
            W2, S2 = carried(W2, S2, D2, H, ends2, k, FORM)
            put_held(held, b, units, sizes, (W1, S1, W2, S2), FORM)
        if FORM.looks:
            if FORM.current:
                out += dot(A2 * square(tables.second.writes, at, slots, sizes), D2, k)
            key = tile(given.q + tokens * sizes.keys, rows, live, outs, sizes.keys).to(tl.float32)
            put(y + tokens * sizes.outputs, rows, live, outs, sizes.outputs, said(out, key, inside, sizes, FORM))
        tl.debug_barrier()


@triton.jit
def reader(tables, q, k, at, slots, sizes, FORM: tl.constexpr):
    """(β₁, f₁, β₂, f₂, QKᵀ ⊙ Γ₁) of what is read"""
    one = tl.full((FORM.C,), 1.0, tl.float32)
    b1, b2, f1, f2 = one, one, one * 0.0, one * 0.0
    A1 = tl.zeros((FORM.C, FORM.C), tl.float32)
    if FORM.current:
        b1, b2 = row(tables.first.start, at, slots, sizes), row(tables.second.start, at, slots, sizes)
        if FORM.momentum:
            f1, f2 = row(tables.first.trace, at, slots, sizes), row(tables.second.trace, at, slots, sizes)
        A1 = dot(q, tl.trans(k), k) * square(tables.first.writes, at, slots, sizes)
    return b1, f1, b2, f2, A1


@triton.jit
def asked(q, D1, W1, S1, read, like, FORM: tl.constexpr):
    """Z of the queries: β₁ ⊙ (Q W₁ᵀ) + f₁ ⊙ (Q S₁ᵀ) + (QKᵀ ⊙ Γ₁) D₁"""
    Z = mixed(q, W1, S1, read[0], read[1], like, FORM)
    if FORM.current:
        Z += dot(read[4], D1, like)
    return Z
