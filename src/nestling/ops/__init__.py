"""Memories along tokens: the same mathematics as ``core``, over (batch, heads, tokens, width)."""

from nestling.ops.scan import Chunk, Reference, begin, scan

__all__ = ["Chunk", "Reference", "begin", "scan"]
