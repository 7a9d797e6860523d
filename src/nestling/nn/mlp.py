"""Channel mixers without state."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nestling.nn.mixer import UNMARKED, Mixer
from nestling.ops import Marks


class SwiGLU(Mixer):
    """y = W₃ (SiLU(W₁ x) ⊙ W₂ x), hidden width ⅔ · ``expand`` · dim rounded up to a multiple of 16 (Llama).

    >>> SwiGLU(48).up.weight.shape
    torch.Size([256, 48])
    """

    def __init__(self, dim: int, expand: float = 4) -> None:
        """``dim``: channels; ``expand``: 4 has the parameters of a plain MLP four times as wide."""
        super().__init__()
        hidden = -(-int(expand * dim * 2 / 3) // 16) * 16
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def initial_state(self, batch: int) -> tuple[()]:
        """None needed."""
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, tuple[()]]:
        """(B, T, dim) -> (B, T, dim), token by token"""
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value), ()
