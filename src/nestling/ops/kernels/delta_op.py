"""A linear memory over chunks as an operator: the kernels of ``programs`` behind one autograd function.

The forward pass keeps nothing but its inputs; the backward pass makes the states between chunks again, as it makes everything else. Under
``torch.compile`` it is one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.ops.kernels.delta import READS, Cut, LinearTokens
from nestling.ops.kernels.launch import on, tile_of


def linear_chunks(tokens: LinearTokens, start: Tensor, cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
    """``delta.twin`` by kernels: outputs, the weights after the last token and those at the start of the last chunk.

    ``q``, ``k``, ``u`` are all float32, bfloat16 or float16, and so are the outputs and the factors of every product, whose sums are
    float32; gates, ``start`` and the weights that come back are float32. A chunk has at most ``LONGEST`` tokens, a key ``WIDEST`` numbers.
    """
    given = [x.contiguous() for x in vars(tokens).values()]
    y, end, anchor = _forward(given, start.contiguous(), cut.chunk, READS.index(cut.read), cut.lone)
    return y, end, anchor


@torch.library.custom_op("nestling::linear_chunks", mutates_args=())
def _forward(
    given: Sequence[Tensor], start: Tensor, chunk: int, read: int, lone: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from nestling.ops.kernels.programs.delta_forward import look

    with on(start):
        launch = _launch(given, start, chunk, read, lone)
        _, passed = launch.forward(given, start, keep=False)
        y = torch.empty_like(given[2])
        look[launch.parallel](launch.given(given), passed, y, launch.sizes(), *launch.tiles, read, **launch.warps)
    return y, passed.end, passed.anchor


@_forward.register_fake
def _(given: Sequence[Tensor], start: Tensor, chunk: int, read: int, lone: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(given[2]), torch.empty_like(start), torch.empty_like(start)


@torch.library.custom_op("nestling::linear_chunks_backward", mutates_args=())
def _backward(
    given: Sequence[Tensor], start: Tensor, grads: Sequence[Tensor], chunk: int, read: int, lone: bool
) -> list[Tensor]:
    from nestling.ops.kernels.programs.delta_backward import Back, Ends, Kept, Made, derive, retreat, told

    with on(start):
        launch = _launch(given, start, chunk, read, lone)
        solved, passed = launch.forward(given, start, keep=True)
        y, end, anchor = (x.contiguous() for x in grads)
        back = Back(y, torch.empty_like(passed.pairs), torch.empty_like(passed.states))
        tokens, sizes, by_start = launch.given(given), launch.sizes(), torch.empty_like(start)
        told[launch.parallel](tokens, back, sizes, *launch.tiles, read, **launch.warps)
        ends = Ends(end, anchor, by_start)
        kept = Kept(Made(solved.inverse, solved.keys, passed.pairs, passed.states), back)
        retreat[launch.serial](tokens, kept, ends, sizes, *launch.tiles, read, **launch.warps)
        by = [torch.empty_like(x) for x in given]
        derive[launch.chunked](tokens, kept, launch.given(by), sizes, *launch.tiles, read, **launch.warps)
    return [*by, by_start]


@_backward.register_fake
def _(
    given: Sequence[Tensor], start: Tensor, grads: Sequence[Tensor], chunk: int, read: int, lone: bool
) -> list[Tensor]:
    return [torch.empty_like(x) for x in (*given, start)]


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    given, start, *ctx.cut = inputs
    ctx.save_for_backward(*given, start)


def _pull(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    *given, start = ctx.saved_tensors
    *by, by_start = _backward(given, start, list(grads), *ctx.cut)
    return by, by_start, None, None, None


_forward.register_autograd(_pull, setup_context=_keep)


def _launch(given: Sequence[Tensor], start: Tensor, chunk: int, read: int, lone: bool) -> _Launch:
    rows, length, keys = given[1].shape
    return _Launch(rows, length, keys, given[2].shape[2], Cut(chunk, READS[read], lone))


@dataclass(frozen=True)
class _Launch:
    """How programs share the work."""

    rows: int
    length: int
    keys: int
    values: int
    cut: Cut

    @property
    def tiles(self) -> tuple[int, int, int]:
        """C, and powers of two for the keys and for some of the values"""
        return tile_of(self.cut.chunk), tile_of(self.keys), min(tile_of(self.values), 32)

    @property
    def warps(self) -> dict[str, int]:
        # What fits the registers of an SM at these tiles, by the compiler's count of what is spilt.
        return {"num_warps": 4 if self.tiles[0] == 16 else 8}

    @property
    def columns(self) -> int:
        return -(-self.values // self.tiles[2])

    @property
    def chunked(self) -> tuple[int, int]:
        """A program for every chunk of every memory"""
        return self.cut.count(self.length), self.rows

    @property
    def serial(self) -> tuple[int, int]:
        """One for some columns of every memory, from chunk to chunk"""
        return self.columns, self.rows

    @property
    def parallel(self) -> tuple[int, int, int]:
        """One for some columns of every chunk of every memory"""
        return self.cut.count(self.length), self.columns, self.rows

    def sizes(self) -> Any:
        from nestling.ops.kernels.programs.delta_forward import Sizes

        cut = self.cut
        return Sizes(self.length, self.keys, self.values, cut.count(self.length), cut.chunk, int(cut.lone))

    def given(self, tensors: Sequence[Tensor]) -> Any:
        from nestling.ops.kernels.programs.delta_forward import Given

        return Given(*tensors)

    def forward(self, given: Sequence[Tensor], start: Tensor, *, keep: bool) -> tuple[Any, Any]:
        """From chunk to chunk: what was solved (the inverses too, to ``keep``) and what was passed on."""
        from nestling.ops.kernels.programs.delta_forward import Passed, Solved, advance, prepare

        k, u = given[1], given[2]
        lead, C = (self.rows, self.cut.count(self.length)), self.tiles[0]
        inverse = k.new_empty(*lead, C, C if keep else 0)
        solved = Solved(k.new_empty(*lead, C, self.keys), u.new_empty(*lead, C, self.values), inverse)
        prepare[self.chunked](self.given(given), solved, self.sizes(), *self.tiles, keep, **self.warps)
        states, pairs = u.new_empty(*lead, self.keys, self.values), u.new_empty(*lead, C, self.values)
        passed = Passed(states, pairs, torch.empty_like(start), torch.empty_like(start))
        advance[self.serial](self.given(given), solved, passed, start, self.sizes(), *self.tiles, **self.warps)
        return solved, passed
