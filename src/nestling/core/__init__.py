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
from nestling.core.mirror import KL, ElasticNet, HeldLq, Lag, Logistic, Lq, LqLink
from nestling.core.objective import L2, DotProduct, Huber, Lp, MixedHuber, NormHuber, Objective, ValueShift
from nestling.core.omega import Above, Omega, Pairs, Quantile
from nestling.core.proximal import ChiSquared, FDivergence, Hellinger, ReverseKL, SoftThreshold
from nestling.core.retention import (
    Decay,
    Delta,
    Erase,
    GatedDelta,
    InputDelta,
    KeyDecay,
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
    *(DotProduct, L2, Lp, Huber, NormHuber, MixedHuber, ValueShift),
    *(Omega, Above, Quantile),
    *(KL, ElasticNet, Logistic, Lq, HeldLq, LqLink, Lag),
    *(SoftThreshold, FDivergence, Hellinger, ReverseKL, ChiSquared),
    *(Decay, Delta, UnitDelta, InputDelta, GatedDelta, Erase, KeyDecay, Returning),
    *(Descend, Momentum, NewtonSchulz, Adaptive, Clip, Scale, Chain, Sum, Every, Hold),
    *(Memory, Level),
)

__all__ = [
    "GELU",
    "KL",
    "L2",
    "MLP",
    "Above",
    "Adaptive",
    "Apply",
    "Architecture",
    "Beside",
    "Chain",
    "ChiSquared",
    "Clip",
    "Constant",
    "Decay",
    "Delta",
    "Descend",
    "DotProduct",
    "ElasticNet",
    "Erase",
    "Every",
    "FDivergence",
    "GatedDelta",
    "GatedMLP",
    "Gates",
    "HeldLq",
    "Hellinger",
    "Hold",
    "Huber",
    "InputDelta",
    "KeyDecay",
    "Lag",
    "Level",
    "Logistic",
    "Lp",
    "Lq",
    "LqLink",
    "Matrix",
    "Memory",
    "MemoryState",
    "MixedHuber",
    "Momentum",
    "NewtonSchulz",
    "NormHuber",
    "Normed",
    "Objective",
    "Omega",
    "Pairs",
    "Quantile",
    "Residual",
    "Retention",
    "Returning",
    "ReverseKL",
    "Rule",
    "Scale",
    "SiLU",
    "SoftThreshold",
    "Sum",
    "Surprise",
    "UnitDelta",
    "ValueShift",
    "Weights",
    "linear",
    "parse",
    "tape",
    "values",
]


def values() -> dict[str, Any]:
    """Every value of the core by its name: the vocabulary of ``parse``, in which each ``repr`` evaluates back."""
    return {value.__name__: value for value in _VALUES}
