"""Gates: the coefficients of one write. The papers use the same letters for different things; these names do not change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from nestling.tree import state

Gate: TypeAlias = Any
"""Tensor | float | Mapping[str, Tensor]: which of them depends on where in a scan the gate is."""


@state
class Gates:
    """How strongly a memory writes, keeps and remembers its past surprise, at one token.

    ========== ======= ===== ======= ==========
    here       Titans  MIRAS NL/Hope delta rule
    ========== ======= ===== ======= ==========
    lr         θ       η     η       β
    retain     1 - α   α     α       α
    momentum   η       -     -       -
    threshold  -       δ     -       -
    share      -       -     γ       -
    ========== ======= ===== ======= ==========

    Each gate is one number for all weights of the memory, or a mapping from the names of the weights to numbers (Titans'
    gates per memory layer); threshold and share (of a pair in a window, ``Omega``) belong to the objective and are one number.
    Absent gates are neutral: unit rate, nothing forgotten, no momentum, no threshold, a full share. In ``ops.scan`` every number
    is a tensor that broadcasts to (B, H, T). ``KeyDecay`` takes a vector over the keys for retain. Rate and retention of one weight
    may be by channel: in ``ops.scan`` (B, H, T, channels of its narrower side), here (1, in) or (out, 1).

    >>> Gates(lr=0.1).of("w1")
    Gates(lr=0.1, retain=1.0, momentum=0.0, threshold=inf, share=1.0)
    """

    lr: Gate = 1.0
    retain: Gate = 1.0
    momentum: Gate = 0.0
    threshold: Gate = math.inf
    share: Gate = 1.0

    def of(self, name: str) -> Gates:
        """The gates of one weight."""
        return Gates(_of(self.lr, name), _of(self.retain, name), _of(self.momentum, name), self.threshold, self.share)


def _of(gate: Gate, name: str) -> Gate:
    return gate[name] if isinstance(gate, Mapping) else gate
