"""``nestling reproduce``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from nestling.cli.parser import Parser
from nestling.errors import NestlingError
from nestling.reproduce.config import AutomataConfig

EXPERIMENTS = ("automata",)


def run(arguments: Sequence[str]) -> int:
    """Make a table of a paper anew; see ``nestling reproduce automata --help``."""
    match list(arguments):
        case ["automata", *rest]:
            return _automata(rest)
        case [("-h" | "--help")]:
            print(f"usage: nestling reproduce <experiment> [options]\n\nexperiments:\n  automata  {_SUMMARY}")
            return 0
        case [name, *_]:
            raise NestlingError(f"unknown experiment {name!r}: use one of {', '.join(EXPERIMENTS)}.")
        case _:
            raise NestlingError(f"reproduce needs the name of an experiment: use one of {', '.join(EXPERIMENTS)}.")


_SUMMARY = "formal languages: hope, a transformer and the linear family on table 5 of Nested Learning"


def _automata(arguments: Sequence[str]) -> int:
    parser = Parser(
        "reproduce automata",
        "[options]",
        "Train every model on every formal language, ask about longer words, and write the table. Every finished cell is kept: "
        "the same command goes on where it was stopped.",
    )
    parser.add_class_arguments(AutomataConfig)
    values = parser.read(arguments, ("models", "languages"))
    config = parser.build(AutomataConfig, values)

    from nestling.reproduce import automata, table  # torch

    cells = automata.run(config, tell=lambda line: print(line, file=sys.stderr, flush=True))
    text = table.markdown(cells, config, machine())
    Path(config.out, "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def machine() -> str:
    """What computed: processor, system, threads."""
    import torch

    return f"CPU {platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
