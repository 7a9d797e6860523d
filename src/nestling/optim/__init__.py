"""Optimizers: associative memories that are written once a step, with gradients. Each is a ``torch.optim.Optimizer``."""

from __future__ import annotations

from nestling.optim.base import Optimizer
from nestling.optim.named import SGD, AdaGrad, Adam, AdamW, Lion, Muon, RMSProp

__all__ = ["SGD", "AdaGrad", "Adam", "AdamW", "Lion", "Muon", "Optimizer", "RMSProp"]
