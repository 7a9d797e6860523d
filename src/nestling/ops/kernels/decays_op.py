"""The tables of blocks with Titans' momentum as an operator; ``ops.coefficients.table`` is the same in plain torch.

Under ``torch.compile`` it is one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nestling.ops.coefficients import Table
from nestling.ops.kernels.launch import on, tile_of


def momentum_table(lr: Tensor, retain: Tensor, momentum: Tensor, tokens: int) -> Table:
    """``coefficients.table`` of Chain((Descend(), Momentum())) from θ, log α, log η (N, n, C) in float32; D itself is not kept.

    Slots behind the first ``tokens`` are empty.
    """
    start, writes, trace, trace_start, trace_writes = _forward([x.contiguous() for x in (lr, retain, momentum)], tokens)
    return Table(start, writes, trace, trace_start, trace_writes, kept=writes.new_empty(*lr.shape[:2], 0))


@torch.library.custom_op("nestling::momentum_table", mutates_args=())
def _forward(logs: Sequence[Tensor], tokens: int) -> list[Tensor]:
    from nestling.ops.kernels.programs.decays import Logs, tables
    from nestling.ops.kernels.programs.mlp_forward import Coefficients

    made = _room(logs)
    with on(logs[0]):
        sizes, grid, tile = _sizes(logs, tokens)
        tables[grid](Logs(*logs), Coefficients(*made), sizes, tile, num_warps=4 if tile == 16 else 8)
    return made


@_forward.register_fake
def _(logs: Sequence[Tensor], tokens: int) -> list[Tensor]:
    return _room(logs)


@torch.library.custom_op("nestling::momentum_table_backward", mutates_args=())
def _backward(logs: Sequence[Tensor], grads: Sequence[Tensor], tokens: int) -> list[Tensor]:
    from nestling.ops.kernels.programs.decays import Logs, tables_back
    from nestling.ops.kernels.programs.mlp_forward import Coefficients

    by = [torch.empty_like(x) for x in logs]
    with on(logs[0]):
        sizes, grid, tile = _sizes(logs, tokens)
        back = Coefficients(*(x.contiguous() for x in grads))
        tables_back[grid](Logs(*logs), back, Logs(*by), sizes, tile, num_warps=4 if tile == 16 else 8)
    return by


@_backward.register_fake
def _(logs: Sequence[Tensor], grads: Sequence[Tensor], tokens: int) -> list[Tensor]:
    return [torch.empty_like(x) for x in logs]


def _room(logs: Sequence[Tensor]) -> list[Tensor]:
    """For β, Γ, f, μ_C and p"""
    lr = logs[0]
    size = lr.shape[-1]
    like = torch.empty_like
    return [like(lr), lr.new_empty(*lr.shape, size), like(lr), lr.new_empty(lr.shape[:-1]), like(lr)]


def _sizes(logs: Sequence[Tensor], tokens: int) -> tuple[Any, tuple[int, int], int]:
    """The kernel's sizes, a program for each block of each memory, and the tile"""
    from nestling.ops.kernels.programs.decays import Sizes

    rows, count, size = logs[0].shape
    return Sizes(tokens, count, size), (count, rows), tile_of(size)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    logs, ctx.tokens = inputs
    ctx.save_for_backward(*logs)


def _pull(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, None]:
    return _backward(list(ctx.saved_tensors), list(grads), ctx.tokens), None


_forward.register_autograd(_pull, setup_context=_keep)
