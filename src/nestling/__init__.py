"""Nestling: models that keep learning. Nested Learning (Hope), Titans and MIRAS in PyTorch, on one abstraction."""

from __future__ import annotations

from nestling import core, data, nn, ops, tree
from nestling.core import *  # noqa: F403
from nestling.core import __all__ as _core
from nestling.errors import NestlingError
from nestling.models import LM, Config, NestedSystem, describe
from nestling.ops import Chunk, Marks, Reference, begin, scan
from nestling.recipes import build, recipes

__all__ = [
    *_core,
    "LM",
    "Chunk",
    "Config",
    "Marks",
    "NestedSystem",
    "NestlingError",
    "Reference",
    "begin",
    "build",
    "core",
    "data",
    "describe",
    "nn",
    "ops",
    "recipes",
    "scan",
    "tree",
]
