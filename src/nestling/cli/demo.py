"""``nestling demo``."""

from __future__ import annotations

from collections.abc import Sequence

from nestling.cli.parser import Parser
from nestling.demo.config import FULL, QUICK, DemoConfig


def run(arguments: Sequence[str]) -> int:
    """Run the demonstration, write its report and print what came out; see ``nestling demo --help``."""
    parser = Parser(
        "demo",
        "[options]",
        "Train a small model with a memory and a transformer of equal size on the source of Python's standard library, let "
        "both read a package that they have not seen, and write a report. About five minutes on two cores.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a toy of a few seconds, which shows nothing but that it works"
    )
    parser.add_class_arguments(DemoConfig)
    values = parser.read(arguments)
    config = parser.build(DemoConfig, values)

    from nestling.demo.run import demo  # torch
    from nestling.demo.summary import show

    results, page = demo(config, QUICK if values.quick else FULL)
    show(results, page)
    return 0
