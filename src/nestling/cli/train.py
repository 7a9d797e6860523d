"""``nestling train``."""

from __future__ import annotations

from collections.abc import Sequence

from nestling.cli.parser import Parser
from nestling.train.config import OPTIMIZERS, TrainConfig

_LISTS = ("data", "valid")


def run(arguments: Sequence[str]) -> int:
    """Train, go on, or rehearse; see ``nestling train --help``."""
    parser, arguments = _parser(), _named(arguments)
    values = parser.read(arguments, _LISTS)
    if values.resume:
        parser = _parser()
        parser.set_defaults(_saved(values.out))
        values = parser.read(arguments, _LISTS)
    config = parser.build(TrainConfig, values)

    from nestling.train import dry_run, train  # torch

    if values.dry_run:
        print(dry_run(config))
        return 0
    return train(config).exit_code


def _named(arguments: Sequence[str]) -> list[str]:
    """``--optimizer m3`` and ``--optimizer=m3`` as ``--optimizer.name m3``; the option without a name is a file of settings."""
    found: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, _, value = argument.partition("=")
        if before == "--optimizer" and argument in OPTIMIZERS:
            found[-1:] = ["--optimizer.name", argument]
        elif option == "--optimizer" and value in OPTIMIZERS:
            found += ["--optimizer.name", value]
        else:
            found.append(argument)
    return found


def _parser() -> Parser:
    parser = Parser(
        "train",
        "[options]",
        "Train a recipe on the source of Python's standard library, or on --data PATH... The run's folder (--out) gets "
        "checkpoints, log.jsonl and TensorBoard curves. The same command goes on with a run that was stopped.",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, by the settings it has saved"
    )
    parser.add_argument("--dry_run", action="store_true", help="build everything, make two steps, write nothing")
    parser.add_class_arguments(TrainConfig)
    return parser


def _saved(out: str) -> dict[str, object]:
    """The settings of the run in a folder, by dotted names; where the run is now and not where it was."""
    from nestling.train import Manifest, find  # torch

    saved = Manifest.read(find(out)).config
    flat: dict[str, object] = {}
    for name, value in TrainConfig.from_json(saved).to_json().items():
        if name in ("optimizer", "every"):
            flat |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            flat[name] = value
    return {**flat, "out": out}
