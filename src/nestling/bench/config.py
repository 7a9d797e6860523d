"""What a benchmark is: one frozen value for the command line. Nothing here may import torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from nestling.errors import NestlingError


@dataclass(frozen=True)
class BenchConfig:
    """Every recipe at size ``tiny``, on one thread: trained alike on the source of Python's standard library, then decoding.

    >>> BenchConfig(steps=20).settings["steps"]
    20
    """

    recipes: tuple[str, ...] = ()
    """Recipes to measure; none: all."""
    out: str = "runs/bench"
    """Folder of the results, recipes.md and recipes.json, and of the runs; what is measured there already is not measured again."""
    page: str | None = None
    """A page with the lines <!-- bench recipes --> and <!-- bench recipes end -->; the table is put between them."""
    steps: int = 500
    """Updates of the weights."""
    batch: int = 1
    """Rows in a batch."""
    length: int = 128
    """Tokens in a row, and in the prompt before decoding."""
    vocab_size: int = 1024
    """Tokens of the byte-pair encoding; 256 are bytes."""
    lr: float = 3e-3
    """AdamW's rate after the warm-up."""
    valid: int = 64
    """Batches of held-out text."""
    decode: int = 64
    """Tokens to decode, one at a time, in each of three tries."""
    seed: int = 0
    """Of the weights and of the order of the data."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "valid", "decode"):
            value = vars(self)[name]
            if value < 1:
                raise NestlingError(f"{name} must be at least 1, got {value}: use {vars(BenchConfig())[name]}.")
        if self.out == "":
            raise NestlingError("out must be a folder, got '': use runs/bench.")

    @property
    def settings(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {name: value for name, value in vars(self).items() if name not in ("recipes", "out", "page")}


Path = Literal["reference", "naive", "chunk", "compiled", "commit", "native", "plain", "dgd", "linear", "exact", "peer"]
"""What computes a memory layer; see ``nestling.bench.cells``."""

What = Literal["forward", "training", "decode", "stream"]
"""Over T tokens at once, the same with the backward pass, T calls of one token, and T tokens in calls of 512 with the state carried."""


@dataclass(frozen=True)
class PathsConfig:
    """One memory layer, every way to compute it: each cell in a fresh process, after parity passed there, rivals one after another.

    >>> PathsConfig(lengths=(512,)).repeats
    5
    """

    paths: tuple[Path, ...] = ("reference", "chunk", "compiled", "commit")
    """Ways to compute the layer."""
    whats: tuple[What, ...] = ("forward", "training", "decode")
    """What is timed."""
    heads: tuple[int, ...] = (1, 2, 4)
    """Memories side by side; each is dim / heads wide."""
    chunks: tuple[int, ...] = (16, 64)
    """Tokens between commits."""
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Tokens T of a sequence."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Precision of the layer's weights and inputs."""
    dim: int = 384
    """Width of the layer."""
    batch: int = 1
    """Sequences side by side."""
    device: str = "cpu"
    """Where."""
    recompute: int | None = None
    """Tokens that training holds at once, each such stretch computed again for its gradient (``ops.stretches``); all by default."""
    threads: int = 1
    """Of a processor; more than one stalls where another program wants the core."""
    repeats: int = 5
    """Runs of each cell after one to warm up; the median counts."""
    rounds: int = 1
    """How often all of them are run, in turns."""
    budget: float = 20
    """Seconds after which no further run of a cell is begun."""
    limit: float = 120
    """Seconds that a run may take: where a shorter length says that it would take longer, it is not begun."""
    seconds: float = math.inf
    """Seconds after which no further cell is begun; the same command goes on where it stopped."""
    gib: float = 20
    """Address space of a process."""
    base: str | None = None
    """A git revision whose paths are measured beside the present ones."""
    peer_python: str | None = None
    """An interpreter that has titans-pytorch 0.5.5 (and torch), for the path ``peer``."""
    out: str = "benchmarks/results"
    """Folder of the tables, figures and plots, named by machine and date; what is measured there already is not measured again."""
    seed: int = 0
    """Of weights and inputs."""

    def __post_init__(self) -> None:
        usual = {each.name: each.default for each in fields(PathsConfig)}
        for name in ("dim", "batch", "threads", "repeats", "rounds"):
            if vars(self)[name] < 1:
                raise NestlingError(f"{name} must be at least 1, got {vars(self)[name]}: use {usual[name]}.")
        if self.recompute is not None and self.recompute < 1:
            raise NestlingError(f"recompute must be at least 1 token, got {self.recompute}: use 2048, or null for all.")
        if self.recompute is not None and "peer" in self.paths:
            raise NestlingError("path 'peer' has no stretches: leave out recompute, or peer.")
        for name in ("paths", "whats", "heads", "chunks", "lengths", "dtypes"):
            if not vars(self)[name]:
                raise NestlingError(f"{name} is empty: give at least one, as {usual[name]}.")
        for heads in self.heads:
            if self.dim % heads:
                raise NestlingError(f"dim {self.dim} is not divisible by {heads} heads: use {usual['heads']}.")
        if self.base is not None and re.fullmatch(r"[\w./~^@{}-]+", self.base) is None:
            raise NestlingError(f"base is {self.base!r}: give a git revision, as HEAD~1.")
        if "peer" in self.paths and self.peer_python is None:
            raise NestlingError("path 'peer' needs an interpreter that has titans-pytorch: give --peer-python PATH.")
