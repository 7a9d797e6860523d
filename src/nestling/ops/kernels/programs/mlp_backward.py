"""Triton: a memory of two layers over periods of tokens, backward (the equations are in ``ops.kernels.mlp``).

One program for each memory goes from the last period to the first, and in a period four times over the hidden units: for the errors of the
keys (``predicted``), for what was read (``reread``), for all that needs no more than these (``meet``), and, when the derivative by the errors
is known whole, for what comes through them (``close``). Run under the interpreter and compiled for sm_90; never yet run on a GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from nestling.ops.kernels.programs.delta_forward import dot, put, tile
from nestling.ops.kernels.programs.mlp_forward import (
    above,
    asked,
    below,
    bend,
    gelu,
    last,
    load_held,
    normed,
    places,
    predicted,
    put_above,
    put_below,
    put_held,
    reader,
    said,
    slope,
    square,
    unnormed,
)


class By(NamedTuple):
    """Pointers to derivatives: of y, which is given, and by q, k, v and the tables of either weight."""

    y: Any
    q: Any
    k: Any
    v: Any
    first: Any
    second: Any


class Weights(NamedTuple):
    """Pointers to the states at each period's start, and to the derivatives by the last state, which become those by the first."""

    held: Any
    back: Any


@triton.jit
def bent(x):
    """σ''(x) = (2 − x²) φ(x)"""
    return (2.0 - x * x) * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def seen(held, place, units, token, read, sizes, FORM: tl.constexpr):
    """Of some hidden units: the blocks, Z, H, B = δ₂W₂, D₁, and Zq"""
    q, k, D2 = token
    W1, S1, W2, S2 = load_held(held, place, units, sizes, FORM)
    Z, B = dot(k, tl.trans(W1), k), dot(D2, W2, k)
    D1 = B * bend(Z)
    return (W1, S1, W2, S2), Z, gelu(Z), B, D1, asked(q, D1, W1, S1, read, k, FORM)


@triton.jit
def reread(held, place, token, read, sizes, FORM: tl.constexpr):
    """Σ over hidden units of Hq W₂ᵀ, Hq S₂ᵀ and Hq Hᵀ"""
    k = token[1]
    OW, OS = tl.zeros((FORM.C, FORM.BV), tl.float32), tl.zeros((FORM.C, FORM.BV), tl.float32)
    A2 = tl.zeros((FORM.C, FORM.C), tl.float32)
    for h in range(0, sizes.hidden, FORM.BH):
        units = h + tl.arange(0, FORM.BH)
        blocks, _, H, _, _, Zq = seen(held, place, units, token, read, sizes, FORM)
        Hq = gelu(Zq)
        OW += dot(Hq, tl.trans(blocks[2]), k)
        if FORM.current:
            A2 += dot(Hq, tl.trans(H), k)
            if FORM.momentum:
                OS += dot(Hq, tl.trans(blocks[3]), k)
    return OW, OS, A2


@triton.jit
def through_norm(back, error, o, inside, sizes, FORM: tl.constexpr):
    """(derivative by the error, by o) from that by δ₂ = (E − mean E − y mean(E ⊙ y)) / s, with E = [x +] y − v and y = LN(o)"""
    by_error, by_o = back, back
    if FORM.normed:
        y, scale = normed(o, inside, sizes, FORM)
        by_error = unnormed(back, y, scale, inside, sizes)
        along, across = tl.sum(error * y, 1) / sizes.outputs, tl.sum(back * y, 1) / sizes.outputs
        # by y: through E, and as it stands there; by 1/s, which changes with o too
        by_y = by_error - scale * (along[:, None] * back + across[:, None] * error)
        moved = tl.sum(back * unnormed(error, y, scale, inside, sizes), 1) / sizes.outputs
        by_o = unnormed(by_y, y, scale, inside, sizes) - scale * y * moved[:, None]
    return by_error, by_o


