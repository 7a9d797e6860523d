"""A memory of two layers over periods of tokens as an operator: the kernels of ``programs`` behind one autograd function.

The forward pass keeps its inputs and the states at every √n-th period; the backward pass makes the states between them again, group by
group. Under ``torch.compile`` it is one node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.ops.coefficients import Table
from nestling.ops.kernels.launch import on, tile_of
from nestling.ops.kernels.mlp import Held, LayerTokens, Two


def layer_periods(
    tokens: LayerTokens, tables: tuple[Table, Table], start: Held, memory: Two
) -> tuple[Tensor, Held, Held]:
    """``mlp.twin`` by kernels: outputs, the state after the last token and at the start of the last period.

    ``q``, ``k``, ``v`` are all float32, bfloat16 or float16, and so are the outputs and the factors of every product, whose sums are
    float32; tables and states are float32.
    """
    given = [x.contiguous() for x in vars(tokens).values()]
    flat = [x.contiguous() for table in tables for x in _written(table, memory)]
    states = [x.contiguous() for x in (start.w1, start.w2, start.s1, start.s2) if x is not None]
    eps = -1.0 if memory.eps is None else memory.eps
    y, *after = _forward(given, flat, states, memory.residual, eps, memory.current)
    width = len(states)
    return y, Held(*after[:width]), Held(*after[width : 2 * width])


def _written(table: Table, memory: Two) -> list[Tensor]:
    each = [table.start, table.writes]
    if memory.momentum:
        each += [x for x in (table.trace, table.trace_start, table.trace_writes) if x is not None]
    return each


@torch.library.custom_op("nestling::layer_periods", mutates_args=())
def _forward(
    given: Sequence[Tensor],
    tables: Sequence[Tensor],
    states: Sequence[Tensor],
    residual: bool,
    eps: float,
    current: bool,
) -> list[Tensor]:
    from nestling.ops.kernels.programs.mlp_forward import walk

    plan = _plan(given, tables, states, residual, eps, current)
    held, marks = [x.clone() for x in states], plan.places(states, plan.groups)
    y = torch.empty_like(given[2])
    with on(y):
        args = plan.given(given), plan.tables(tables), plan.held(held), plan.held(marks), y
        body = plan.count - 1
        walk[plan.grid](
            *args, plan.some(0, body, 0, plan.stride, plan.groups), plan.sizes(), plan.form(looks=True), **plan.warps
        )
        before = [x.clone() for x in held]
        # The last period by itself, so that the state at its start is known.
        walk[plan.grid](
            *args, plan.some(body, 1, -1, plan.count + 1, 0), plan.sizes(), plan.form(looks=True), **plan.warps
        )
    return [y, *held, *before, *marks]


@_forward.register_fake
def _(given: Sequence[Tensor], tables: Sequence[Tensor], states: Sequence[Tensor], *memory: Any) -> list[Tensor]:
    groups = _plan(given, tables, states, *memory).groups
    marks = [x.new_empty(x.shape[0], groups, *x.shape[1:]) for x in states]
    return [torch.empty_like(given[2]), *(torch.empty_like(x) for _ in range(2) for x in states), *marks]


@torch.library.custom_op("nestling::layer_periods_backward", mutates_args=())
def _backward(
    given: Sequence[Tensor],
    tables: Sequence[Tensor],
    kept: Sequence[Tensor],
    grads: Sequence[Tensor],
    residual: bool,
    eps: float,
    current: bool,
) -> list[Tensor]:
    from nestling.ops.kernels.programs.mlp_backward import By, Weights, retrace
    from nestling.ops.kernels.programs.mlp_forward import walk

    width = len(kept) // 2
    before, marks = kept[:width], kept[width:]
    plan = _plan(given, tables, before, residual, eps, current)
    y, ends, anchors = grads[0].contiguous(), grads[1 : 1 + width], grads[1 + width :]
    back = [x.clone() for x in ends]
    by = [torch.empty_like(x) for x in (*given, *tables)]
    tokens, each, sizes = plan.given(given), plan.tables(tables), plan.sizes()
    into = By(y, *by[:3], *plan.tables(by[3:]))
    with on(y):
        for place, group in reversed(list(enumerate(plan.spans()))):
            last = group.stop == plan.count
            states = plan.places(before, len(group))
            held = [x.clone() if last else mark[:, place].clone() for x, mark in zip(before, marks, strict=True)]
            some = plan.some(group.start, len(group), group.start, 1, len(group))
            into_states = plan.held(states)
            walk[plan.grid](
                tokens, each, plan.held(held), into_states, y, some, sizes, plan.form(looks=False), **plan.warps
            )
            weights = Weights(into_states, plan.held(back))
            retrace[plan.grid](tokens, each, weights, into, some, sizes, plan.back(), **plan.warps)
            if last:
                back = [x.add_(more) for x, more in zip(back, anchors, strict=True)]
    return [*by, *back]


@_backward.register_fake
def _(
    given: Sequence[Tensor], tables: Sequence[Tensor], kept: Sequence[Tensor], grads: Sequence[Tensor], *memory: Any
) -> list[Tensor]:
    return [torch.empty_like(x) for x in (*given, *tables, *kept[: len(kept) // 2])]


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    given, tables, states, *ctx.memory = inputs
    ctx.counts = len(given), len(tables), len(states)
    ctx.set_materialize_grads(False)
    # The state at the start of the last period, and those at the starts of groups
    ctx.save_for_backward(*given, *tables, *output[1 + len(states) :])


def _pull(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    given, tables, states = ctx.counts
    saved = ctx.saved_tensors
    parts = saved[:given], saved[given : given + tables], saved[given + tables :]
    before = parts[2][:states]
    shapes = parts[0][2], *before, *before
    felt = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, shapes, strict=False)]
    by = _backward(*(list(part) for part in parts), felt, *ctx.memory)
    return by[:given], by[given : given + tables], by[given + tables :], None, None, None


_forward.register_autograd(_pull, setup_context=_keep)


def _plan(
    given: Sequence[Tensor],
    tables: Sequence[Tensor],
    states: Sequence[Tensor],
    residual: bool,
    eps: float,
    current: bool,
) -> _Plan:
    rows, length, keys = given[1].shape
    memory = Two(residual, None if eps < 0 else eps, current, len(states) == 4)
    widths = keys, states[0].shape[-2], given[2].shape[-1]
    return _Plan(rows, length, widths, tables[0].shape[1], tables[0].shape[2], memory)


@dataclass(frozen=True)
class _Plan:
    """How programs share the work."""

    rows: int
    length: int
    widths: tuple[int, int, int]
    """Of keys, hidden units and values"""
    count: int
    """Periods"""
    size: int
    """Tokens of a period"""
    memory: Two

    @property
    def grid(self) -> tuple[int]:
        """A program for every memory"""
        return (self.rows,)

    @property
    def warps(self) -> dict[str, int]:
        return {"num_warps": 8}

    @property
    def stride(self) -> int:
        """Periods of a group, at whose start the state is kept"""
        return max(1, math.isqrt(self.count - 1))

    @property
    def groups(self) -> int:
        return -(-(self.count - 1) // self.stride)

    def spans(self) -> list[range]:
        """The periods of each group; the last period is one by itself."""
        body = self.count - 1
        firsts = range(0, body, self.stride)
        return [*(range(i, min(i + self.stride, body)) for i in firsts), range(body, self.count)]

    def places(self, states: Sequence[Tensor], count: int) -> list[Tensor]:
        """Room for ``count`` states of each memory"""
        return [x.new_empty(x.shape[0], count, *x.shape[1:]) for x in states]

    def given(self, tensors: Sequence[Tensor]) -> Any:
        from nestling.ops.kernels.programs.mlp_forward import Given

        return Given(*tensors)

    def tables(self, tensors: Sequence[Tensor]) -> Any:
        """The tables of both weights; without momentum the others stand where its would."""
        from nestling.ops.kernels.programs.mlp_forward import Both, Coefficients

        half = len(tensors) // 2
        each = [(*part, *part[:1] * (5 - half)) for part in (tuple(tensors[:half]), tuple(tensors[half:]))]
        return Both(*(Coefficients(*part) for part in each))

    def held(self, states: Sequence[Tensor]) -> Any:
        """Weights and momenta; without momentum the weights twice."""
        from nestling.ops.kernels.programs.mlp_forward import Held as Pointers

        w1, w2, *traces = states
        s1, s2 = traces or (w1, w2)
        return Pointers(w1, s1, w2, s2)

    def some(self, first: int, count: int, origin: int, stride: int, places: int) -> Any:
        from nestling.ops.kernels.programs.mlp_forward import Some

        return Some(first, count, origin, stride, places)

    def sizes(self) -> Any:
        from nestling.ops.kernels.programs.mlp_forward import Sizes

        return Sizes(self.length, *self.widths, self.count, self.size)

    def form(self, *, looks: bool, units: int = 32) -> Any:
        """``units``: hidden units at a time, of which more spill registers (counted by ``tests.ops.kernels.ahead``)"""
        from nestling.ops.kernels.programs.mlp_forward import Form

        keys, _, values = self.widths
        memory, normed = self.memory, self.memory.eps is not None
        shape = tile_of(self.size), tile_of(keys), units, tile_of(values)
        return Form(*shape, memory.eps or 0.0, normed, memory.residual, memory.momentum, memory.current, looks)

    def back(self) -> Any:
        """Of the way back, which holds twice as much"""
        return self.form(looks=True, units=16)
