"""Which model a saved session belongs to, said so that a difference has a name."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from itertools import chain

import torch
from torch import Tensor

from nestling.models import LM, describe

_SAMPLE = 64  # values of each parameter that are looked at: any training step moves some of them


def identity(model: LM) -> dict[str, str]:
    """The configuration, the period of every level, and type, shape and a hash of sampled values of every parameter.

    A state goes with the parameters that wrote it: the same recipe with other weights reads it as noise. Levels tell a model
    from its ``frozen()`` twin, whose memories hold what never took effect.

    >>> import nestling
    >>> identity(nestling.build("hope", dim=32, layers=1, heads=2))["dim"]
    '32'
    """
    levels = describe(model).levels
    return {
        **{field.name: repr(vars(model.config)[field.name]) for field in fields(model.config)},
        **{f"the period of {level.name}": f"{level.period:g}" for level in levels},
        **{name: _mark(parameter) for name, parameter in model.named_parameters()},
    }


def first_difference(saved: dict[str, str], ours: dict[str, str]) -> str | None:
    """``name: there and here`` for the first entry in which two identities differ, or None.

    >>> first_difference({"recipe": "'hope'", "dim": "64"}, {"recipe": "'hope'", "dim": "32"})
    'dim is 64 there and 32 here'
    """
    for name in chain(saved, ours):
        there, here = saved.get(name, "missing"), ours.get(name, "missing")
        if there != here:
            return f"{name} is {there} there and {here} here"
    return None


def _mark(parameter: Tensor) -> str:
    values = parameter.detach().flatten()
    sample = values[:: max(1, values.numel() // _SAMPLE)].cpu().contiguous()
    digest = hashlib.sha256(sample.view(torch.uint8).numpy().tobytes()).hexdigest()
    return f"{str(parameter.dtype).removeprefix('torch.')} {tuple(parameter.shape)} {digest[:12]}"
