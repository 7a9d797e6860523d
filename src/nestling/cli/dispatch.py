"""From arguments to a command, and from what happens there to an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from nestling.errors import NestlingError

COMMANDS = {
    "demo": "train a small model and a transformer, let them read an unseen package, write a report",
    "train": "train a recipe on text, or go on with a run",
    "generate": "continue a text with a trained model",
    "eval": "perplexity and bits per byte of a trained model, by position in the stream",
    "bench": "every recipe trained alike: parameters, state, speed, bits per byte",
    "reproduce": "make a table of a paper anew: automata",
    "describe": "the levels of a model: what is updated, and how often",
}
"""Every command, in the order of ``--help``; each is ``run(arguments) -> exit code`` in a module of its name."""

TRACEBACK = "NESTLING_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of ``arguments`` (default: those of the process) and return its exit code.

    0: done. 1: an error that nobody foresaw. 2: an error of what was asked, said in one line. 130: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return _guarded(lambda: _run(given))


def _run(arguments: list[str]) -> int:
    match arguments:
        case ["-h" | "--help", *_]:
            print(_help())
            return 0
        case ["-V" | "--version", *_]:
            print(f"nestling {_version()}")
            return 0
        case []:
            print(_help(), file=sys.stderr)
            return 2
        case [name, *rest] if name in COMMANDS:
            return int(import_module(f"nestling.cli.{name}").run(rest))
    name = arguments[0]
    near = get_close_matches(name, COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(COMMANDS)}."
    raise NestlingError(f"unknown command {name!r}: {hint}")


def _guarded(work: Callable[[], int]) -> int:
    try:
        status = work()
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # what --help and --print-config end with
        return int(stop.code or 0)
    except NestlingError as error:
        return _said(2, str(error))
    except KeyboardInterrupt:
        return _said(130, "interrupted")
    except BrokenPipeError:
        # Who reads our output has left; what is still buffered must not complain when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        return _said(1, f"unexpected {type(error).__name__}: {reason} (set {TRACEBACK}=1 to see where)")


def _said(status: int, message: str) -> int:
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exc()
    print(message if status == 130 else f"nestling: error: {message}", file=sys.stderr)
    return status


def _help() -> str:
    width = max(map(len, (*COMMANDS, "--version")))
    return "\n".join(
        (
            "usage: nestling <command> [options]",
            "",
            "Models that keep learning.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()),
            "",
            "options:",
            f"  {'--help':<{width}}  show this, or with a command its options",
            f"  {'--version':<{width}}  show the version",
        )
    )


def _version() -> str:
    try:
        return version("nestling")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
