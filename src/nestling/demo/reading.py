"""The unseen package as one stream: what each reader spends on it, and where."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.data import Document, Tokenizer
from nestling.demo.results import Difference, Reader, Stream
from nestling.errors import NestlingError
from nestling.stream import Session

PIECE = 512
"""Tokens that are read at once."""

Progress = Callable[[int], None]
"""Called with the number of tokens that were just read."""


@dataclass(frozen=True, eq=False)
class Text:
    """A package as tokens: its files in order, each encoded by itself, one after the other without a gap."""

    package: str
    documents: int
    """Files that were read, the last one perhaps in part."""
    whole: bool
    tokens: Tensor
    """(N,) int64"""
    sizes: Tensor
    """(N,) int64: bytes of each token"""

    @classmethod
    def of(cls, documents: Sequence[Document], tokenizer: Tokenizer, limit: int) -> Text:
        """The first ``limit`` tokens of ``documents``."""
        tokens: list[int] = []
        read = 0
        for document in documents:
            if len(tokens) >= limit:
                break
            tokens += tokenizer.encode(document.text)
            read += 1
        whole = read == len(documents) and len(tokens) <= limit
        tokens = tokens[:limit]
        kinds, where = torch.tensor(tokens).unique(return_inverse=True)
        sizes = torch.tensor([tokenizer.count_bytes([kind]) for kind in kinds.tolist()])[where]
        return cls(documents[0].name.split("/")[0], read, whole, torch.tensor(tokens), sizes)


def feed(session: Session, tokens: Tensor, progress: Progress = lambda read: None) -> tuple[Tensor, float]:
    """Read on with ``session``: the nats of every token that was predicted, and the seconds."""
    begun = time.perf_counter()
    costs = []
    for piece in tokens.split(PIECE):
        costs.append(session.feed(piece))
        progress(len(piece))
    return torch.cat(costs).double(), time.perf_counter() - begun


def reader(name: str, text: Text, nats: Tensor, speed: float, state_bytes: int, windows: int) -> Reader:
    """What a reading came to, in ``windows`` equal parts."""
    bits, sizes = nats / math.log(2), text.sizes[1:]
    parts = zip(bits.tensor_split(windows), sizes.tensor_split(windows), strict=True)
    return Reader(
        name=name,
        bits_per_byte=float(bits.sum() / sizes.sum()),
        windows=tuple(float(cost.sum() / size.sum()) for cost, size in parts),
        tokens_per_second=speed,
        state_bytes=state_bytes,
    )


def compare(text: Text, on: Reader, off: Reader, baseline: Reader) -> Stream:
    """The three readings side by side.

    Raises:
        NestlingError: a model has spent no finite number of bits.
    """
    for each in (on, off, baseline):
        if not math.isfinite(each.bits_per_byte):
            raise NestlingError(f"{each.name} spent {each.bits_per_byte} bits per byte: its state is no longer finite.")
    size = int(text.sizes.sum())
    return Stream(
        package=text.package,
        part=text.package if text.whole else f"the first {size:,} bytes of {text.package}",
        documents=text.documents,
        bytes=size,
        tokens=len(text.tokens),
        window_bytes=size // len(on.windows),
        on=on,
        off=off,
        baseline=baseline,
        memory=Difference.between(off, on),
        against_baseline=Difference.between(baseline, on),
    )
