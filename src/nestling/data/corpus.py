"""Documents: the text files that a user names, or the source of the Python standard library, which is always there."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nestling.errors import NestlingError

Split = Literal["train", "valid", "unseen"]
"""The three disjoint parts of the default corpus."""

_PROBE = 8192  # bytes that tell most binary files from text without reading them whole

# The default corpus is split by top-level package or module, so that no file of a held-out package is trained on.
_UNSEEN = ("email", "asyncio", "xml", "multiprocessing")  # the first that is there, whole: 250 to 500 KB of source
_VALID = frozenset({"configparser", "csv", "json", "logging", "statistics", "textwrap", "tomllib"})
_LEFT_OUT = frozenset(
    {
        *("site-packages", "dist-packages", "__pycache__", "sitecustomize", "usercustomize"),  # not the library
        *("test", "tests", "idlelib", "idle_test", "lib2to3"),  # absent from many installations
        *("encodings", "pydoc_data"),  # tables written by programs, a fifth of all bytes
    }
)
_LEFT_OUT_PREFIXES = (".", "_sysconfig", "config-")  # hidden, or written when this interpreter was built


@dataclass(frozen=True)
class Document:
    """One text and the name that it is known by: a model's state is reset where a document begins.

    >>> Document("greeting.txt", "hello").text
    'hello'
    """

    name: str
    text: str


@dataclass(frozen=True)
class Summary:
    """The size of a corpus: documents, lines, characters, and bytes of UTF-8. ``str`` of it is one line.

    >>> print(Summary(documents=2, lines=40, characters=1500, bytes=1520))
    2 documents, 40 lines, 1,520 bytes
    """

    documents: int
    lines: int
    characters: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.documents:,} documents, {self.lines:,} lines, {self.bytes:,} bytes"


def summary(documents: Sequence[Document]) -> Summary:
    """Count what ``documents`` hold.

    >>> summary([Document("a", "one"), Document("b", "é")])
    Summary(documents=2, lines=2, characters=4, bytes=5)
    """
    return Summary(
        documents=len(documents),
        lines=sum(len(document.text.splitlines()) for document in documents),
        characters=sum(len(document.text) for document in documents),
        bytes=sum(len(document.text.encode("utf-8", "replace")) for document in documents),
    )


def read(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Document]:
    """Read text files, and every text file below folders, in sorted order; a file that is reached twice is read once.

    Text is UTF-8; bytes that are not are replaced by U+FFFD, and a byte order mark is dropped. Below a folder, hidden
    names, empty files and binary files (those with a NUL byte) are skipped; a binary file named by itself is an error.

    Raises:
        NestlingError: a path is missing, unreadable, or no text; or nothing is left to read.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "b.txt").write_text("second"), (folder / "a.txt").write_text("first")
    >>> [document.text for document in read(folder)]
    ['first', 'second']
    """
    match paths:
        case str() | os.PathLike():
            named = [Path(paths).expanduser()]
        case _:
            named = [Path(path).expanduser() for path in paths]
    seen: set[Path] = set()
    documents = [document for path in named for document in _read_named(path, seen)]
    if not documents:
        given = ", ".join(map(str, named)) or "no path"
        raise NestlingError(f"no text to read in {given}: pass text files, or folders that hold some.")
    return documents


def stdlib(split: Split) -> list[Document]:
    """The default corpus: the Python source of the running interpreter's standard library, in sorted order.

    ``"unseen"`` is one whole package, to be read as a stream; ``"valid"`` is a few other packages and modules;
    ``"train"`` is the rest. Tests, generated tables and installed packages are left out. The parts depend only on the
    version of Python.

    Raises:
        NestlingError: another split; or this Python carries no source (a zipped or stripped installation).

    >>> sorted({document.name.split("/")[0] for document in stdlib("unseen")})
    ['email']
    """
    if split not in ("train", "valid", "unseen"):
        raise NestlingError(f"unknown split {split!r} of the standard library: use one of train, valid, unseen.")
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in _walk(root, set(), _is_library) if path.suffix == ".py"] if root.is_dir() else []
    tops = {path: path.relative_to(root).parts[0].removesuffix(".py") for path in files}
    parts: dict[str, Split] = dict.fromkeys(_VALID, "valid")
    parts |= dict.fromkeys([name for name in _UNSEEN if name in tops.values()][:1], "unseen")
    chosen = [path for path in files if parts.get(tops[path], "train") == split]
    contents = [(path.relative_to(root).as_posix(), _text(path)) for path in chosen]
    documents = [Document(name, text) for name, text in contents if text]
    if not documents:
        raise NestlingError(f"the Python at {root} has no library source for {split!r}: pass --data with text files.")
    return documents


def _is_library(name: str) -> bool:
    return name.removesuffix(".py") not in _LEFT_OUT and not name.startswith(_LEFT_OUT_PREFIXES)


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _read_named(path: Path, seen: set[Path]) -> Iterator[Document]:
    if _kind(path) == "folder":
        for file in _walk(path, seen, _is_visible):
            if text := _text(file):
                yield Document(file.as_posix(), text)
    elif path.resolve() not in seen:
        seen.add(path.resolve())
        text = _text(path)
        if text is None:
            raise NestlingError(f"{path} is binary (it has a NUL byte): leave it out, or convert it to UTF-8 text.")
        if text:
            yield Document(path.as_posix(), text)


def _kind(path: Path) -> Literal["file", "folder"]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise NestlingError(f"no such file or folder: {path}. Check the path.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "file"
    raise NestlingError(f"{path} is neither a file nor a folder: pass text files or folders.")


def _walk(folder: Path, seen: set[Path], keep: Callable[[str], bool]) -> Iterator[Path]:
    """The files below ``folder`` in sorted order, of names to ``keep``; ``seen`` ends loops of symbolic links."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    try:
        entries = [(entry, entry.is_dir(), entry.is_file()) for entry in sorted(folder.iterdir()) if keep(entry.name)]
    except OSError as error:
        raise _unreadable(folder, error) from error
    for entry, is_folder, is_file in entries:
        if is_folder:
            yield from _walk(entry, seen, keep)
        elif is_file and entry.resolve() not in seen:
            seen.add(entry.resolve())
            yield entry


def _text(path: Path) -> str | None:
    """The text of a file, or None when it is binary."""
    try:
        with path.open("rb") as file:
            head = file.read(_PROBE)
            if b"\0" in head:
                return None
            data = head + file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    return None if b"\0" in data else data.decode("utf-8-sig", "replace")


def _unreadable(path: Path, error: OSError) -> NestlingError:
    return NestlingError(f"cannot read {path}: {error.strerror or error}. Grant access to it, or leave it out.")
