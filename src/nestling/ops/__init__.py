"""Memories along tokens: the same mathematics as ``core``, over (batch, heads, tokens, width)."""

from nestling.ops.buffered import (
    Buffered,
    buffer,
    emptied,
    joined,
    last_read,
    scan_buffered,
    settled,
    without_waiting,
    written,
)
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
    "buffer",
    "emptied",
    "joined",
    "last_read",
    "scan",
    "scan_buffered",
    "settled",
    "stretches",
    "watch",
    "without_waiting",
    "written",
]