@triton.jit
def ends_of(by, at, slots, sizes, sums, FORM: tl.constexpr):
    """Store the derivatives by one weight's table: by β, f and Γ as they are read, and by what ``pulled`` has."""
    start, trace, writes, carried = sums
    g, n, kept, held, moved = carried
    live, end = slots < sizes.chunk, slots == sizes.chunk - 1
    tl.store(by.start + at * sizes.chunk + slots, start + tl.where(end, kept, 0.0), mask=live)
    writes += tl.where(end[:, None], g[None, :], 0.0)
    put(by.writes + at * sizes.chunk * sizes.chunk, slots, live, slots, sizes.chunk, writes)
    if FORM.momentum:
        tl.store(by.trace + at * sizes.chunk + slots, trace + tl.where(end, held, 0.0), mask=live)
        tl.store(by.trace_start + at, moved)
        tl.store(by.trace_writes + at * sizes.chunk + slots, n, mask=live)


@triton.jit
def pulled(W, S, back, pairs, inputs, ends, like, FORM: tl.constexpr):
    """What W' = βW + fS + (g ⊙ δ)ᵀX and S' = μS + (n ⊙ δ)ᵀX give back

    (by δ, by X, by g, by n, by β, by f, by μ, and the derivatives by W and S)
    """
    g, n, start, trace, trace_start = ends
    Wb, Sb = back
    seen_w = dot(inputs, tl.trans(Wb), like)
    by_pairs, by_inputs = g[:, None] * seen_w, dot(g[:, None] * pairs, Wb, like)
    by_g, by_start, W_back = tl.sum(pairs * seen_w, 1), tl.sum(Wb * W), start * Wb
    by_n, by_trace, by_carried, S_back = by_g * 0.0, by_start * 0.0, by_start * 0.0, Sb
    if FORM.momentum:
        seen_s = dot(inputs, tl.trans(Sb), like)
        by_pairs += n[:, None] * seen_s
        by_inputs += dot(n[:, None] * pairs, Sb, like)
        by_n, by_trace, by_carried = tl.sum(pairs * seen_s, 1), tl.sum(Wb * S), tl.sum(Sb * S)
        S_back = trace * Wb + trace_start * Sb
    return by_pairs, by_inputs, (by_g, by_n, by_start, by_trace, by_carried), W_back, S_back


@triton.jit
def meet(weights, where, units, token, asks, ends, sizes, FORM: tl.constexpr):
    """What comes back through some hidden units, but for what the keys' errors pass on; the weights' derivatives are moved on.

    ``asks``: (derivative by o of the queries, by HqHᵀ, what ``reader`` gives). Returns what is summed over hidden units: the derivatives by
    δ₂, q, k, QKᵀ ⊙ Γ₁ and the tables.
    """
    q, k, D2 = token
    place, b = where
    by_O, by_A2, read = asks
    b1, f1, b2, f2, A1 = read
    (W1, S1, W2, S2), Z, H, B, D1, Zq = seen(weights.held, place, units, token, read, sizes, FORM)
    W1b, S1b, W2b, S2b = load_held(weights.back, b, units, sizes, FORM)
    Hq = gelu(Zq)
    by_D2, by_H, sums2, W2b, S2b = pulled(W2, S2, (W2b, S2b), D2, H, ends[1], k, FORM)
    by_D1, by_k, sums1, W1b, S1b = pulled(W1, S1, (W1b, S1b), D1, k, ends[0], k, FORM)
    by_Hq = dot(b2[:, None] * by_O, W2, k)
    X1, by_b1, by_f1 = by_A2 * 0.0, b1 * 0.0, f1 * 0.0
    if FORM.current:
        by_Hq += dot(by_A2, H, k)
        by_H += dot(tl.trans(by_A2), Hq, k)
        if FORM.momentum:
            by_Hq += dot(f2[:, None] * by_O, S2, k)
    by_Zq = by_Hq * bend(Zq)
    by_q = dot(b1[:, None] * by_Zq, W1, k)
    if FORM.current:
        by_D1 += dot(tl.trans(A1), by_Zq, k)
        X1 = dot(by_Zq, tl.trans(D1), k)
        by_b1 = tl.sum(by_Zq * dot(q, tl.trans(W1), k), 1)
        if FORM.momentum:
            by_f1 = tl.sum(by_Zq * dot(q, tl.trans(S1), k), 1)
            by_q += dot(f1[:, None] * by_Zq, S1, k)
            S1b += dot(tl.trans(f1[:, None] * by_Zq), q, k)
            S2b += dot(tl.trans(f2[:, None] * by_O), Hq, k)
    # δ₁ = σ'(Z) ⊙ (δ₂W₂)
    up = by_D1 * bend(Z)
    by_Z = by_H * bend(Z) + by_D1 * B * bent(Z)
    by_k += dot(by_Z, W1, k)
    by_D2 += dot(up, tl.trans(W2), k)
    W1b += dot(tl.trans(b1[:, None] * by_Zq), q, k) + dot(tl.trans(by_Z), k, k)
    W2b += dot(tl.trans(b2[:, None] * by_O), Hq, k) + dot(tl.trans(D2), up, k)
    tl.debug_barrier()
    put_held(weights.back, b, units, sizes, (W1b, S1b, W2b, S2b), FORM)
    return by_D2, by_q, by_k, X1, by_b1, by_f1, sums1, sums2


