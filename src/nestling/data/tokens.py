"""Tokens on disk: a corpus is encoded once, kept in a cache, and read through a memory map."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nestling.atomic import replacing
from nestling.data.corpus import Document
from nestling.data.tokenizer import Tokenizer, check_range
from nestling.errors import NestlingError

Progress = Callable[[int, int], None]
"""Called with the characters encoded so far and the characters in all, after each document."""

_FORMAT = "nestling.tokens.1"
_HEADER = 512  # bytes: the manifest as one line of JSON, padded with spaces


@dataclass(frozen=True, eq=False)
class TokenFile:
    """The tokens of a corpus, document after document, mapped from one file: opening it reads none of them.

    File: a manifest of 512 bytes (JSON), the documents' offsets (int64), the tokens (the smallest unsigned integer that
    holds the vocabulary). ``len`` is the number of tokens.

    >>> import tempfile
    >>> from nestling.data import ByteTokenizer
    >>> documents = [Document("a", "one"), Document("b", "three")]
    >>> tokens = TokenFile.build(documents, ByteTokenizer(), cache=tempfile.mkdtemp())
    >>> len(tokens), tokens.documents.tolist(), bytes(tokens.document(1))
    (8, [0, 3, 8], b'three')
    """

    path: Path
    """The file."""
    tokens: npt.NDArray[Any]
    """All tokens, (N,) uint8, uint16 or uint32, a read-only memory map."""
    documents: npt.NDArray[np.int64]
    """Offsets, (D + 1,): document i is ``tokens[documents[i] : documents[i + 1]]``."""
    vocab_size: int
    """Size of the vocabulary of the tokenizer that made the tokens."""
    key: str
    """Hash of the documents' texts and the tokenizer's fingerprint."""

    @classmethod
    def build(
        cls,
        documents: Sequence[Document],
        tokenizer: Tokenizer,
        cache: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> TokenFile:
        """Open the tokens of ``documents`` from the cache folder; encode them first when they are not there, whole.

        The file appears at once and complete, so a crash or another process that builds the same leaves no damage.

        Raises:
            NestlingError: the documents hold no text, or the cache folder cannot be written.
        """
        key = _key(documents, tokenizer)
        path = cache_folder(cache) / "tokens" / f"{key[:32]}.tokens"
        try:
            return cls.open(path, key)
        except NestlingError:
            pass  # absent, truncated, or another corpus: the file is only a cache, so it is written anew
        try:
            with replacing(path) as temporary, temporary.open("r+b") as file:
                _write(file, documents, tokenizer, key, progress)
        except OSError as error:
            raise NestlingError(
                f"cannot write tokens to {path.parent}: {error.strerror or error}. "
                "Set NESTLING_CACHE to a folder that can be written."
            ) from error
        return cls.open(path, key)

    @classmethod
    def open(cls, path: str | Path, key: str | None = None) -> TokenFile:
        """Map a file that ``build`` wrote.

        Raises:
            NestlingError: the file is missing, truncated, no token file, or (with ``key``) of another corpus.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                manifest = _manifest(path, file.read(_HEADER))
                size = os.fstat(file.fileno()).st_size
                if size != manifest.size:
                    raise _damaged(path, f"it has {size:,} bytes of {manifest.size:,}")
                offsets = np.fromfile(file, dtype=np.int64, count=manifest.documents + 1)
                if offsets[0] != 0 or offsets[-1] != manifest.tokens or (np.diff(offsets) < 0).any():
                    raise _damaged(path, "its document offsets are out of order")
                if key is not None and manifest.key != key:
                    raise NestlingError(f"{path} holds the tokens of another corpus or tokenizer: build it again.")
                tokens = np.memmap(file, manifest.dtype, "r", offset=manifest.start, shape=(manifest.tokens,))
        except OSError as error:
            raise NestlingError(f"cannot open tokens {path}: {error.strerror or error}. Build them again.") from error
        return cls(path, tokens, offsets, manifest.vocab_size, manifest.key)

    def __len__(self) -> int:
        return len(self.tokens)

    def document(self, index: int) -> npt.NDArray[Any]:
        """The tokens of document ``index``, a view of the map."""
        if not 0 <= index < len(self.documents) - 1:
            raise NestlingError(f"document {index} is out of range: {self.path} has {len(self.documents) - 1}.")
        return self.tokens[self.documents[index] : self.documents[index + 1]]


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where derived files are kept: ``folder``, else ``$NESTLING_CACHE``, else ``nestling`` in the user's cache.

    >>> cache_folder("elsewhere").name
    'elsewhere'
    """
    if folder is not None:
        return Path(folder).expanduser()
    if chosen := os.environ.get("NESTLING_CACHE"):
        return Path(chosen).expanduser()
    user = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return Path(user).expanduser() / "nestling"


@dataclass(frozen=True)
class _Manifest:
    key: str
    vocab_size: int
    documents: int
    tokens: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.min_scalar_type(max(self.vocab_size - 1, 0)))

    @property
    def start(self) -> int:
        return _HEADER + 8 * (self.documents + 1)

    @property
    def size(self) -> int:
        return self.start + self.dtype.itemsize * self.tokens


def _write(
    file: BinaryIO, documents: Sequence[Document], tokenizer: Tokenizer, key: str, progress: Progress | None
) -> None:
    """Write the tokens as they come and the header last: memory holds one document's tokens, not the corpus's."""
    manifest = _Manifest(key, tokenizer.vocab_size, len(documents), 0)
    characters = sum(len(document.text) for document in documents)
    offsets = np.zeros(len(documents) + 1, dtype=np.int64)
    done = 0
    file.seek(manifest.start)
    for index, document in enumerate(documents):
        ids = check_range(tokenizer.encode(document.text), tokenizer.vocab_size).astype(manifest.dtype)
        file.write(ids.tobytes())
        offsets[index + 1] = offsets[index] + ids.size
        done += len(document.text)
        if progress is not None:
            progress(done, characters)
    content = {"format": _FORMAT, "key": key, "vocab_size": tokenizer.vocab_size}
    content |= {"documents": len(documents), "tokens": int(offsets[-1])}
    file.seek(0)
    file.write(json.dumps(content).encode().ljust(_HEADER - 1) + b"\n" + offsets.tobytes())


def _manifest(path: Path, header: bytes) -> _Manifest:
    try:
        content = json.loads(header)
    except ValueError as error:
        raise _damaged(path, "it does not begin with a manifest") from error
    match content:
        case {
            "format": "nestling.tokens.1",
            "key": str(key),
            "vocab_size": int(vocab_size),
            "documents": int(documents),
            "tokens": int(tokens),
        } if len(header) == _HEADER and min(vocab_size, documents, tokens) > 0:
            return _Manifest(key, vocab_size, documents, tokens)
        case _:
            raise _damaged(path, "its manifest is not that of a token file")


def _key(documents: Sequence[Document], tokenizer: Tokenizer) -> str:
    if not any(document.text for document in documents):
        raise NestlingError(f"no text in {len(documents)} documents: pass text files or folders that hold some text.")
    digest = hashlib.sha256(f"{_FORMAT} {tokenizer.vocab_size} {tokenizer.fingerprint}".encode())
    for document in documents:
        data = document.text.encode("utf-8", "replace")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _damaged(path: Path, reason: str) -> NestlingError:
    return NestlingError(f"{path} is no whole token file: {reason}. Delete it, and build it again.")
