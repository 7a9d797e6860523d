"""What should hold of a session whatever a model has learnt, and what the model keeps of its training text."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nestling.data import Document, Tokenizer
from nestling.demo.reading import PIECE, feed
from nestling.demo.results import Kept, Sessions
from nestling.eval import Fresh, score
from nestling.models import LM
from nestling.nn import State
from nestling.stream import Session


@dataclass(frozen=True, eq=False)
class Copies:
    """Copies of a session, to read on beside it: loaded from a file, forked, and a child of the fork that goes astray."""

    position: int
    file_bytes: int
    loaded: Session
    fork: Session
    child: Session

    @classmethod
    def of(cls, session: Session, astray: Tensor) -> Copies:
        """Copy ``session`` as it is now; the child reads ``astray``."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "session.safetensors"
            session.save(path)
            loaded = Session.load(session.model, path, session.tokenizer)
            size = path.stat().st_size
        fork = session.fork()
        child = fork.fork()
        child.feed(astray)
        return cls(session.position, size, loaded, fork, child)

    def compare(self, tokens: Tensor, wanted: Tensor) -> Sessions:
        """Let every copy read ``tokens``, on which the session itself has spent ``wanted`` nats."""
        differences = [
            float((feed(copy, tokens)[0] - wanted).abs().max()) for copy in (self.loaded, self.fork, self.child)
        ]
        return Sessions(self.position, len(tokens), self.file_bytes, *differences)


def excerpts(documents: Sequence[Document], count: int, size: int) -> list[Document]:
    """The beginnings of ``count`` documents, at even distances in the corpus: those of at least ``size`` bytes, if any.

    >>> documents = [Document(str(i), "x" * i) for i in range(1, 10)]
    >>> [document.name for document in excerpts(documents, 2, 4)]
    ['4', '7']
    """
    whole = [document for document in documents if len(document.text) >= size] or list(documents)
    count = min(count, len(whole))
    chosen = [whole[index * len(whole) // count] for index in range(count)]
    return [Document(document.name, document.text[:size]) for document in chosen]


def kept(kind: str, model: LM, tokenizer: Tokenizer, documents: Sequence[Document], after: State) -> Kept:
    """What ``documents`` cost from a fresh state, and from the state ``after`` the stream."""
    batch = Fresh(batch=len(documents))
    early, late = (score(model, documents, tokenizer, batch, piece=PIECE, state=state) for state in (None, after))
    # A document's first prediction stands at position 1.
    document = (early.positions == 1).cumsum(0) - 1
    sizes = torch.zeros(len(documents), dtype=torch.float64).index_add_(0, document, early.sizes.double())
    extra = torch.zeros_like(sizes).index_add_(0, document, (late.nats - early.nats) / math.log(2))
    change, count = float(extra.sum() / sizes.sum()), len(documents)
    # The standard error of a ratio of sums over documents.
    spread = float((extra - change * sizes).square().sum()) * count / max(count - 1, 1)
    return Kept(
        kind=kind,
        documents=count,
        bytes=int(sizes.sum()),
        fresh=early.bits_per_byte,
        after=late.bits_per_byte,
        error=math.sqrt(spread) / float(sizes.sum()),
    )