@triton.jit
def close(weights, where, k, by_o, by_k, sizes, FORM: tl.constexpr):
    """The derivative by what the keys' prediction was, o = σ(K W₁ᵀ) W₂ᵀ, on to the weights and the keys."""
    place, b = where
    for h in range(0, sizes.hidden, FORM.BH):
        units = h + tl.arange(0, FORM.BH)
        W1 = above(weights.held.w1, place, units, sizes, FORM)
        W2 = below(weights.held.w2, place, units, sizes, FORM)
        W1b, W2b = above(weights.back.w1, b, units, sizes, FORM), below(weights.back.w2, b, units, sizes, FORM)
        Z = dot(k, tl.trans(W1), k)
        by_Z = dot(by_o, W2, k) * bend(Z)
        by_k += dot(by_Z, W1, k)
        W1b += dot(tl.trans(by_Z), k, k)
        W2b += dot(tl.trans(by_o), gelu(Z), k)
        tl.debug_barrier()
        put_above(weights.back.w1, b, units, sizes, W1b, FORM)
        put_below(weights.back.w2, b, units, sizes, W2b, FORM)
    return by_k


@triton.jit
def plus(a, b):
    """The sums of the five that ``pulled`` gives"""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4]


@triton.jit
def retrace(given, tables, weights, by, some, sizes, FORM: tl.constexpr):
    """Some periods of one memory, from the last to the first. Programs: (memories,)."""
    b = tl.program_id(0).to(tl.int64)
    for step in range(some.count):
        n = some.first + some.count - 1 - step
        where = b * some.places + n - some.origin, b
        retraced(given, tables, weights, by, (n, where), sizes, FORM)
        tl.debug_barrier()


