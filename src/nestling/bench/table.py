"""The results of a benchmark as a file to go on from, and as a table for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from nestling.atomic import write_text
from nestling.bench.config import BenchConfig
from nestling.bench.measure import Row
from nestling.errors import NestlingError
from nestling.models.describe import size

BEGIN, END = "<!-- bench recipes -->", "<!-- bench recipes end -->"
"""The lines of a page between which the table stands."""


def load(path: Path) -> list[Row]:
    """The rows of a recipes.json; none where there is no file.

    Raises:
        NestlingError: the file is not one that ``save`` wrote.
    """
    if not path.exists():
        return []
    names = {field.name for field in fields(Row)}
    try:
        return [Row(**{name: row[name] for name in names}) for row in json.loads(path.read_text("utf-8"))["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise NestlingError(f"{path} is no table of recipes ({error!r}): move it away to measure anew.") from error


def save(path: Path, rows: Sequence[Row], config: BenchConfig) -> None:
    """Write the rows with the settings and the machine."""
    whole = {"settings": config.settings, "machine": machine(), "rows": [vars(row) for row in rows]}
    write_text(path, json.dumps(whole, indent=2) + "\n")


def machine() -> str:
    """What the figures belong to."""
    return f"{os.cpu_count()}-core {platform.machine()}, one thread, torch {torch.__version__}"


def markdown(rows: Sequence[Row], config: BenchConfig) -> str:
    """The table, and how it was made.

    >>> print(markdown([Row("hope", "", 1000, 2048, 300.0, 20.0, 8.0, 3.0, 3.1, 1.0)], BenchConfig()).splitlines()[-1])
    | `hope` | 1,000 | 2.0 KiB | 300 | 20 | 8.00 | 3.00 | 3.100 |
    """
    kind = "bytes" if config.vocab_size == 256 else f"BPE of {config.vocab_size:,}"
    lines = [
        f"`nestling bench recipes{_options(config)}`: size `tiny`, {config.steps:,} steps of {config.batch} × {config.length} tokens ({kind}) of the "
        f"standard library's source, AdamW {config.lr:g}, seed {config.seed}; {machine()}. One run each, no spread: "
        "small differences say nothing.",
        "",
        "| recipe | parameters | state of a sequence | training, tokens/s | decoding, tokens/s "
        "| bits/byte at first | last tenth | held out |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
    ]
    trouble = [f"- `{row.recipe}` stopped: {row.failure}" for row in rows if row.failure]
    return "\n".join([*lines, *(["", *trouble] if trouble else [])])


def _options(config: BenchConfig) -> str:
    """The options that give these settings."""
    usual = BenchConfig().settings
    changed = {name: value for name, value in config.settings.items() if value != usual[name]}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())


def _line(row: Row) -> str:
    cells = (
        f"`{row.recipe}`",
        f"{row.parameters:,}",
        size(row.state_bytes),
        _figure(row.training, ",.0f"),
        _figure(row.decoding, ",.0f"),
        _figure(row.before, ".2f"),
        _figure(row.trained, ".2f"),
        _figure(row.valid, ".3f"),
    )
    return f"| {' | '.join(cells)} |"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def include(page: Path, table: str) -> None:
    """Put ``table`` between the two lines of ``page``.

    Raises:
        NestlingError: the page is missing or has no such lines.
    """
    text = page.read_text("utf-8") if page.is_file() else ""
    head, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, tail = rest.partition(f"{END}\n")
    if not (begin and end):
        raise NestlingError(f"{page} has no lines {BEGIN} and {END}: add them where the table is to stand.")
    write_text(page, f"{head}{begin}\n{table}\n\n{end}{tail}")
