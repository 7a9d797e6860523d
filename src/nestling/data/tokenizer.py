"""Tokenizers: text to token ids and back, without loss. Both kinds are values: equal fingerprints, equal ids."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor

from nestling.atomic import write_text
from nestling.data.corpus import Document
from nestling.errors import NestlingError

Ids = Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor
"""Token ids: a list, an array or a tensor of integers."""

_FORMAT = "nestling.tokenizer"
_VERSION = 1


class Tokenizer(Protocol):
    """Text to token ids and back; ``decode(encode(text)) == text`` for any text that UTF-8 can hold."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids: they are 0 to ``vocab_size - 1``."""

    @property
    def fingerprint(self) -> str:
        """Hash that two tokenizers share exactly when they give the same ids for every text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text; a lone surrogate, which UTF-8 cannot hold, becomes ``?``."""

    def decode(self, ids: Ids) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD."""

    def to_bytes(self, ids: Ids) -> bytes:
        """The bytes that ``ids`` stand for; a cut inside a character leaves a part of it."""

    def count_bytes(self, ids: Ids) -> int:
        """Number of bytes that ``ids`` stand for: the denominator of bits per byte."""

    def save(self, path: str | Path) -> None:
        """Write a JSON file that ``load_tokenizer`` reads, atomically."""


@dataclass(frozen=True)
class ByteTokenizer:
    """A token is a byte of UTF-8: nothing to train, nothing out of vocabulary.

    >>> ByteTokenizer().encode("né")
    [110, 195, 169]
    >>> ByteTokenizer().decode([110, 195, 169])
    'né'
    """

    @property
    def vocab_size(self) -> int:
        """256."""
        return 256

    @property
    def fingerprint(self) -> str:
        """Hash of the JSON that ``save`` writes."""
        return _digest(self._content())

    def encode(self, text: str) -> list[int]:
        """The bytes of ``text``."""
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Ids) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        return self.to_bytes(ids).decode("utf-8", "replace")

    def to_bytes(self, ids: Ids) -> bytes:
        """The ids as bytes; an id outside 0 to 255 raises ``NestlingError``."""
        return check_range(ids, self.vocab_size).astype(np.uint8).tobytes()

    def count_bytes(self, ids: Ids) -> int:
        """One for each id."""
        return check_range(ids, self.vocab_size).size

    def save(self, path: str | Path) -> None:
        """Write a JSON file that ``load_tokenizer`` reads, atomically."""
        write_text(path, json.dumps(self._content()))

    def _content(self) -> dict[str, Any]:
        return {"format": _FORMAT, "version": _VERSION, "kind": "byte"}


@dataclass(frozen=True)
class BPETokenizer:
    """Byte-level byte-pair encoding: the 256 bytes, then one token for every merge of two earlier tokens.

    Sennrich et al. 2016; text is first cut into words by the pattern of GPT-2, and no merge crosses a word. ``merges``
    holds pairs of ids in the order in which they are applied, so that it says all there is to say: without merges this
    is the ``ByteTokenizer``. A merge that spells an earlier token gives that token's id.

    Raises:
        NestlingError: a merge names an id that no earlier merge has made.

    >>> tokenizer = BPETokenizer(merges=((116, 104), (256, 101)))  # t h -> 256, th e -> 257
    >>> tokenizer.encode("the path")
    [257, 32, 112, 97, 256]
    >>> tokenizer.count_bytes([257, 256])
    5
    """

    merges: tuple[tuple[int, int], ...] = field(repr=False)

    def __post_init__(self) -> None:
        self._vocabulary  # noqa: B018  (checks the merges now, where they are given)

    def __repr__(self) -> str:
        return f"BPETokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"

    @classmethod
    def train(cls, documents: Iterable[Document], vocab_size: int) -> BPETokenizer:
        """Learn the merges of the pairs that are most frequent in ``documents``, until there are ``vocab_size`` tokens.

        A small corpus may run out of pairs before that: read ``.vocab_size`` of the result.

        Raises:
            NestlingError: ``vocab_size`` is under 256, or there is no text.

        >>> BPETokenizer.train([Document("a", "the then them")], vocab_size=258).decode([257])
        'the'
        """
        if vocab_size < 256:
            raise NestlingError(f"vocab_size must be at least 256, one token for each byte, got {vocab_size}.")
        texts = [_utf8(document.text) for document in documents if document.text]
        if not texts:
            raise NestlingError("no text to train a tokenizer on: pass documents that are not empty.")
        backend = _backend(vocabulary={}, merges=[])
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=list(_LETTERS), show_progress=False)
        backend.train_from_iterator(texts, trainer)
        ids = {letter: byte for byte, letter in enumerate(_LETTERS)}
        merges = []
        for left, right in json.loads(backend.to_str())["model"]["merges"]:
            merges.append((ids[left], ids[right]))
            ids.setdefault(left + right, len(ids))
        return cls(tuple(merges))

    @property
    def vocab_size(self) -> int:
        """256 and one for each merge that spells a new token."""
        return len(self._vocabulary)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the JSON that ``save`` writes."""
        return _digest(self._content())

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``: its words' bytes, merged in the order of ``merges``."""
        return self._tokenizers.encode(_utf8(text), add_special_tokens=False).ids

    def decode(self, ids: Ids) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        return self.to_bytes(ids).decode("utf-8", "replace")

    def to_bytes(self, ids: Ids) -> bytes:
        """The bytes of the tokens, joined; an id outside the vocabulary raises ``NestlingError``."""
        return b"".join([self._vocabulary[index] for index in check_range(ids, self.vocab_size).tolist()])

    def count_bytes(self, ids: Ids) -> int:
        """The sum of the tokens' lengths in bytes."""
        return int(self._lengths[check_range(ids, self.vocab_size)].sum())

    def save(self, path: str | Path) -> None:
        """Write a JSON file that ``load_tokenizer`` reads, atomically."""
        write_text(path, json.dumps(self._content()))

    def _content(self) -> dict[str, Any]:
        return {"format": _FORMAT, "version": _VERSION, "kind": "bpe", "words": "gpt2", "merges": self.merges}

    @cached_property
    def _vocabulary(self) -> tuple[bytes, ...]:
        ids = {bytes([byte]): byte for byte in range(256)}
        tokens = list(ids)
        for number, (left, right) in enumerate(self.merges):
            if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
                raise NestlingError(
                    f"merge {number} of the tokenizer joins {left} and {right}, but only ids below {len(tokens)} exist: "
                    "the file is damaged or not a tokenizer's. Train it again."
                )
            token = tokens[left] + tokens[right]
            if token not in ids:
                ids[token] = len(tokens)
                tokens.append(token)
        return tuple(tokens)

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int64]:
        return np.array([len(token) for token in self._vocabulary], dtype=np.int64)

    @cached_property
    def _tokenizers(self) -> tokenizers.Tokenizer:
        spelled = ["".join(_LETTERS[byte] for byte in token) for token in self._vocabulary]
        return _backend(
            vocabulary={token: index for index, token in enumerate(spelled)},
            merges=[(spelled[left], spelled[right]) for left, right in self.merges],
        )


