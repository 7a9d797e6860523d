"""Short causal convolution: how a token sees its few predecessors before it becomes a key, a value or a query."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.errors import NestlingError
from nestling.nn.mixer import UNMARKED, Mixer
from nestling.ops import Marks


class ShortConv(Mixer):
    """yₜ = Σⱼ wⱼ ⊙ xₜ₋ⱼ, j < ``size``: depthwise, causal, within a document (Titans §4.4, size 4).

    The state is the last ``size`` - 1 inputs, (B, size - 1, dim).

    >>> y, state = ShortConv(8)(torch.randn(2, 5, 8))
    >>> y.shape, state.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 3, 8]))
    """

    def __init__(self, dim: int, size: int = 4) -> None:
        """``dim``: channels; ``size``: taps, the token itself included."""
        super().__init__()
        if size < 1:
            raise NestlingError(f"a convolution has at least one tap, the token itself: got {size}.")
        self.weight = nn.Parameter(torch.randn(size, dim) * size**-0.5)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros: nothing came before."""
        return self.weight.new_zeros(batch, self.weight.shape[0] - 1, self.weight.shape[1])

    def forward(self, x: Tensor, state: Tensor | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, Tensor]:
        """(B, T, dim) -> (B, T, dim)"""
        rows, length, _ = x.shape
        past = self.initial_state(rows).to(x.dtype) if state is None else state.to(x.dtype)
        reach = past.shape[1]
        seen = torch.cat((past, x), 1)
        document = None
        if marks.starts is not None:
            document = torch.cat((marks.starts.new_zeros(rows, reach), marks.starts), 1).long().cumsum(1)
        if document is None and not torch.compiler.is_compiling():
            # A compiler fuses the loop below, and would follow the derivative of the derivative forever.
            taps = _Taps.apply if torch.is_grad_enabled() else _tapped
            return taps(seen, self.weight.to(x.dtype)), self._last(seen, document, marks, length)
        y = x * self.weight[0].to(x.dtype)
        for j in range(1, reach + 1):
            earlier = seen[:, reach - j : reach - j + length]
            if document is not None:
                same = document[:, reach - j : reach - j + length] == document[:, reach:]
                earlier = earlier * same[..., None]
            y = y + earlier * self.weight[j].to(x.dtype)
        return y, self._last(seen, document, marks, length)

    def _last(self, seen: Tensor, document: Tensor | None, marks: Marks, length: int) -> Tensor:
        """The inputs that the next token still sees, in the type of the weights."""
        reach = seen.shape[1] - length
        if marks.valid is None:
            # A view would keep all that was seen alive.
            kept = seen[:, length:].clone()
            past = None if document is None else document[:, length:]
        else:
            index = marks.valid.sum(1, keepdim=True) + torch.arange(reach, device=seen.device)
            kept = seen.gather(1, index[..., None].expand(-1, -1, seen.shape[2]))
            past = None if document is None else document.gather(1, index)
        if past is not None and document is not None:
            kept = kept * (past == document[:, -1:])[..., None]
        return kept.to(self.weight.dtype)


def _tapped(seen: Tensor, weight: Tensor) -> Tensor:
    """yₜ = Σⱼ wⱼ ⊙ xₜ₋ⱼ for ``seen`` (B, size − 1 + T, dim), sums in place"""
    reach = weight.shape[0] - 1
    length = seen.shape[1] - reach
    y = seen[:, reach:] * weight[0]
    for j in range(1, reach + 1):
        y.addcmul_(seen[:, reach - j : reach - j + length], weight[j])
    return y


class _Taps(torch.autograd.Function):
    """``_tapped`` as one node of the graph; its derivative is differentiable again."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(seen, weight)
        return _tapped(seen, weight)

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> tuple[Tensor, Tensor]:
        seen, weight = ctx.saved_tensors
        reach, length = weight.shape[0] - 1, back.shape[1]
        # w̄ⱼ = Σₜ ȳₜ ⊙ xₜ₋ⱼ
        by_weight = [(back * seen[:, reach - j : reach - j + length]).sum((0, 1)) for j in range(reach + 1)]
        # x̄ₜ = Σⱼ wⱼ ⊙ ȳₜ₊ⱼ: the same taps over what comes later, from the other side
        later = F.pad(back, (0, 0, reach, reach))
        by_seen: Tensor = _Taps.apply(later, weight.flip(0))
        return by_seen, torch.stack(by_weight)
