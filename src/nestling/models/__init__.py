"""Whole models: configuration, language model, and the table of levels."""

from nestling.models.config import Config
from nestling.models.describe import NestedSystem, describe
from nestling.models.in_context import InContext
from nestling.models.lm import LM

__all__ = ["LM", "InContext", "Config", "NestedSystem", "describe"]
