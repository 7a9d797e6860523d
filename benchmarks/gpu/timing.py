"""Timing on a GPU by its own events, and on a processor by its clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, list[float]]:
    """The first run, in which kernels are compiled, and ``repeats`` more after two to warm up."""
    begun = time.perf_counter()
    work()
    _wait(device)
    first = time.perf_counter() - begun
    if device.type != "cuda":
        return first, [_clocked(work) for _ in range(repeats)]
    for _ in range(2):
        work()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in marks:
        start.record()
        work()
        end.record()
    _wait(device)
    return first, [start.elapsed_time(end) / 1e3 for start, end in marks]


def _clocked(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling(device: torch.device, size: int, repeats: int) -> float:
    """Multiplications and additions a second of a large matrix product in bfloat16 (float32 on a processor): the best of some."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    _, each = seconds(lambda: a @ b, device, repeats)
    return 2 * size**3 / min(each)


def middle(each: list[float]) -> float:
    """The median"""
    return statistics.median(each)
