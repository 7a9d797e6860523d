"""What a training run is: one frozen value, which the command line fills in and every checkpoint keeps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nestling.errors import NestlingError

# What may differ when a run goes on: none of it changes a weight. The data is compared by its content instead.
_FREE = frozenset({"data", "valid", "out", "device", "every", "eval_batches", "keep", "console", "tensorboard"})


OPTIMIZERS = ("adamw", "muon", "m3", "dgd", "delta_momentum", "deep_momentum")


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its schedule: linear warm-up to ``lr``, then a cosine down to ``lr`` · ``floor`` at the last step.

    >>> OptimizerConfig(lr=3e-4).betas
    (0.9, 0.95)
    """

    lr: float = 1e-3
    """Learning rate at the end of the warm-up."""
    name: Literal["adamw", "muon", "m3", "dgd", "delta_momentum", "deep_momentum"] = "adamw"
    """What updates the hidden matrices; AdamW updates everything else. ``--optimizer NAME`` is short for this."""
    matrix_lr: float = 0.0
    """Learning rate of the hidden matrices at the end of the warm-up; 0: that of everything else."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the running means of the gradient and of its square."""
    weight_decay: float = 0.1
    """Decoupled decay, of matrices only: no gain, bias or norm shrinks."""
    warmup: float = 0.05
    """Part of all steps over which the learning rate rises from nothing."""
    floor: float = 0.1
    """Last learning rate, as a fraction of ``lr``."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        _require(self.lr > 0 and math.isfinite(self.lr), "optimizer.lr", "must be positive", self.lr, "0.001")
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "optimizer.betas",
            "must be two numbers from 0 to below 1",
            self.betas,
            "[0.9, 0.95]",
        )
        _choice("optimizer.name", self.name, OPTIMIZERS)
        _require(
            self.matrix_lr >= 0 and math.isfinite(self.matrix_lr),
            "optimizer.matrix_lr",
            "must not be negative",
            self.matrix_lr,
            "0.02, or 0 for optimizer.lr",
        )
        _require(
            self.name != "adamw" or self.matrix_lr == 0,
            "optimizer.matrix_lr",
            "must be 0 with optimizer.name=adamw",
            self.matrix_lr,
            "optimizer.name=m3",
        )
        _require(self.weight_decay >= 0, "optimizer.weight_decay", "must not be negative", self.weight_decay, "0.1")
        _require(0 <= self.warmup <= 1, "optimizer.warmup", "must be from 0 to 1", self.warmup, "0.05")
        _require(0 <= self.floor <= 1, "optimizer.floor", "must be from 0 to 1", self.floor, "0.1")
        _require(self.clip >= 0, "optimizer.clip", "must not be negative", self.clip, "1.0, or 0 for no clipping")


@dataclass(frozen=True)
class Intervals:
    """How often something is done, in steps; each is also done at the last step."""

    log: int = 10
    """Steps between two entries of the log."""
    evaluate: int = 100
    """Steps between two evaluations on held-out text."""
    checkpoint: int = 200
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        for name in ("log", "evaluate", "checkpoint"):
            value = getattr(self, name)
            _require(value >= 1, f"every.{name}", "must be at least 1 step", value, "10")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Equal configurations on equal data give equal weights, whether the run was interrupted or not.

    >>> config = TrainConfig(recipe="transformer", steps=100)
    >>> config.tokens_per_step
    4096
    >>> TrainConfig.from_json(config.to_json()) == config
    True
    """

    recipe: str = "titans_lmm"
    """The system to train: one of ``nl.recipes()``."""
    size: str = "tiny"
    """The recipe's size."""
    changes: dict[str, int | float | str | bool] = field(default_factory=dict)
    """Changes to the recipe's configuration, such as ``{"layers": 2}``; a text is the source of a value."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    """A token is a byte, or a merged pair (byte-level BPE, trained on the training text)."""
    vocab_size: int = 4096
    """Vocabulary of the BPE tokenizer; bytes are always 256."""
    data: tuple[str, ...] = ()
    """Text files and folders to train on; none: the source of Python's standard library."""
    valid: tuple[str, ...] = ()
    """Text files and folders to evaluate on; none: a twentieth of ``data`` is held out."""
    out: str = "runs/train"
    """Folder of the run: checkpoints and logs. When it holds this run already, the run goes on."""
    steps: int = 1000
    """Updates of the weights, in all."""
    batch: int = 16
    """Rows that are computed at once."""
    length: int = 256
    """Tokens in a row."""
    accumulate: int = 1
    """Batches for one update: the same as a batch so many times larger, in the memory of one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; auto is bfloat16 on a GPU that has it, else float32. Weights stay in float32."""
    compile: bool = False
    """Compile the blocks of memories: the first steps wait for the compiler, and the others take less time."""
    recompute: int | None = None
    """Tokens of a row that are held at once; each such stretch is computed again for its gradient, which takes a third more time."""
    seed: int = 0
    """Of the weights and of the order of the data."""
    device: str = "auto"
    """Where to compute: auto (a GPU when there is one), cpu, cuda, cuda:1."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its schedule."""
    every: Intervals = field(default_factory=Intervals)
    """How often to log, evaluate and write a checkpoint."""
    eval_batches: int = 8
    """Batches of an evaluation, the same ones each time."""
    keep: int = 2
    """Checkpoints to keep, the newest ones."""
    console: Literal["auto", "plain", "quiet"] = "auto"
    """What to show on stderr; auto is a progress bar on a terminal and occasional lines elsewhere."""
    tensorboard: bool = True
    """Also write the curves for TensorBoard."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "accumulate", "eval_batches", "keep"):
            value = getattr(self, name)
            _require(value >= 1, name, "must be at least 1", value, "a positive number")
        held = self.recompute
        _require(held is None or held >= 1, "recompute", "must be at least 1 token", held, "2048, or null to hold all")
        _require(self.seed >= 0, "seed", "must not be negative", self.seed, "0")
        _require(self.vocab_size >= 256, "vocab_size", "must be at least 256", self.vocab_size, "4096")
        _require(self.out != "", "out", "must be a folder", self.out, "runs/train")
        named = sorted({"recipe", "size", "vocab_size"} & set(self.changes))
        _require(not named, "changes", "must not name what has its own setting", named, "that setting")
        _choice("tokenizer", self.tokenizer, ("bytes", "bpe"))
        _choice("precision", self.precision, ("auto", "float32", "bfloat16"))
        _choice("console", self.console, ("auto", "plain", "quiet"))

    @property
    def tokens_per_step(self) -> int:
        """Tokens that are read for one update."""
        return self.batch * self.length * self.accumulate

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values, as a checkpoint's manifest keeps it."""
        values = dataclasses.asdict(self)
        values["optimizer"]["betas"] = list(self.optimizer.betas)
        return {**values, "data": list(self.data), "valid": list(self.valid)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of ``to_json``.

        Raises:
            NestlingError: the values are not those of a configuration.
        """
        try:
            optimizer = dict(values["optimizer"])
            parts = {
                "optimizer": OptimizerConfig(**{**optimizer, "betas": tuple(optimizer["betas"])}),
                "every": Intervals(**values["every"]),
                "data": tuple(values["data"]),
                "valid": tuple(values["valid"]),
            }
            return cls(**{**values, **parts})
        except (KeyError, TypeError) as error:
            raise NestlingError(f"this is no training configuration ({error}): take one that to_json gave.") from error


def first_change(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that a saved run cannot go on with, as (name, saved value, our value).

    >>> first_change(TrainConfig(seed=1).to_json(), TrainConfig(keep=9).to_json())
    ('seed', 1, 0)
    >>> first_change(TrainConfig(keep=1).to_json(), TrainConfig(keep=9).to_json()) is None
    True
    """
    return difference(_fixed(saved), _fixed(ours))


def difference(saved: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first setting in which two nested mappings differ: (dotted name, saved value, our value).

    >>> difference({"recipe": "hope", "changes": {"layers": 2}}, {"recipe": "hope", "changes": {"layers": 3}})
    ('changes.layers', 2, 3)
    """
    for name in [*ours, *(name for name in saved if name not in ours)]:
        match saved.get(name), ours.get(name):
            case (Mapping() as a, Mapping() as b):
                if found := difference(a, b, f"{prefix}{name}."):
                    return found
            case (a, b) if a != b:
                return f"{prefix}{name}", a, b
    return None


def _fixed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _FREE}


def _require(holds: bool, name: str, rule: str, got: object, use: str) -> None:
    if not holds:
        raise NestlingError(f"{name} {rule}, got {got!r}: use {use}.")


def _choice(name: str, got: str, choices: tuple[str, ...]) -> None:
    if got not in choices:
        raise NestlingError(f"unknown {name} {got!r}: use one of {', '.join(choices)}.")
