"""Batches: documents shuffled, laid end to end and cut into rows; which rows a step gets depends on (seed, step) only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nestling.data.tokenizer import Ids
from nestling.data.tokens import TokenFile
from nestling.errors import NestlingError

IGNORED = -100
"""The target that counts for nothing: the default ``ignore_index`` of ``torch.nn.functional.cross_entropy``."""

_KEPT_EPOCHS = 2  # a batch may reach from one epoch into the next


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows to read, what to predict at each position, and where a document begins.

    ``targets[b, t]`` is the token that follows ``tokens[b, t]`` in its document, or -100 where the document ends.
    ``starts[b, t]`` is True where the model's state is to be reset.
    """

    tokens: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64."""
    starts: Tensor
    """(B, T) bool."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return Batch(self.tokens.to(device), self.targets.to(device), self.starts.to(device))


class Packed:
    """Batches of ``batch`` rows by ``length`` tokens: ``batch(step)`` is a pure function of ``(seed, step)``.

    In each epoch the documents are shuffled and laid end to end. Row r reads ``length`` tokens from position
    r · ``length`` and predicts the ``length`` tokens from one position later; then the rows are shuffled. ``starts``
    marks the head of every row and every document's first token; where a document ends, the target is -100. So an
    epoch reads every token once, and predicts once every token but the first of a document, except for a ``remainder``
    of 1 to ``length`` tokens at the end of the shuffled order, which differs from epoch to epoch. A batch that the
    epoch cannot fill goes on with rows of the next.

    Nothing is drawn in sequence: any step costs the same, and the step is all of a run's position in the data.

    Raises:
        NestlingError: a size is not positive, the seed is negative, or there are fewer than ``length`` + 1 tokens.

    >>> import tempfile
    >>> from nestling.data import ByteTokenizer, Document
    >>> tokens = TokenFile.build([Document("a", "abcdefg")], ByteTokenizer(), cache=tempfile.mkdtemp())
    >>> packed = Packed(tokens, batch=2, length=3, seed=0)
    >>> packed.rows, packed.remainder
    (2, 1)
    >>> sorted(bytes(row) for row in packed.batch(0).tokens.tolist())
    [b'abc', b'def']
    """

    def __init__(self, tokens: TokenFile, batch: int, length: int, seed: int) -> None:
        if batch < 1 or length < 1:
            raise NestlingError(f"batch and length must be positive, got batch={batch}, length={length}.")
        if seed < 0:
            raise NestlingError(f"seed must not be negative, got {seed}.")
        if len(tokens) < length + 1:
            raise NestlingError(
                f"{len(tokens)} tokens do not fill one row: length={length} needs {length + 1}. "
                f"Add text, or take length={len(tokens) - 1} or less."
                if len(tokens) > 1
                else f"{len(tokens)} tokens are too few to predict any: add text."
            )
        self.tokens = tokens
        self.batch_size = batch
        self.length = length
        self.seed = seed
        self._epochs: dict[int, _Epoch] = {}

    @property
    def rows(self) -> int:
        """Rows in an epoch."""
        return (len(self.tokens) - 1) // self.length

    @property
    def remainder(self) -> int:
        """Tokens that an epoch does not read: 1 to ``length`` of them."""
        return len(self.tokens) - self.rows * self.length

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that the first row of ``batch(step)`` is of."""
        return self._first_row(step) // self.rows

    def batch(self, step: int) -> Batch:
        """The batch of ``step`` = 0, 1, …: equal for equal ``(tokens, batch, length, seed, step)``, in any process."""
        first = self._first_row(step)
        epochs, rows = np.divmod(np.arange(first, first + self.batch_size), self.rows)
        parts = [self._gather(self._epoch(int(epoch)), rows[epochs == epoch]) for epoch in np.unique(epochs)]
        return _batch(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _first_row(self, step: int) -> int:
        if step < 0:
            raise NestlingError(f"step must not be negative, got {step}.")
        return step * self.batch_size

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            while len(self._epochs) >= _KEPT_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[number] = _Epoch.draw(self.tokens.documents, self.rows, self.seed, number)
        return self._epochs[number]

    def _gather(self, epoch: _Epoch, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Tokens and document beginnings at the ``length`` + 1 positions of each row, both (rows, length + 1)."""
        positions = epoch.rows[rows, None] * self.length + np.arange(self.length + 1)
        document = np.searchsorted(epoch.begins, positions, side="right") - 1
        tokens = self.tokens.tokens[positions + epoch.shifts[document]]
        return tokens, positions == epoch.begins[document]


def stream(tokens: Ids, length: int) -> Iterator[Batch]:
    """Cut one document into pieces of ``length`` tokens, each a batch of one row, to be read with a carried state.

    Every token but the last is read once and every token but the first is predicted once; ``starts`` is True at the
    document's first token only, and the last piece may be shorter.

    Raises:
        NestlingError: ``length`` is not positive, or there are fewer than two tokens.

    >>> [(piece.tokens.tolist(), piece.targets.tolist()) for piece in stream([1, 2, 3, 4], length=2)]
    [([[1, 2]], [[2, 3]]), ([[3]], [[4]])]
    """
    array = tokens.detach().cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
    if length < 1:
        raise NestlingError(f"length must be positive, got {length}.")
    if array.ndim != 1 or array.size < 2:
        raise NestlingError(f"a stream needs at least 2 tokens in one dimension, got shape {array.shape}: add text.")
    return _pieces(array, length)


def _pieces(tokens: npt.NDArray[Any], length: int) -> Iterator[Batch]:
    for position in range(0, tokens.size - 1, length):
        piece = tokens[None, position : position + length + 1]
        begins = np.zeros(piece.shape, dtype=np.bool_)
        begins[0, 0] = position == 0
        yield Batch(_int64(piece[:, :-1]), _int64(piece[:, 1:]), torch.from_numpy(begins[:, :-1].copy()))


@dataclass(frozen=True, eq=False)
class _Epoch:
    """One shuffled order: position p lies in the last document that begins at or before p, which is no empty one."""

    begins: npt.NDArray[np.int64]  # where each document begins, in the shuffled order
    shifts: npt.NDArray[np.int64]  # index in the token file minus position in the epoch, for each document
    rows: npt.NDArray[np.int64]  # the shuffled rows

    @classmethod
    def draw(cls, offsets: npt.NDArray[np.int64], rows: int, seed: int, number: int) -> _Epoch:
        lengths = np.diff(offsets)
        order = _permutation(len(lengths), seed, number, 0)
        begins = np.cumsum(lengths[order]) - lengths[order]
        return cls(begins, offsets[order] - begins, _permutation(rows, seed, number, 1))


def _permutation(count: int, *entropy: int) -> npt.NDArray[np.int64]:
    """A shuffled range. NumPy promises the raw bits of a generator for ever, its ``permutation`` only per version."""
    return np.argsort(np.random.PCG64(entropy).random_raw(count), kind="stable")


def _batch(tokens: npt.NDArray[Any], begins: npt.NDArray[np.bool_]) -> Batch:
    targets = np.where(begins[:, 1:], IGNORED, tokens[:, 1:].astype(np.int64))
    starts = begins[:, :-1].copy()
    starts[:, 0] = True
    return Batch(_int64(tokens[:, :-1]), torch.from_numpy(targets), torch.from_numpy(starts))


def _int64(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
