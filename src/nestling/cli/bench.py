"""``nestling bench``."""

from __future__ import annotations

from collections.abc import Sequence

from nestling.bench.config import BenchConfig
from nestling.cli.parser import Parser


def run(arguments: Sequence[str]) -> int:
    """Measure recipes and print the table; see ``nestling bench --help``."""
    parser = Parser(
        "bench",
        "recipes [NAME ...] [options]",
        "Train every recipe alike, at size tiny and on one thread, and tabulate parameters, state, speed of training and "
        "decoding, and bits per byte. Stopped, it goes on with the same command.",
    )
    parser.add_argument("what", choices=["recipes"], help="what to measure")
    parser.add_argument("recipes", nargs="*", default=[], help="recipes to measure; none: all")
    parser.add_class_arguments(BenchConfig, skip={"recipes"})
    config = parser.build(BenchConfig, parser.read(arguments))

    from nestling.bench.run import bench  # torch
    from nestling.bench.table import markdown

    rows = bench(config)
    print(markdown(rows, config))
    return 1 if any(row.failure for row in rows) else 0
