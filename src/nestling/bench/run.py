"""A benchmark of recipes, one after another; stopped and called again it goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nestling.atomic import write_text
from nestling.bench.config import BenchConfig
from nestling.bench.measure import Row, key, measure
from nestling.bench.table import include, load, markdown, save
from nestling.recipes import recipes


def bench(config: BenchConfig) -> list[Row]:
    """Measure what is not measured yet, write the table after every recipe, and return the rows in the order of ``recipes()``.

    Raises:
        NestlingError: a recipe is unknown, or a setting or a file is not usable.
        SystemExit: a signal has stopped it; the same call goes on.
    """
    folder = Path(config.out)
    wanted = {name: key(name, config) for name in config.recipes or recipes()}
    known = {name: key(name, config) for name in recipes()}
    rows = {row.recipe: row for row in load(folder / "recipes.json") if known.get(row.recipe) == row.key}
    missing = [name for name in wanted if name not in rows]
    with _one_thread():
        for number, name in enumerate(missing, 1):
            print(f"[{number}/{len(missing)}] {name}", file=sys.stderr, flush=True)
            rows[name] = measure(name, config)
            _write(config, rows)
    if not missing:
        _write(config, rows)
    return _ordered(rows)


def _write(config: BenchConfig, rows: dict[str, Row]) -> None:
    folder, ordered = Path(config.out), _ordered(rows)
    table = markdown(ordered, config)
    save(folder / "recipes.json", ordered, config)
    write_text(folder / "recipes.md", table + "\n")
    if config.page is not None:
        include(Path(config.page), table)


def _ordered(rows: dict[str, Row]) -> list[Row]:
    return [rows[name] for name in recipes() if name in rows]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small operations wait for threads that are not running; and figures of one thread can be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
