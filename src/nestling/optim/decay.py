"""How an optimizer forgets: as a part of the objective (ridge), or of the retention (decoupled)."""

from __future__ import annotations

import torch

from nestling.optim.base import Group, Optimizer
from nestling.optim.kernels import Signals, Tensors


class Ridge(Optimizer):
    """The rule is given g + λ W, the gradient of L(W) + ½λ‖W‖²."""

    def signal(self, group: Group, weights: Tensors, gradients: Tensors) -> Signals:
        """g + λ W"""
        if group["weight_decay"] == 0:
            return Signals.of(gradients)
        return Signals.of(torch._foreach_add(gradients, weights, alpha=float(group["weight_decay"])))


class Decoupled(Optimizer):
    """W ← (1 − ηλ) W beside the rule: the retention ``core.Decay`` with α = 1 − ηλ."""

    def retain(self, group: Group) -> float:
        """α = 1 − ηλ"""
        return 1 - float(group["lr"]) * float(group["weight_decay"])
