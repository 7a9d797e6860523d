"""A model as a nested system: its components ordered by how often they are updated (NL definitions 2 and 3)."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import nestling.tree as tree
from nestling.core import Level
from nestling.models.config import Config
from nestling.models.lm import LM
from nestling.models.remembered import memories, name_of
from nestling.nn import LevelRow
from nestling.nn.cms import levels_of
from nestling.optim import Scheduled


@dataclass(frozen=True)
class NestedSystem:
    """The components of a model, the most frequent first, each with the number of its ``level``.

    ``str()`` is a table, ``json()`` the same for machines, ``plot(path)`` a picture.
    """

    model: str
    parameters: int
    state_bytes: int
    levels: tuple[LevelRow, ...]

    def json(self) -> str:
        """The system as JSON; a period of inf is null."""
        rows = [
            {**asdict(level), "period": None if level.period == float("inf") else level.period} for level in self.levels
        ]
        whole = {"model": self.model, "parameters": self.parameters, "state_bytes": self.state_bytes, "levels": rows}
        return json.dumps(whole, indent=2, ensure_ascii=False)

    def plot(self, path: str | Path, step: float = 4096) -> Path:
        """Draw the system to an SVG or PNG file; a step of training is drawn as so many tokens."""
        from nestling.models.picture import draw  # matplotlib

        return draw(self, path, step)

    def __str__(self) -> str:
        """A table, one row a component."""
        head = (
            "level",
            "component",
            "updated every",
            "context flow",
            "objective",
            "rule",
            "numbers",
            "state",
            "transfer",
        )
        rows = [head, *(_cells(level) for level in self.levels)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        title = f"{self.model}: {self.parameters:,} parameters, {size(self.state_bytes)} of state per sequence"
        return "\n".join((title, "", lines[0], "  ".join("-" * width for width in widths), *lines[1:]))


def title(config: Config) -> str:
    """The recipe and its size, and whether anything but the vocabulary is not what that size sets.

    >>> import nestling
    >>> title(nestling.build("hope").config), title(nestling.build("hope", layers=1).config)
    ('hope (tiny)', 'hope (tiny, changed)')
    """
    from nestling.recipes import SIZES, configure, recipes  # recipes are made of models

    named = config.recipe in recipes() and config.size in SIZES
    as_named = not named or config == configure(config.recipe, config.size, config.vocab_size)
    return f"{config.recipe} ({config.size})" if as_named else f"{config.recipe} ({config.size}, changed)"


def describe(model: LM, optimizer: torch.optim.Optimizer | None = None) -> NestedSystem:
    """Order all that is updated by frequency: memories, levels of weights, and what an optimizer remembers.

    A level is all that has one frequency, but for what needs the state of another at the same time, which is one level deeper (NL
    definition 2): weights stand below the momentum that moves them. Steps of training are slower than any number of tokens.
    Without ``optimizer`` the weights are those of ``nestling train``, and its memories are left out.

    >>> import nestling
    >>> [(row.level, row.name) for row in describe(nestling.build("titans_lmm", dim=32, layers=2, heads=2)).levels]
    [(1, 'blocks.*.mixer.memory'), (2, 'weights')]
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = [*_merge([(row.name, replace(row, name="")) for row in model.levels()]), *_trained(model, optimizer)]
    ordered = sorted(rows, key=_order)
    places = sorted({_order(row) for row in rows})
    numbered = tuple(replace(row, level=1 + places.index(_order(row))) for row in ordered)
    # More than the levels hold: what convolutions still see, and how far a window is filled, is state too.
    held = tree.nbytes(model.initial_state(1))
    return NestedSystem(title(model.config), parameters, held, numbered)


def _order(row: LevelRow) -> tuple[bool, float, int]:
    """A ≻ B: the more frequent first, of equally frequent ones the one whose state the other needs (NL definition 2)"""
    return row.unit == "step", row.period, row.depth


def _trained(model: LM, optimizer: torch.optim.Optimizer | None) -> list[LevelRow]:
    """The weights by the level that owns them, and the memories of the optimizer."""
    remembered = [] if optimizer is None else memories(optimizer)
    rule = "AdamW" if optimizer is None else name_of(optimizer)
    levels = levels_of(model) if optimizer is None or isinstance(optimizer, Scheduled) else []
    everything = Level("weights", 1)
    owned = dict.fromkeys((*levels, everything), 0)
    for name, parameter in model.named_parameters():
        owned[next((level for level in levels if level.owner(name)), everything)] += parameter.numel()
    rows = []
    for level, count in owned.items():
        learnt = "" if level.reset is None else ", initialisation (by the next slower level)"
        row = LevelRow(
            name="",
            period=level.period,
            unit="step",
            context="batches of the training corpus",
            objective="cross entropy of the next token",
            rule=rule,
            parameters=count,
            state_bytes=0,
            transfer=f"backpropagation{learnt}",
            depth=1 if remembered else 0,
        )
        rows.append((level.name, row))
    return [*_merge(rows), *remembered]


def _merge(rows: list[tuple[str, LevelRow]]) -> list[LevelRow]:
    """Components that differ only in the block they stand in are one row."""
    groups: dict[tuple[Any, ...], list[tuple[str, LevelRow]]] = {}
    for path, row in rows:
        groups.setdefault((_anywhere(path), *asdict(row).values()), []).append((path, row))
    merged = []
    for group in groups.values():
        path, row = group[0]
        name = path if len(group) == 1 else _anywhere(path)
        count = len(group)
        merged.append(replace(row, name=name, parameters=row.parameters * count, state_bytes=row.state_bytes * count))
    return merged


def _anywhere(path: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", path)


def _cells(level: LevelRow) -> tuple[str, ...]:
    if level.period == float("inf"):
        every = "never"
    else:
        every = level.unit if level.period == 1 else f"{level.period:,g} {level.unit}s"
    numbers = f"{level.parameters:,}"
    cells = (every, level.context, level.objective, level.rule, numbers, size(level.state_bytes), level.transfer)
    return str(level.level), level.name, *cells


def size(count: int) -> str:
    """Bytes for people.

    >>> size(0), size(1536)
    ('-', '1.5 KiB')
    """
    if count == 0:
        return "-"
    value, unit = float(count), 0
    while value >= 1024 and unit < 3:
        value, unit = value / 1024, unit + 1
    return f"{value:,.{1 if unit else 0}f} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
