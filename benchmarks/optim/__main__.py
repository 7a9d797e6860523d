"""``python -m benchmarks.optim [toy] [orthogonal] [compare] [continual]``: all of them where none is named.

What was computed lies in ``benchmarks/results/optim-*.jsonl`` and is not computed again; delete a file to begin anew.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.optim import compare, continual, orthogonal, toy

EXPERIMENTS = {"toy": toy.main, "orthogonal": orthogonal.main, "compare": compare.main, "continual": continual.main}


def main() -> None:
    """The experiments that were named, one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optim", description=__doc__)
    parser.add_argument("experiments", nargs="*", metavar="experiment", help=", ".join(EXPERIMENTS))
    names = parser.parse_args().experiments or list(EXPERIMENTS)
    if unknown := set(names) - set(EXPERIMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    torch.set_num_threads(1)
    for name in names:
        EXPERIMENTS[name]()


if __name__ == "__main__":
    main()
