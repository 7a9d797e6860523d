"""The optimizers that are compared. All treat the hidden matrices; everything else has AdamW at one rate, for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from nestling import optim

REST = 3e-3
"""AdamW's rate for embeddings, heads, norms and biases"""
Parameters: TypeAlias = list[Tensor]

COLOURS = {
    "adamw": "#555555",
    "muon": "#0072b2",
    "m3": "#d55e00",
    "momentum": "#000000",
    "delta momentum": "#009e73",
    "deep momentum": "#cc79a7",
    "dgd": "#e69f00",
}
"""One colour for each optimizer in every figure (Okabe and Ito's, which the colour-blind can tell apart)."""


@dataclass(frozen=True)
class Entry:
    """An optimizer of hidden matrices: how it is made, and the rate at which its tuning begins.

    ``scale`` multiplies gradients after they were clipped: only delta gradient descent is not indifferent to it, beyond its rate.
    """

    name: str
    make: Callable[[nn.Module, float], list[torch.optim.Optimizer]]
    begin: float
    scale: float = 1.0


def ours(maker: Callable[..., optim.Maker]) -> Callable[[nn.Module, float], list[torch.optim.Optimizer]]:
    """``optim.split`` with our AdamW for the rest"""

    def make(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
        return [optim.split(model, maker(model, rate), partial(optim.AdamW, lr=REST, weight_decay=0.0))]

    return make


def parts(model: nn.Module) -> tuple[Parameters, Parameters]:
    """Hidden matrices, and the rest, as ``optim.split`` sorts them."""
    groups = optim.split(model).param_groups
    hidden, rest = ([p for group in groups if group["part"] == part for p in group["params"]] for part in (0, 1))
    return hidden, rest


def torch_adamw(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """torch's AdamW, with two rates"""
    hidden, rest = parts(model)
    return [torch.optim.AdamW([{"params": hidden, "lr": rate}, {"params": rest}], lr=REST, weight_decay=0.0)]


def torch_muon(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """torch's Muon beside torch's AdamW"""
    hidden, rest = parts(model)
    return [
        torch.optim.Muon(hidden, lr=rate, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=REST, weight_decay=0.0),
    ]


ENTRIES = (
    Entry("adamw", torch_adamw, 3e-3),
    Entry("muon", torch_muon, 3e-2),
    Entry("m3", ours(lambda model, rate: partial(optim.M3, lr=rate)), 3e-3),
    Entry("momentum", ours(lambda model, rate: partial(optim.SGD, lr=rate, momentum=0.9)), 1e-1),
    Entry("delta momentum", ours(lambda model, rate: partial(optim.DeltaMomentum, lr=rate)), 1e-1),
    Entry("delta, as printed", ours(lambda model, rate: partial(optim.DeltaMomentum, lr=rate, form="paper")), 1e-1),
    Entry("deep momentum", ours(lambda model, rate: partial(optim.DeepMomentum, lr=rate)), 1e-3),
    Entry("dgd", ours(lambda model, rate: partial(optim.DGD, lr=rate, watch=model)), 1e-1),
    Entry(
        "dgd, loss × 100",
        ours(lambda model, rate: partial(optim.DGD, lr=rate, watch=model)),
        1e-2,
        100.0,
    ),
)
CONTROL = Entry("not trained", ENTRIES[3].make, 0.0)
"""The hidden matrices stay as they are drawn: what everything else learns alone"""
BY_NAME = {entry.name: entry for entry in ENTRIES}
