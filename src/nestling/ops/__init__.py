"""Memories along tokens: the same mathematics as ``core``, over (batch, heads, tokens, width)."""

from nestling.ops.buffered import Buffered, settled
from nestling.ops.drive import Chunk, begin
from nestling.ops.kernels.path import Kernels
from nestling.ops.layout import Marks
from nestling.ops.scan import Path, Reference, Resumed, scan
from nestling.ops.stretches import stretches
from nestling.ops.watch import watch

__all__ = [
    "Buffered",
    "Chunk",
    "Kernels",
    "Marks",
    "Path",
    "Reference",
    "Resumed",
    "begin",
    "scan",
    "settled",
    "stretches",
    "watch",
]
