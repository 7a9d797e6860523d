"""What a run reads: its text, its tokenizer, and the batches to train and to evaluate on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nestling.data import BPETokenizer, ByteTokenizer, Document, Packed, TokenFile, Tokenizer, corpus
from nestling.train.config import TrainConfig

_HELD_OUT = 20  # one part in so many


@dataclass(frozen=True, eq=False)
class Source:
    """The tokenizer, and the batches of a run: to train on, and to evaluate on."""

    tokenizer: Tokenizer
    """Text to token ids."""
    train: Packed
    """Batches to train on."""
    valid: Packed
    """Batches of held-out text."""

    @property
    def key(self) -> str:
        """Hash of the training text and the tokenizer."""
        return self.train.tokens.key


def prepare(config: TrainConfig, tokenizer: Tokenizer | None = None, cache: str | Path | None = None) -> Source:
    """Read, encode and pack the text of a run; without a ``tokenizer``, make the one that the configuration asks for.

    Raises:
        NestlingError: there is no text, or too little to fill a row.
    """
    train, valid = documents(config)
    if tokenizer is None:
        tokenizer = ByteTokenizer() if config.tokenizer == "bytes" else BPETokenizer.train(train, config.vocab_size)
    read = Packed(TokenFile.build(train, tokenizer, cache), config.batch, config.length, config.seed)
    held = TokenFile.build(valid, tokenizer, cache)
    length = max(1, min(config.length, len(held) - 1))
    return Source(tokenizer, read, Packed(held, config.batch, length, seed=0))


def documents(config: TrainConfig) -> tuple[list[Document], list[Document]]:
    """The documents to train on, and those to evaluate on."""
    train = corpus.read(config.data) if config.data else corpus.stdlib("train")
    match config.valid, config.data:
        case ((), ()):
            return train, corpus.stdlib("valid")
        case ((), _):
            return hold_out(train)
        case _:
            return train, corpus.read(config.valid)


def hold_out(given: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Part off a twentieth: whole documents, chosen by their text; or the end of each where none is small enough.

    >>> hold_out([Document("a", "0123456789" * 4)])[1]
    [Document(name='a', text='89')]
    """
    budget = sum(len(document.text) for document in given) // _HELD_OUT
    chosen: set[int] = set()
    for index in sorted(range(len(given)), key=lambda index: _hash(given[index])):
        if len(given[index].text) <= budget:
            chosen.add(index)
            budget -= len(given[index].text)
    if chosen:
        train = [document for index, document in enumerate(given) if index not in chosen]
        return train, [given[index] for index in sorted(chosen)]
    cuts = [_cut(document.text) for document in given]
    return (
        [Document(document.name, document.text[:cut]) for document, cut in zip(given, cuts, strict=True)],
        [Document(document.name, document.text[cut:]) for document, cut in zip(given, cuts, strict=True)],
    )


def _cut(text: str) -> int:
    """Where the last twentieth begins, at the beginning of a line where that leaves something on both sides."""
    cut = len(text) - max(1, len(text) // _HELD_OUT)
    line = text.rfind("\n", 0, cut) + 1
    return line if line > len(text) // 2 else cut


def _hash(document: Document) -> bytes:
    return hashlib.sha256(document.text.encode("utf-8", "replace")).digest()
