"""Nestling: models that keep learning. Nested Learning (Hope), Titans and MIRAS in PyTorch, on one abstraction.

Names are imported from their floors when they are first used, so that the command line answers before torch is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # From where they are defined: a package and the function of its name confuse type checkers.
    # ruff: noqa: F401
    from nestling import core, data, eval, nn, ops, optim, stream, train, tree
    from nestling.core import *  # noqa: F403
    from nestling.errors import NestlingError
    from nestling.models import LM, Config
    from nestling.models.describe import NestedSystem, describe
    from nestling.models.in_context import InContext
    from nestling.ops import Chunk, Marks, Reference, Resumed, begin
    from nestling.ops.scan import scan
    from nestling.recipes.build import build, recipes
    from nestling.stream import Sampler, Session
    from nestling.train.checkpoint import load_model
    from nestling.train.config import TrainConfig

# `recipes` is a package that can be called: it lists its names.
_PACKAGES = ("core", "data", "eval", "nn", "ops", "optim", "recipes", "stream", "train", "tree")

_CORE = (
    *("Above", "Adaptive", "Apply", "Architecture", "Beside", "Chain", "ChiSquared", "Clip", "Constant", "Decay"),
    *("Delta", "Descend", "DotProduct", "ElasticNet", "Erase", "Every", "FDivergence", "GELU", "GatedDelta"),
    *("GatedMLP", "Gates", "HeldLq", "Hellinger", "Hold", "Huber", "InputDelta", "KL", "KeyDecay", "L2", "Lag"),
    *("Level", "Logistic", "Lp", "Lq", "LqLink", "MLP", "Matrix", "Memory", "MemoryState", "MixedHuber", "Momentum"),
    *("NewtonSchulz", "NormHuber", "Normed", "Objective", "Omega", "Pairs", "Quantile", "Residual", "Retention"),
    *("Returning", "ReverseKL", "Rule", "Scale", "SiLU", "SoftThreshold", "Sum", "Surprise", "UnitDelta"),
    *("ValueShift", "Weights", "linear", "parse", "tape", "values"),
)

_HOMES = {
    **dict.fromkeys(_CORE, "core"),
    **dict.fromkeys(("Chunk", "Marks", "Reference", "Resumed", "begin", "scan"), "ops"),
    **dict.fromkeys(("LM", "Config", "InContext", "NestedSystem", "describe"), "models"),
    **dict.fromkeys(("Sampler", "Session"), "stream"),
    "NestlingError": "errors",
    "build": "recipes",
    "load_model": "train.checkpoint",
    "TrainConfig": "train.config",
}

__all__ = [*_PACKAGES, *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"nestling.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'nestling' has no attribute {name!r}")
    value = vars(import_module(f"nestling.{_HOMES[name]}"))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
