"""Triton: the tables of a block with momentum from its gates, forward and backward (the equations are in ``ops.coefficients``).

A program for each block makes what torch would make in a dozen passes over tables that are C times as large as the gates. All of it is
float32. Run under the interpreter and compiled for sm_90; never yet run on a GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from nestling.ops.kernels.programs.delta_forward import put, table
from nestling.ops.kernels.programs.mlp_forward import row, square


class Logs(NamedTuple):
    """Pointers to θ, log α and log η, (N, n, C)"""

    lr: Any
    retain: Any
    momentum: Any


class Sizes(NamedTuple):
    """Tokens, blocks, and the tokens of a block"""

    tokens: Any
    chunks: Any
    chunk: Any


@triton.jit
def product(a, b):
    """AB of float32"""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def ratios(logs, sizes, C: tl.constexpr):
    """(place, live slots, θ, cumulated log α and log η, D, E): what was written at j is left in W at t by D, in S by E."""
    n, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at, slots = b * sizes.chunks + n, tl.arange(0, C)
    live = (slots < sizes.chunk) & (n * sizes.chunk + slots < sizes.tokens)
    lr = tl.where(live, row(logs.lr, at, slots, sizes), 0.0)
    kept = tl.cumsum(tl.where(live, row(logs.retain, at, slots, sizes), 0.0), 0)
    carried = tl.cumsum(tl.where(live, row(logs.momentum, at, slots, sizes), 0.0), 0)
    lower = slots[:, None] >= slots[None, :]
    # An empty slot leaves W as it is: no momentum is added there.
    return at, live, lr, kept, carried, table(kept, kept, lower & live[None, :]), table(carried, carried, lower)


@triton.jit
def tables(logs, made, sizes, C: tl.constexpr):
    """β, Γ = −D E diag(θ), f = D μ, μ_C and p of one block. Programs: (blocks, memories)."""
    at, _, lr, kept, carried, D, E = ratios(logs, sizes, C)
    slots = tl.arange(0, C)
    real = slots < sizes.chunk
    last = tl.max(tl.where(slots == C - 1, carried, float("-inf")), 0)
    tl.store(made.start + at * sizes.chunk + slots, tl.exp(kept), mask=real)
    writes = -product(D, E) * lr[None, :]
    put(made.writes + at * sizes.chunk * sizes.chunk, slots, real, slots, sizes.chunk, writes)
    tl.store(made.trace + at * sizes.chunk + slots, tl.sum(D * tl.exp(carried)[None, :], 1), mask=real)
    tl.store(made.trace_start + at, tl.exp(last))
    tl.store(made.trace_writes + at * sizes.chunk + slots, -tl.exp(last - carried) * lr, mask=real)


@triton.jit
def tables_back(logs, back, by, sizes, C: tl.constexpr):
    """The derivatives by θ, log α and log η of one block. Programs: (blocks, memories)."""
    at, live, lr, kept, carried, D, E = ratios(logs, sizes, C)
    slots = tl.arange(0, C)
    real = slots < sizes.chunk
    mu, end = tl.exp(carried), slots == C - 1
    last = tl.max(tl.where(end, carried, float("-inf")), 0)
    by_writes = square(back.writes, at, slots, sizes)
    by_trace, by_left = row(back.trace, at, slots, sizes), row(back.trace_writes, at, slots, sizes)
    left = tl.exp(last - carried)
    by_lr = -tl.sum(by_writes * product(D, E), 0) - by_left * left
    # Γ = −(D E) diag(θ), f = D μ
    by_product = -by_writes * lr[None, :]
    entries = (product(by_product, tl.trans(E)) + by_trace[:, None] * mu[None, :]) * D
    by_kept = tl.sum(entries, 1) - tl.sum(entries, 0) + row(back.start, at, slots, sizes) * tl.exp(kept)
    moved = product(tl.trans(D), by_product) * E
    tail = -by_left * lr * left
    by_carried = tl.sum(moved, 1) - tl.sum(moved, 0) - tail + tl.sum(D * by_trace[:, None], 0) * mu
    by_carried += tl.where(end, tl.sum(tail, 0) + tl.load(back.trace_start + at) * tl.exp(last), 0.0)
    tl.store(by.lr + at * sizes.chunk + slots, tl.where(live, by_lr, 0.0), mask=real)
    by_retain, by_momentum = tl.cumsum(by_kept, 0, reverse=True), tl.cumsum(by_carried, 0, reverse=True)
    tl.store(by.retain + at * sizes.chunk + slots, tl.where(live, by_retain, 0.0), mask=real)
    tl.store(by.momentum + at * sizes.chunk + slots, tl.where(live, by_momentum, 0.0), mask=real)
