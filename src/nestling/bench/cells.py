"""The cells of a benchmark of paths, and the work that one asks for at least. Nothing here may import torch.

========= ===================================================== ==========================================
path      memory                                                computed
========= ===================================================== ==========================================
reference 2 layers ×4, residual and norm, momentum by token     token by token
naive     the same                                              token by token, by ``vmap(grad)``
chunk     the same                                              in blocks
compiled  the same                                              in blocks through ``torch.compile``
commit    the same, read at commits, momentum once a period     by whole periods
native    as ``commit``                                         by whole periods, in C
plain     the same without momentum                             in blocks
dgd       with delta retention                                  in blocks
linear    a matrix, gradients at commits                        in blocks
exact     a matrix, gated delta rule                            in blocks
peer      titans-pytorch, weights advancing every chunk         by that package; compare with ``commit``
========= ===================================================== ==========================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nestling.bench.config import Path, PathsConfig, What

Source = Literal["here", "base", "peer"]

EXPAND = 4
"""Hidden width of the deep memories, in widths of a key."""


BY_TOKEN: tuple[Path, ...] = ("reference", "naive")
"""Paths that go token by token: fast weights are carried through each, and no token sees a table of others."""

SAME = ("dim", "batch", "device", "threads", "repeats", "budget", "gib", "seed", "recompute")
"""Settings that all cells of a run share."""


@dataclass(frozen=True)
class Cell:
    """One thing that is timed, in a process of its own."""

    path: Path
    source: Source
    what: What
    heads: int
    chunk: int
    length: int
    dtype: str
    round: int
    dim: int
    batch: int
    device: str
    threads: int
    repeats: int
    budget: float
    gib: float
    seed: int
    recompute: int | None = None

    @property
    def shape(self) -> tuple[str, int, int, int, str, int]:
        """What rivals have in common."""
        return (self.what, self.heads, self.chunk, self.length, self.dtype, self.recompute or 0)

    @property
    def kind(self) -> tuple[Path, Source, str, int, int, str, int]:
        """What is the same but for the length, which comes from short to long."""
        return (self.path, self.source, self.what, self.heads, self.chunk, self.dtype, self.recompute or 0)


def cells(config: PathsConfig) -> Iterator[Cell]:
    """All cells, rivals on the same shape one after another."""
    same = {name: vars(config)[name] for name in SAME}
    for round_ in range(config.rounds):
        for what in config.whats:
            for dtype in config.dtypes:
                for heads in config.heads:
                    for chunk in config.chunks:
                        for length in sorted(config.lengths):
                            for path, source in _rivals(config, what):
                                yield Cell(path, source, what, heads, chunk, length, dtype, round_, **same)


def _rivals(config: PathsConfig, what: What) -> Iterator[tuple[Path, Source]]:
    for path in config.paths:
        if path == "naive" and what in ("decode", "stream"):
            continue  # it has no state to go on from
        yield path, "peer" if path == "peer" else "here"
        if config.base is not None and path != "peer":
            yield path, "base"


def weights(cell: Cell) -> int:
    """Numbers in the fast weights of one sequence."""
    width = cell.dim // cell.heads
    linear = cell.path in ("linear", "exact")
    return cell.heads * (width * width if linear else 2 * EXPAND * width * width)


def flops(cell: Cell) -> float:
    """Multiplications and additions of the matrix products that a token needs, in the memories and in the layer's projections.

    The floor of a path: forward 2 for each weight and read, written out in ``docs/performance.md``; three times that in training.

    >>> from nestling.bench.config import PathsConfig
    >>> cell = next(cells(PathsConfig(paths=("commit",), heads=(1,), whats=("training",))))
    >>> round(flops(cell) / 1e6, 1)
    29.2
    """
    d, n, token = cell.dim // cell.heads, weights(cell), cell.what == "decode"
    width = d if cell.path in ("linear", "exact") else d + EXPAND * d
    # Tokens of a block look at one another; a single token has no others.
    table = 0 if token or cell.path in BY_TOKEN else 4 * cell.chunk * width * cell.heads
    solve = 0 if token else 3 * cell.chunk * width * cell.heads
    memory = {
        "reference": 11 * n,
        "naive": 11 * n,
        "chunk": 11 * n + table,
        "compiled": 11 * n + table,
        "commit": 7 * n,
        "native": 7 * n,
        "plain": 7 * n + table,
        "dgd": 7 * n + table + solve,
        "linear": 6 * n + table,
        "exact": 6 * n + table + solve,
        "peer": 7 * n,
    }[cell.path]
    # Ours: q, k, v, the output gate, the output; the peer has no gate, and with one head no output.
    maps = 5 if cell.path != "peer" else 3 + (cell.heads > 1)
    return (memory + 2 * maps * cell.dim**2) * (3 if cell.what == "training" else 1)


def moved(cell: Cell) -> float:
    """Bytes of fast weights that a token moves at least: what is carried, read and written once a chunk, both ways in training."""
    carried = weights(cell) * (1 if cell.path in ("plain", "dgd", "linear", "exact") else 2)
    passes = 2 + (3 if cell.what == "training" else 0)
    tokens = 1 if cell.what == "decode" or cell.path in BY_TOKEN else cell.chunk
    return passes * carried * (4 if cell.dtype == "float32" else 2) / tokens