@triton.jit
def retraced(given, tables, weights, by, at_place, sizes, FORM: tl.constexpr):
    """One period of one memory"""
    n, where = at_place
    b, columns, outs = where[1], tl.arange(0, FORM.BK), tl.arange(0, FORM.BV)
    rows, live, slots = places(n, sizes, FORM)
    at, tokens, inside = b * sizes.chunks + n, b * sizes.tokens, live[:, None] & (outs < sizes.outputs)[None, :]
    q = tile(given.q + tokens * sizes.keys, rows, live, columns, sizes.keys)
    k = tile(given.k + tokens * sizes.keys, rows, live, columns, sizes.keys)
    v = tile(given.v + tokens * sizes.outputs, rows, live, outs, sizes.outputs).to(tl.float32)
    key = tile(given.k + tokens * sizes.keys, rows, live, outs, sizes.keys).to(tl.float32)
    o = predicted(weights.held, where[0], k, sizes, FORM)
    token = q, k, slope(o, key, v, inside, sizes, FORM)
    read = reader(tables, q, k, at, slots, sizes, FORM)
    OW, OS, A2 = reread(weights.held, where[0], token, read, sizes, FORM)
    by_y = tile(by.y + tokens * sizes.outputs, rows, live, outs, sizes.outputs).to(tl.float32)
    by_O, by_A2, by_D2, by_G2 = answered(tables, by_y, (OW, OS, A2), token, read, (at, slots, inside), sizes, FORM)
    ends = last(tables.first, at, slots, sizes, FORM), last(tables.second, at, slots, sizes, FORM)
    by_q, by_k = tl.zeros((FORM.C, FORM.BK), tl.float32), tl.zeros((FORM.C, FORM.BK), tl.float32)
    X1, none, zero = tl.zeros((FORM.C, FORM.C), tl.float32), tl.zeros((FORM.C,), tl.float32), tl.sum(OW * 0.0)
    by_b1, by_f1, sums1, sums2 = none, none, (none, none, zero, zero, zero), (none, none, zero, zero, zero)
    for h in range(0, sizes.hidden, FORM.BH):
        units = h + tl.arange(0, FORM.BH)
        met = meet(weights, where, units, token, (by_O, by_A2, read), ends, sizes, FORM)
        by_D2, by_q, by_k, X1 = by_D2 + met[0], by_q + met[1], by_k + met[2], X1 + met[3]
        by_b1, by_f1, sums1, sums2 = by_b1 + met[4], by_f1 + met[5], plus(sums1, met[6]), plus(sums2, met[7])
    error = said(o, key, inside, sizes, FORM) - v
    by_error, by_o = through_norm(by_D2, error, o, inside, sizes, FORM)
    tl.debug_barrier()
    by_k = close(weights, where, k, by_o, by_k, sizes, FORM)
    by_G1 = X1
    if FORM.current:
        by_G1 = X1 * dot(q, tl.trans(k), k)
        by_A1 = X1 * square(tables.first.writes, at, slots, sizes)
        by_q += dot(by_A1, k, k)
        by_k += dot(tl.trans(by_A1), q, k)
    if FORM.residual:
        by_q += by_y
        by_k += by_error
    put(by.q + tokens * sizes.keys, rows, live, columns, sizes.keys, by_q)
    put(by.k + tokens * sizes.keys, rows, live, columns, sizes.keys, by_k)
    put(by.v + tokens * sizes.outputs, rows, live, outs, sizes.outputs, -by_error)
    by_b2, by_f2 = none, none
    if FORM.current:
        by_b2, by_f2 = tl.sum(by_O * OW, 1), tl.sum(by_O * OS, 1)
    ends_of(by.first, at, slots, sizes, (by_b1, by_f1, by_G1, sums1), FORM)
    ends_of(by.second, at, slots, sizes, (by_b2, by_f2, by_G2, sums2), FORM)


@triton.jit
def answered(tables, by_y, read_back, token, read, where, sizes, FORM: tl.constexpr):
    """(derivatives by o of the queries, by HqHᵀ, by δ₂ and by Γ₂) from that by y = [q +] [LN](β₂ ⊙ Hq W₂ᵀ + … + (HqHᵀ ⊙ Γ₂) δ₂)"""
    OW, OS, A2 = read_back
    at, slots, inside = where
    k, D2 = token[1], token[2]
    G2 = square(tables.second.writes, at, slots, sizes)
    out, by_O = read[2][:, None] * OW + read[3][:, None] * OS, by_y
    if FORM.current:
        out += dot(A2 * G2, D2, k)
    if FORM.normed:
        y, scale = normed(out, inside, sizes, FORM)
        by_O = unnormed(by_y, y, scale, inside, sizes)
    by_A2, by_D2, by_G2 = tl.zeros_like(A2), tl.zeros_like(OW), tl.zeros_like(A2)
    if FORM.current:
        overlaps = dot(by_O, tl.trans(D2), k)
        by_A2, by_G2 = overlaps * G2, overlaps * A2
        by_D2 = dot(tl.trans(A2 * G2), by_O, k)
    return by_O, by_A2, by_D2, by_G2
