"""Optimizers: associative memories that are written once a step, with gradients. Each is a ``torch.optim.Optimizer``."""

from __future__ import annotations

from nestling.optim.base import Optimizer
from nestling.optim.dgd import DGD, GGD
from nestling.optim.gm import GM
from nestling.optim.gradient_memory import GradientMemory
from nestling.optim.levels import Levels
from nestling.optim.m3 import M3
from nestling.optim.momenta import DeepMomentum, DeltaMomentum, PreconditionedMomentum
from nestling.optim.named import SGD, AdaGrad, Adam, AdamW, Lion, Muon, RMSProp
from nestling.optim.scheduled import Scheduled
from nestling.optim.shampoo import SOAP, Shampoo
from nestling.optim.splitting import Maker, Split, split
from nestling.optim.streams import (
    Cotangent,
    Fixed,
    Gradient,
    Identity,
    Input,
    One,
    Preconditioned,
    Seen,
    Stream,
    Whitening,
)

__all__ = [
    "DGD",
    "GGD",
    "GM",
    "M3",
    "SGD",
    "SOAP",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Cotangent",
    "DeepMomentum",
    "DeltaMomentum",
    "Fixed",
    "Gradient",
    "GradientMemory",
    "Identity",
    "Input",
    "Levels",
    "Lion",
    "Maker",
    "Muon",
    "One",
    "Optimizer",
    "Preconditioned",
    "PreconditionedMomentum",
    "RMSProp",
    "Scheduled",
    "Seen",
    "Shampoo",
    "Split",
    "Stream",
    "Whitening",
    "split",
]
