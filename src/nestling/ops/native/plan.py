"""Tensors handed to the C program: what ``ops.periods`` calls a plan."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

import nestling.ops.periods as torch_periods
import nestling.tree as tree
from nestling.core.architecture import GELU, SiLU
from nestling.ops.coefficients import Ends
from nestling.ops.layers import Layers
from nestling.ops.native.library import DEEPEST, REALS, Job, library
from nestling.ops.periods import Given, Plan, States

ACTIVATIONS = {GELU: 0, SiLU: 1}

SHARE = 1.0
"""What products have made in the periods is stored where it takes no more than this times what states do."""


def planned(chain: Layers, given: Given, stride: int | None) -> Plan:
    """By the C program, or in torch: other devices, types, and widths that are no multiple of a register's.

    Raises:
        NestlingError: there is no C compiler, or it fails.
    """
    tensors = tree.leaves(given)
    plain = all(each.device.type == "cpu" and each.dtype == tensors[0].dtype for each in tensors)
    if (
        not plain
        or tensors[0].dtype not in REALS
        or len(chain.names) > DEEPEST
        or type(chain.activation) not in ACTIVATIONS
    ):
        return torch_periods.planned(chain, given, stride)
    if any(width % library(tensors[0].dtype).lanes() for width in _widths(given)):
        return torch_periods.planned(chain, given, stride)
    count, memories = given.inputs.shape[:2]
    # The least memory: a state of each memory and group is stored, and a thread computes one memory's group again.
    least = math.isqrt(count * memories // _threads(memories))
    return Native(chain, max(1, min(count, least if stride is None else stride)))


def _threads(memories: int) -> int:
    return max(1, min(torch.get_num_threads(), memories))


def _widths(given: Given) -> list[int]:
    return [given.weights[0].shape[-1], *(weight.shape[-2] for weight in given.weights)]


@dataclass(frozen=True)
class Native:
    """A thread for each memory; what is stored are states, and what lies between is computed again for its derivative.

    What products have made in them is stored too where states, those that are computed again with them, take as much (``SHARE``).
    """

    chain: Layers
    stride: int
    """Periods between states that are stored"""

    def forward(self, given: Given, keeps: bool) -> tuple[tuple[Tensor, ...], tuple[States, list[Tensor]]]:
        """See ``Plan``."""
        given = tree.map(torch.Tensor.contiguous, given)
        count, memories, length = given.inputs.shape[:3]
        job, _ = self._job(given, self.stride if keeps else count)
        y = given.values.new_empty(count, memories, length - given.values.shape[2], given.values.shape[-1])
        after, anchors = ([torch.empty_like(each) for each in given.weights] for _ in range(2))
        moved = [torch.empty_like(each) for each in given.traces]
        groups = range(self.stride, count, self.stride) if keeps else ()
        kept, kept_traces = (
            [each.new_empty(len(groups), *each.shape) for each in state] for state in (given.weights, given.traces)
        )
        records: list[Tensor] = []
        if keeps:
            size = library(y.dtype).record_size(job) * count * memories
            state = tree.nbytes((given.weights, given.traces))
            room = state * len(groups) + state // memories * (self.stride - 1) * _threads(memories)
            if size * y.element_size() <= SHARE * room:
                records.append(y.new_empty(size))
        job.y, job.records = y.data_ptr(), records[0].data_ptr() if records else None
        _fill(job, after=after, anchor=anchors, moved=moved, kept=kept, kept_trace=kept_traces)
        _run(library(y.dtype).forward, job, y, back=False)
        return (y, *after, *anchors, *moved), ((kept, kept_traces), records)

    def backward(
        self, given: Given, kept: tuple[States, list[Tensor]], read: Tensor, after: tuple[Tensor, ...]
    ) -> Given:
        """See ``Plan``."""
        given, read = tree.map(torch.Tensor.contiguous, given), read.contiguous()
        width, ((weights, traces), records) = len(given.weights), kept
        job, given_rows = self._job(given, self.stride)
        grads = [each.clone(memory_format=torch.contiguous_format) for each in after]
        by, anchors, by_traces = grads[:width], grads[width : 2 * width], grads[2 * width :]
        rows = [tree.map(torch.empty_like, row) for row in given_rows]
        for i, row in enumerate(rows):
            if row.carried is not None and row.writes is None:
                # W' = βW + S': what meets W' meets S'.
                by_traces[i].add_(by[i])
        inputs, values = torch.empty_like(given.inputs), torch.empty_like(given.values)
        job.records = records[0].data_ptr() if records else None
        job.by_y, job.by_inputs, job.by_values = (each.data_ptr() for each in (read, inputs, values))
        _fill(job, kept=weights, kept_trace=traces, by=by, by_trace=by_traces, by_anchor=anchors, **_named("by_", rows))
        _run(library(read.dtype).backward, job, read, back=True)
        shared = len(given.rows) < width
        found = [tree.map(lambda *leaves: torch.stack(leaves).sum(0), *rows)] if shared else rows
        return Given(by, by_traces, inputs, values, found)

    def _job(self, given: Given, stride: int) -> tuple[Job, list[Ends]]:
        """What both ways need, and the rows of each weight."""
        job, width = Job(), len(given.weights)
        rows = given.rows * width if len(given.rows) == 1 else given.rows
        job.chain.depth, job.chain.activation = width, ACTIVATIONS[type(self.chain.activation)]
        job.chain.keys = given.values.shape[2]
        job.chain.queries = given.inputs.shape[2] - job.chain.keys
        job.chain.residual, job.chain.normed = self.chain.residual, self.chain.eps is not None
        job.chain.eps = self.chain.eps or 0.0
        for i, each in enumerate(_widths(given)):
            job.chain.widths[i] = each
        job.periods, job.memories, job.stride = given.inputs.shape[0], given.inputs.shape[1], stride
        job.inputs, job.values = given.inputs.data_ptr(), given.values.data_ptr()
        _fill(job, weight=given.weights, trace=given.traces, **_named("", rows))
        return job, rows


def _named(prefix: str, rows: list[Ends]) -> dict[str, list[Tensor | None]]:
    """The rows of each weight by the names that they have in the program."""
    carried = [row.carried for row in rows]
    found: dict[str, list[Tensor | None]] = {
        "start": [row.start for row in rows],
        "writes": [row.writes for row in rows],
        "blend": [row.trace for row in rows],
        "carry": [None if each is None else each.start for each in carried],
        "carried": [None if each is None else each.writes for each in carried],
    }
    return {prefix + name: each for name, each in found.items()}


def _fill(job: Job, **tensors: Sequence[Tensor | None]) -> None:
    """By name, what each weight is given: pointers, of which the caller keeps the tensors."""
    for name, each in tensors.items():
        for weight, tensor in zip(job.weights, each, strict=False):
            setattr(weight, name, None if tensor is None else tensor.data_ptr())


def _run(work: Callable[..., None], job: Job, like: Tensor, back: bool) -> None:
    """All memories, as many at once as torch has threads."""
    size = library(like.dtype).scratch_size(job, back)
    threads = _threads(job.memories)
    bounds = [job.memories * i // threads for i in range(threads + 1)]

    def some(i: int) -> None:
        scratch = like.new_empty(size)
        work(ctypes.byref(job), bounds[i], bounds[i + 1], scratch.data_ptr())

    if threads == 1:
        return some(0)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(threads)))
