"""``nestling bench``."""

from __future__ import annotations

from collections.abc import Sequence

from nestling.bench.config import BenchConfig, PathsConfig
from nestling.cli.parser import Parser


def run(arguments: Sequence[str]) -> int:
    """Measure recipes, or paths of a layer, and print the table; see ``nestling bench --help``."""
    return _paths(arguments) if "paths" in arguments[:1] else _recipes(arguments)


def _recipes(arguments: Sequence[str]) -> int:
    parser = Parser(
        "bench",
        "recipes [NAME ...] [options] | paths [options]",
        "recipes: train every recipe alike, at size tiny and on one thread, and tabulate parameters, state, speed of training and "
        "decoding, and bits per byte. paths: how fast a memory layer is, by every way to compute it (nestling bench paths --help). "
        "Stopped, both go on with the same command.",
    )
    parser.add_argument("what", choices=["recipes", "paths"], help="what to measure")
    parser.add_argument("recipes", nargs="*", default=[], help="recipes to measure; none: all")
    parser.add_class_arguments(BenchConfig, skip={"recipes"})
    config = parser.build(BenchConfig, parser.read(arguments))

    from nestling.bench.run import bench  # torch
    from nestling.bench.table import markdown

    rows = bench(config)
    print(markdown(rows, config))
    return 1 if any(row.failure for row in rows) else 0


def _paths(arguments: Sequence[str]) -> int:
    parser = Parser(
        "bench paths",
        "[options]",
        "Time a memory layer by every way to compute it: tokens per second, share of what matrix products reach on this machine "
        "at this moment, peak memory, time to compile; beside another revision (--base) and titans-pytorch (--peer-python). "
        "Stopped, it goes on with the same command.",
    )
    parser.add_class_arguments(PathsConfig)
    config = parser.build(PathsConfig, parser.read(arguments[1:], LISTS))

    from nestling.bench.paths import bench_paths, named

    target = named(config)  # by the day on which it begins
    results = bench_paths(config)
    print(target.with_suffix(".md").read_text("utf-8"))
    return 1 if any("parity" in result.error for result in results) else 0


LISTS = ("paths", "whats", "heads", "chunks", "lengths", "dtypes")
