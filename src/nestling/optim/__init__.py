"""Optimizers: associative memories that are written once a step, with gradients. Each is a ``torch.optim.Optimizer``."""

from __future__ import annotations

from nestling.optim.base import Optimizer
from nestling.optim.dgd import DGD, GGD
from nestling.optim.gradient_memory import GradientMemory
from nestling.optim.levels import Levels
from nestling.optim.m3 import M3
from nestling.optim.momenta import DeepMomentum, DeltaMomentum, PreconditionedMomentum
from nestling.optim.named import SGD, AdaGrad, Adam, AdamW, Lion, Muon, RMSProp
from nestling.optim.splitting import Maker, Split, split
from nestling.optim.streams import Gradient, Identity, One, Preconditioned, Stream

__all__ = [
    "DGD",
    "GGD",
    "M3",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "DeepMomentum",
    "DeltaMomentum",
    "Gradient",
    "GradientMemory",
    "Identity",
    "Levels",
    "Lion",
    "Maker",
    "Muon",
    "One",
    "Optimizer",
    "Preconditioned",
    "PreconditionedMomentum",
    "RMSProp",
    "Split",
    "Stream",
    "split",
]
