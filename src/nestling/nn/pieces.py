"""Where the chunks of a batch of streams are cut: rows may stand at different places of their chunks, be padded, begin documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """For each row some of its next tokens, all of one chunk; rows that have no more have none."""

    source: Tensor
    """(B, L): where the tokens stand in the call"""
    live: Tensor
    """(B, L): are there so many? They stand at the left."""
    commits: Tensor
    """(B,): the chunk before is whole, and these tokens begin the next one"""
    begins: Tensor
    """(B,): these tokens begin a document"""


@dataclass(frozen=True)
class Cut:
    """All pieces of a call, in order; ``slot`` (B, T): where each token lies in them one after the other."""

    pieces: tuple[Piece, ...]
    slot: Tensor
    ends: Tensor
    """(B,): a document begins after the row's last token"""


def cut(filled: Tensor, valid: Tensor, starts: Tensor | None, chunk: int) -> Cut:
    """Cut rows whose current chunks hold ``filled`` (B,) tokens; ``valid`` and ``starts`` (B, T) as in ``Marks``.

    >>> parts = cut(torch.tensor([1, 2]), torch.ones(2, 3, dtype=torch.bool), None, 2)
    >>> [(piece.source.tolist(), piece.commits.tolist()) for piece in parts.pieces]
    [([[0, 0], [0, 1]], [False, True]), ([[1, 2], [2, 0]], [True, True])]
    """
    documents = (torch.zeros_like(valid) if starts is None else starts).cumsum(1).tolist()
    rows = [
        _row(at, mask, document, chunk)
        for at, mask, document in zip(filled.tolist(), valid.tolist(), documents, strict=True)
    ]
    pieces, slot, offset = [], torch.zeros_like(valid, dtype=torch.int64), 0
    for number in range(max(len(row) for row in rows)):
        parts = [row[number] if number < len(row) else _Part([]) for row in rows]
        width = max(len(part.tokens) for part in parts)
        counts = torch.tensor([len(part.tokens) for part in parts], device=valid.device)
        source = torch.tensor(
            [part.tokens + [0] * (width - len(part.tokens)) for part in parts], device=valid.device, dtype=torch.int64
        )
        place = torch.arange(width, device=valid.device)
        live = place < counts[:, None]
        for row, part in enumerate(parts):
            slot[row, part.tokens] = offset + place[: len(part.tokens)]
        flags = (torch.tensor(each, device=valid.device) for each in zip(*(part[1:] for part in parts), strict=True))
        pieces.append(Piece(source, live, *flags))
        offset += width
    last = [
        document[-1] > max((d for d, m in zip(document, mask, strict=True) if m), default=0)
        for document, mask in zip(documents, valid.tolist(), strict=True)
    ]
    return Cut(tuple(pieces), slot, torch.tensor(last, device=valid.device))


class _Part(NamedTuple):
    tokens: list[int]
    commits: bool = False
    begins: bool = False


def _row(at: int, mask: Sequence[bool], documents: Sequence[int], chunk: int) -> list[_Part]:
    """The pieces of one row, whose chunk holds ``at`` tokens already."""
    parts: list[_Part] = []
    current = 0
    for position, (live, document) in enumerate(zip(mask, documents, strict=True)):
        if not live:
            continue
        begins, commits = document > current, at == chunk
        if begins or commits:
            at, current = 0, document
        if begins or commits or not parts:
            parts.append(_Part([], commits and not begins, begins))
        parts[-1].tokens.append(position)
        at += 1
    return parts
