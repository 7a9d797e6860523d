"""What an optimizer remembers, as components of the nested system (NL §4): each a memory of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Adaptive, Every, Hold, Momentum, Rule
from nestling.nn import LevelRow
from nestling.optim import Optimizer, Scheduled, Split

_TORCH = {"Adam": ("exp_avg", "exp_avg_sq"), "AdamW": ("exp_avg", "exp_avg_sq"), "SGD": ("momentum_buffer",)}
"""What optimizers of torch remember of a weight, before they have made a step that would show it"""

_NAMES = {"exp_avg": "first moment", "exp_avg_sq": "second moment", "momentum_buffer": "momentum"}


def memories(optimizer: torch.optim.Optimizer) -> list[LevelRow]:
    """One row for each memory of each kind and frequency, those of all weights together.

    >>> weight = torch.nn.Parameter(torch.zeros(3, 2))
    >>> [(row.name, row.period, row.parameters) for row in memories(torch.optim.AdamW([weight]))]
    [('AdamW.first moment', 1, 6), ('AdamW.second moment', 1, 6)]
    """
    inner, rows = optimizer, []
    moved: dict[Tensor, float] = {}
    if isinstance(optimizer, Scheduled):
        inner, moved = optimizer.inner, {parameter: level.period for parameter, level in optimizer.levels.items()}
        rows = _gathered(moved)
    for group in inner.param_groups:
        part = inner.parts[group["part"]] if isinstance(inner, Split) else inner
        for every in sorted({moved.get(parameter, 1) for parameter in group["params"]} - {inf}):
            own = {**group, "params": [p for p in group["params"] if moved.get(p, 1) == every]}
            found = _ours(part, own) if isinstance(part, Optimizer) else _of_torch(part, own)
            for name, period, rule, count, width in found:
                rows.append(_row(f"{name_of(part)}.{name}", every * period, rule, count, width))
    return _together(rows)


def name_of(optimizer: torch.optim.Optimizer) -> str:
    """What to call it: what moves the weights, be it a part of another.

    >>> from nestling import optim
    >>> name_of(optim.split(torch.nn.Linear(2, 2)))
    'M3 and AdamW'
    """
    match optimizer:
        case Scheduled(inner=inner):
            return name_of(inner)
        case Split(parts=parts):
            return " and ".join(name_of(part) for part in parts)
        case _:
            return type(optimizer).__name__


def parts(rule: Rule, period: float = 1) -> Iterator[tuple[Rule, float]]:
    """The rules inside ``rule`` that remember something, each with the steps between its updates.

    >>> from nestling.core import Chain, NewtonSchulz, Sum
    >>> [(type(part).__name__, every) for part, every in parts(Sum((Momentum(0.9), Hold(16, Chain((Momentum(0.9), NewtonSchulz()))))))]
    [('Momentum', 1), ('Momentum', 16), ('Hold', 16)]
    """
    rules = [each for value in vars(rule).values() for each in (value if isinstance(value, tuple) else (value,))]
    rules = [each for each in rules if isinstance(each, Rule)]
    slower = period * rule.period if isinstance(rule, Every | Hold) else period
    for each in rules:
        yield from parts(each, slower)
    if isinstance(rule, Every):
        yield rule, period  # gathers at every step
    elif isinstance(rule, Hold):
        yield rule, slower
    elif not rules and any(leaf.dim() for leaf in tree.leaves(rule.init(torch.zeros(2, 2)))):
        yield rule, period  # beside a count of steps


def _ours(optimizer: Optimizer, group: dict[str, Any]) -> Iterator[tuple[str, float, str, int, int]]:
    for part, period in parts(optimizer.rule(group)):
        count = sum(parameter.numel() for parameter in group["params"])
        width = sum(_bytes(part, parameter) for parameter in group["params"])
        said = f"{type(part).__name__}({part.period})" if isinstance(part, Every | Hold) else repr(part)
        yield _called(part), period, said, count, width


def _bytes(part: Rule, parameter: Tensor) -> int:
    match part:
        case Every() | Hold():
            return parameter.numel() * max(parameter.element_size(), 4)
        case _:
            return tree.nbytes(part.init(torch.zeros(parameter.shape, dtype=parameter.dtype, device="meta")))


def _called(part: Rule) -> str:
    match part:
        case Momentum():
            return "momentum"
        case Adaptive():
            return "second moment"
        case Every():
            return "gathered gradient"
        case Hold():
            return "held update"
        case _:
            return type(part).__name__


def _of_torch(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Iterator[tuple[str, float, str, int, int]]:
    kind = type(optimizer).__name__
    known = () if kind == "SGD" and not group["momentum"] else _TORCH.get(kind)
    if known is None:
        state = optimizer.state.get(group["params"][0], {})
        known = tuple(name for name, leaf in state.items() if isinstance(leaf, Tensor) and leaf.dim())
    for name in known:
        count = sum(parameter.numel() for parameter in group["params"])
        width = sum(parameter.numel() * parameter.element_size() for parameter in group["params"])
        yield _NAMES.get(name, name), 1, "running mean", count, width


def _gathered(moved: dict[Tensor, float]) -> list[LevelRow]:
    held = [parameter for parameter, period in moved.items() if period != inf]
    width = sum(parameter.numel() * parameter.element_size() for parameter in held)
    return [_row("Scheduled.gathered gradient", 1, "Σ g", sum(p.numel() for p in held), width)] if held else []


def _row(name: str, period: float, rule: str, parameters: int, state_bytes: int) -> LevelRow:
    return LevelRow(
        name=name,
        period=period,
        unit="step",
        context="gradients of the weights",
        objective="compress past gradients",
        rule=rule,
        parameters=parameters,
        state_bytes=state_bytes,
        transfer="generation (the weights make its gradients)",
    )


def _together(rows: list[LevelRow]) -> list[LevelRow]:
    """Rows that differ in the weights alone are one."""
    found: dict[tuple[str, float, str], LevelRow] = {}
    for row in rows:
        key = (row.name, row.period, row.rule)
        before = found.get(key)
        count, width = (before.parameters, before.state_bytes) if before else (0, 0)
        found[key] = replace(row, parameters=row.parameters + count, state_bytes=row.state_bytes + width)
    return list(found.values())
