"""Perplexity and bits per byte of documents, each read once, as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor

from nestling import tree
from nestling.data import Document, Tokenizer
from nestling.errors import NestlingError
from nestling.eval.score import Score
from nestling.models import LM
from nestling.nn import State
from nestling.stream.reading import advance, begin, check_vocabulary


@dataclass(frozen=True)
class Fresh:
    """Every document is a stream of its own. ``batch`` of them are read at a time, which changes the speed and nothing else."""

    batch: int = 8

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise NestlingError(f"batch must be at least 1, got {self.batch}.")


@dataclass(frozen=True)
class Carried:
    """All documents are one stream: the state goes on from each to the next, and so do positions."""


Policy: TypeAlias = Fresh | Carried
"""What happens to the state between documents."""


def score(
    model: LM,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    policy: Policy = Fresh(),
    *,
    piece: int = 256,
    state: State | None = None,
) -> Score:
    """Predict every token of ``documents`` from all that was read before it in its stream.

    Streams begin at ``state`` (of one row, such as ``Session.state``), or fresh. The first token of a stream has no prediction
    and is not counted. ``piece`` tokens are read at a time. ``model.frozen()`` is the same model with its memories off.

    Raises:
        NestlingError: no token can be predicted, or the tokenizer has more tokens than the model.

    >>> import nestling
    >>> from nestling.data import ByteTokenizer
    >>> model = nestling.build("titans_lmm", dim=32, layers=1, heads=2)
    >>> documents = [Document("a", "abcd"), Document("b", "efg")]
    >>> score(model, documents, ByteTokenizer()).positions
    tensor([1, 2, 3, 1, 2])
    >>> score(model, documents, ByteTokenizer(), Carried()).positions
    tensor([1, 2, 3, 4, 5, 6])
    """
    check_vocabulary(model, tokenizer)
    if piece < 1:
        raise NestlingError(f"piece must be at least 1 token, got {piece}. Leave it at 256.")
    ids = [tokenizer.encode(document.text) for document in documents]
    match policy:
        case Fresh(batch):
            rows = [torch.tensor(row) for row in ids if len(row) > 1]
        case Carried():
            batch, whole = 1, list(chain.from_iterable(ids))
            rows = [torch.tensor(whole)] if len(whole) > 1 else []
    if not rows:
        raise NestlingError(
            f"nothing to score: {len(ids)} documents hold no token after a first one. Pass longer text."
        )
    # Rows of like length share a batch, the longest first.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    costs: list[Tensor] = [torch.empty(0)] * len(rows)
    for low in range(0, len(order), batch):
        group = order[low : low + batch]
        for index, nats in zip(group, _read(model, [rows[index] for index in group], piece, state), strict=True):
            costs[index] = nats
    return Score(
        nats=torch.cat(costs),
        sizes=_sizes(torch.cat([row[1:] for row in rows]), tokenizer),
        positions=torch.cat([torch.arange(1, len(row)) for row in rows]),
    )


def _read(model: LM, rows: Sequence[Tensor], piece: int, state: State | None) -> list[Tensor]:
    """The nats of all tokens but the first of each row; ``rows`` from long to short."""
    moment = begin(model, len(rows), state)
    device = moment.position.device
    found: list[list[Tensor]] = [[] for _ in rows]
    for tokens, valid in _pieces(rows, piece):
        # Rows that have ended leave the batch.
        moment = tree.map(lambda leaf, left=len(tokens): leaf[:left], moment)
        mask = None if bool(valid.all()) else valid.to(device)
        nats, predicted, moment = advance(model, tokens.to(device), moment, mask)
        for each, cost, counts in zip(found, nats.double().cpu(), predicted.cpu(), strict=False):
            each.append(cost[counts])
    return [torch.cat(each) for each in found]


def _pieces(rows: Sequence[Tensor], piece: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (B, T) of the rows that are left, and which of them are no padding."""
    for low in range(0, len(rows[0]), piece):
        parts = [row[low : low + piece] for row in rows if len(row) > low]
        tokens = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        lengths = torch.tensor([len(part) for part in parts])
        yield tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


def _sizes(tokens: Tensor, tokenizer: Tokenizer) -> Tensor:
    kinds, where = tokens.unique(return_inverse=True)
    return torch.tensor([tokenizer.count_bytes([kind]) for kind in kinds.tolist()])[where]
