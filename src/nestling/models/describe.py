"""A model as a nested system: its components ordered by how often they are updated (NL definitions 2 and 3)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import nestling.tree as tree
from nestling.models.config import Config
from nestling.models.lm import LM
from nestling.nn import LevelRow


@dataclass(frozen=True)
class NestedSystem:
    """The levels of a model, the most frequent first. ``str()`` is a table, ``json()`` the same for machines."""

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

    def __str__(self) -> str:
        """A table, one row a level."""
        head = ("level", "updated every", "context flow", "objective", "rule", "numbers", "state")
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


def describe(model: LM) -> NestedSystem:
    """Order the components of ``model`` by frequency.

    >>> import nestling
    >>> [level.name for level in describe(nestling.build("titans_lmm", dim=32, layers=2, heads=2)).levels]
    ['blocks.*.mixer.memory', 'weights']
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = _merge([(row.name, replace(row, name="")) for row in model.levels()])
    outer = LevelRow(
        name="weights",
        period=1,
        unit="step",
        context="batches of the training corpus",
        objective="cross entropy of the next token",
        rule="AdamW",
        parameters=parameters,
        state_bytes=0,
        transfer="backpropagation",
    )
    ordered = sorted([*rows, outer], key=lambda row: (row.unit == "step", row.period))
    # More than the levels hold: what convolutions still see, and how far a window is filled, is state too.
    held = tree.nbytes(model.initial_state(1))
    return NestedSystem(title(model.config), parameters, held, tuple(ordered))


def _merge(rows: list[tuple[str, LevelRow]]) -> list[LevelRow]:
    """Components that differ only in the block they stand in are one row."""
    groups: dict[tuple[Any, ...], list[tuple[str, LevelRow]]] = {}
    for path, row in rows:
        groups.setdefault(tuple(asdict(row).values()), []).append((path, row))
    merged = []
    for group in groups.values():
        path, row = group[0]
        name = path if len(group) == 1 else f"blocks.*.{path.split('.', 2)[2]}"
        count = len(group)
        merged.append(replace(row, name=name, parameters=row.parameters * count, state_bytes=row.state_bytes * count))
    return merged


def _cells(level: LevelRow) -> tuple[str, ...]:
    if level.period == float("inf"):
        every = "never"
    else:
        every = level.unit if level.period == 1 else f"{level.period:,g} {level.unit}s"
    numbers = f"{level.parameters:,}"
    return level.name, every, level.context, level.objective, level.rule, numbers, size(level.state_bytes)


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