class IncrementalDecoder:
    """Decodes a stream of ids as they come: a character is given out once, when its last byte is there.

    All that ``push`` and one final ``flush`` return, joined, is ``tokenizer.decode`` of all ids.

    >>> decoder = IncrementalDecoder(ByteTokenizer())
    >>> [decoder.push([byte]) for byte in "né".encode()], decoder.flush()
    (['n', '', 'é'], '')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Ids) -> str:
        """The characters that ``ids`` complete; an unfinished one is kept back."""
        return self._bytes.decode(self._tokenizer.to_bytes(ids))

    def flush(self) -> str:
        """End the stream: U+FFFD when a character is unfinished, else nothing."""
        return self._bytes.decode(b"", final=True)


def load_tokenizer(path: str | Path) -> ByteTokenizer | BPETokenizer:
    """Read a tokenizer that ``save`` wrote.

    Raises:
        NestlingError: the file is missing, truncated, or not a tokenizer's.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "tokenizer.json"
    >>> ByteTokenizer().save(path)
    >>> load_tokenizer(path)
    ByteTokenizer()
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise NestlingError(f"cannot read the tokenizer {path}: {error.strerror}. Check the path.") from error
    except ValueError as error:
        raise NestlingError(f"{path} is no tokenizer: not whole JSON ({error}). Copy or train it again.") from error
    match content:
        case {"format": "nestling.tokenizer", "version": 1, "kind": "byte"}:
            return ByteTokenizer()
        case {"format": "nestling.tokenizer", "version": 1, "kind": "bpe", "words": "gpt2", "merges": list(pairs)}:
            return BPETokenizer(tuple(_merge(pair, path) for pair in pairs))
        case {"format": "nestling.tokenizer", "version": version, "kind": kind}:
            raise NestlingError(
                f"{path} is a tokenizer of kind {kind!r}, version {version!r}; this Nestling reads byte and bpe, "
                f"version {_VERSION}. Update nestling, or train the tokenizer again."
            )
        case _:
            raise NestlingError(f"{path} is no tokenizer of Nestling: pass a file that Tokenizer.save wrote.")


def check_range(ids: Ids, vocab_size: int) -> npt.NDArray[np.integer[Any]]:
    """Check that every id lies in 0 to ``vocab_size - 1``, and return them as an array of integers.

    Raises:
        NestlingError: an id is outside, said with its position, or the ids are no integers.

    >>> check_range([3, 300], 256)
    Traceback (most recent call last):
    nestling.errors.NestlingError: token id 300 at position 1 is outside the vocabulary of 256 (ids 0 to 255): \
use the tokenizer that the model was trained with, or build the model with a larger vocab_size.
    """
    match ids:
        case Tensor():
            array = ids.detach().cpu().numpy()
        case _:
            array = np.asarray(ids)
    if array.size == 0:
        return array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise NestlingError(f"token ids must be integers, got {array.dtype}: pass what Tokenizer.encode returns.")
    if array.min() < 0 or array.max() >= vocab_size:
        flat = array.reshape(-1)
        position = int(np.flatnonzero((flat < 0) | (flat >= vocab_size))[0])
        raise NestlingError(
            f"token id {flat[position]} at position {position} is outside the vocabulary of {vocab_size} "
            f"(ids 0 to {vocab_size - 1}): use the tokenizer that the model was trained with, "
            "or build the model with a larger vocab_size."
        )
    return array


def _letters() -> tuple[str, ...]:
    """GPT-2's spelling of the 256 bytes as printable characters: `tokenizers` sees text, never bytes."""
    printable = set(chain(range(ord("!"), ord("~") + 1), range(ord("¡"), ord("¬") + 1), range(ord("®"), ord("ÿ") + 1)))
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256))


_LETTERS = _letters()


def _backend(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return backend


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _merge(pair: object, path: str | Path) -> tuple[int, int]:
    match pair:
        case [int(left), int(right)]:
            return left, right
        case _:
            raise NestlingError(f"{path} is a damaged tokenizer: {pair!r} is no pair of ids. Copy or train it again.")
