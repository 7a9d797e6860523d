"""A block's writes taken into a weight, in as few passes over the weight as there are terms.

A weight is by far the largest thing a block touches. Left to automatic differentiation, each product and each sum of the
equation below reads and writes one of its size, and its derivatives do so again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Term = tuple[Tensor, Tensor]
"""(factor (B, H), weight (B, H, out, in))"""


def fold(start: Term, trace: Term | None, pairs: Tensor, inputs: Tensor) -> Tensor:
    """W' = βW + fS + Σⱼ pⱼxⱼᵀ, with ``pairs`` (B, H, C, out) already weighted and ``inputs`` (B, H, C, in).

    >>> one = torch.ones(1, 1)
    >>> pairs, inputs = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 0.0]]]])
    >>> fold((one, torch.eye(2)[None, None]), None, pairs, inputs)
    tensor([[[[4., 0.],
              [6., 1.]]]])
    """
    given = *start, *(trace or (None, None)), pairs, inputs
    folded: Tensor = _Fold.apply(*given) if torch.is_grad_enabled() else _folded(*given)
    return folded


def through(weight: Tensor, x: Tensor) -> Tensor:
    """W x for tokens ``x`` (..., C, in), with a derivative by W that lies in memory as W does, so that sums of them are one pass."""
    y: Tensor = _Through.apply(weight, x) if torch.is_grad_enabled() else x @ weight.mT
    return y


class _Through(torch.autograd.Function):
    """``through`` as one node of the graph; its backward is differentiable again."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        return x @ weight.mT

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, x = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        # W̄ = Σ ȳ xᵀ,  x̄ = Wᵀ ȳ
        return back.mT @ x if wanted[0] else None, back @ weight if wanted[1] else None


class _Fold(torch.autograd.Function):
    """``fold`` as one node of the graph; its backward is differentiable again."""

    @staticmethod
    def forward(
        ctx: Any,
        kept: Tensor,
        weight: Tensor,
        carried: Tensor | None,
        trace: Tensor | None,
        pairs: Tensor,
        inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(kept, weight, carried, trace, pairs, inputs)
        return _folded(kept, weight, carried, trace, pairs, inputs)

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, carried, trace, pairs, inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        # W̄ = β W̄',  β̄ = ⟨W̄', W⟩,  p̄ⱼ = W̄' xⱼ,  x̄ⱼ = W̄'ᵀ pⱼ
        return (
            dot(back, weight) if wanted[0] else None,
            _scaled(kept, back) if wanted[1] else None,
            dot(back, trace) if wanted[2] else None,
            _scaled(carried, back) if wanted[3] else None,
            inputs @ back.mT if wanted[4] else None,
            pairs @ back if wanted[5] else None,
        )


def _folded(
    kept: Tensor, weight: Tensor, carried: Tensor | None, trace: Tensor | None, pairs: Tensor, inputs: Tensor
) -> Tensor:
    folded = _scaled(kept, weight)
    if carried is not None and trace is not None:
        folded = folded.addcmul_(carried[..., None, None], trace)
    shape = folded.shape
    return folded.flatten(0, -3).baddbmm_(pairs.mT.flatten(0, -3), inputs.flatten(0, -3)).view(shape)


def _scaled(factor: Tensor, weight: Tensor) -> Tensor:
    return (factor[..., None, None] * weight).contiguous()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨A, B⟩ of each memory, (..., out, in) twice.

    >>> dot(torch.eye(2)[None], torch.ones(1, 2, 2))
    tensor([2.])
    """
    x, y = a.flatten(-2).flatten(0, -2), b.flatten(-2).flatten(0, -2)
    if torch.compiler.is_compiling():
        return (x * y).sum(-1).view(a.shape[:-2])
    # One after the other: a batch of products of one row with one column takes three times as long.
    return torch.stack([torch.dot(one, other) for one, other in zip(x, y, strict=True)]).view(a.shape[:-2])
