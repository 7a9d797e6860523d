"""The mathematics: memories as values, one example at a time, without modules, batches or heads."""

from __future__ import annotations

from typing import Any

from nestling.core.apply import Apply, Weights, linear, tape
from nestling.core.architecture import (
    GELU,
    MLP,
    Architecture,
    Beside,
    Constant,
    GatedMLP,
    Matrix,
    Normed,
    Residual,
    SiLU,
)
from nestling.core.gates import Gates
from nestling.core.level import Level
from nestling.core.memory import Memory, MemoryState, Surprise
from nestling.core.objective import L2, DotProduct, Huber, Lp, Objective
from nestling.core.retention import (
    KL,
    Decay,
    Delta,
    ElasticNet,
    Erase,
    GatedDelta,
    InputDelta,
    KeyDecay,
    Lq,
    Retention,
    Returning,
    UnitDelta,
)
from nestling.core.rule import (
    Adaptive,
    Chain,
    Clip,
    Descend,
    Every,
    Hold,
    Momentum,
    NewtonSchulz,
    Rule,
    Scale,
    Sum,
)
from nestling.core.source import parse

_VALUES = (
    *(GELU, SiLU, Constant, Matrix, MLP, GatedMLP, Residual, Normed, Beside),
    *(DotProduct, L2, Lp, Huber),
    *(Decay, KL, ElasticNet, Lq, Delta, UnitDelta, InputDelta, GatedDelta, Erase, KeyDecay, Returning),
    *(Descend, Momentum, NewtonSchulz, Adaptive, Clip, Scale, Chain, Sum, Every, Hold),
    *(Memory, Level),
)

__all__ = [
    "GELU",
    "KL",
    "L2",
    "MLP",
    "Adaptive",
    "Apply",
    "Architecture",
    "Beside",
    "Chain",
    "Clip",
    "Constant",
    "Decay",
    "Delta",
    "Descend",
    "DotProduct",
    "ElasticNet",
    "Erase",
    "Every",
    "GatedDelta",
    "GatedMLP",
    "Gates",
    "Hold",
    "Huber",
    "InputDelta",
    "KeyDecay",
    "Level",
    "Lp",
    "Lq",
    "Matrix",
    "Memory",
    "MemoryState",
    "Momentum",
    "NewtonSchulz",
    "Normed",
    "Objective",
    "Residual",
    "Retention",
    "Returning",
    "Rule",
    "Scale",
    "SiLU",
    "Sum",
    "Surprise",
    "UnitDelta",
    "Weights",
    "linear",
    "parse",
    "tape",
    "values",
]


def values() -> dict[str, Any]:
    """Every value of the core by its name: the vocabulary of ``parse``, in which each ``repr`` evaluates back."""
    return {value.__name__: value for value in _VALUES}
