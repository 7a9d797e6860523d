"""Every public optimizer, made for a model: what each has to do as torch's do is tested with all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from nestling import optim
from nestling.core import Level

Maker = Callable[..., Any]


def entries(kind: Any, *given: Any, **settings: Any) -> Maker:
    """Of all parameters."""
    return lambda model, params=None: kind(params or model.parameters(), *given, **settings)


def matrices(kind: Any, *given: Any, **settings: Any) -> Maker:
    """Of the matrices alone."""
    return lambda model, params=None: kind(
        params or [p for p in model.parameters() if p.dim() == 2], *given, **settings
    )


def layers(kind: Any, *given: Any, **settings: Any) -> Maker:
    """Of linear layers, which are watched."""
    return lambda model, params=None: kind(params or model.parameters(), *given, watch=model, **settings)


CLASSES: dict[str, Maker] = {
    "SGD": entries(optim.SGD, 0.05, 0.9, 0.1),
    "Adam": entries(optim.Adam, 0.05),
    "AdamW": entries(optim.AdamW, 0.05),
    "AdaGrad": entries(optim.AdaGrad, 0.05),
    "RMSProp": entries(optim.RMSProp, 0.05, momentum=0.5),
    "Lion": entries(optim.Lion, 0.05),
    "Muon": matrices(optim.Muon, 0.05),
    "M3": matrices(optim.M3, 0.05, period=2),
    "Shampoo": matrices(optim.Shampoo, 0.05, period=2, eps=1e-2),
    "SOAP": matrices(optim.SOAP, 0.05, period=9, widest=(3, 3)),
    "PreconditionedMomentum": entries(optim.PreconditionedMomentum, 0.05),
    "DeltaMomentum": matrices(optim.DeltaMomentum, 0.05),
    "DeepMomentum": entries(optim.DeepMomentum, 0.05, width=4),
    "DGD": layers(optim.DGD, 0.05),
    "DGD, sequential": layers(optim.DGD, 0.05, reading="sequential"),
    "GGD": layers(optim.GGD, 0.05),
    "GM": layers(optim.GM, 0.05),
}


def levels(model: nn.Module) -> optim.Levels:
    """A slow layer and a fast one."""
    return optim.Levels(model.named_parameters(), [Level("slow", 2, owns="*0.*"), Level("fast", 1)], 0.05)


MAKERS: dict[str, Maker] = {
    **CLASSES,
    "Levels": levels,
    "split": lambda m: optim.split(m, partial(optim.M3, lr=0.05, period=2)),
}
