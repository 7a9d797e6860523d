"""Tokens on disk: encoded once, whole or rebuilt, and never damaged by a crash or by another builder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.data import BPETokenizer, ByteTokenizer, Document, TokenFile, cache_folder
from nestling.errors import NestlingError


def documents(*texts: str) -> list[Document]:
    return [Document(f"{index}.txt", text) for index, text in enumerate(texts)]


@dataclass
class Counting:
    """A tokenizer of any vocabulary whose ids count up, and which knows how often it was called."""

    vocab_size: int
    calls: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return f"counting {self.vocab_size}"

    def encode(self, text: str) -> list[int]:
        self.calls.append(text)
        return [self.vocab_size - 1 - index for index in range(len(text))]

    def decode(self, ids: Iterable[int]) -> str:
        raise NotImplementedError

    to_bytes = count_bytes = save = decode


@given(texts=st.lists(st.text(max_size=20)).filter(any))
@settings(max_examples=30)
def test_every_document_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    tokenizer = BPETokenizer(((101, 32), (116, 104)))
    tokens = TokenFile.build(documents(*texts), tokenizer, cache=tmp_path_factory.mktemp("cache"))
    assert [tokenizer.decode(tokens.document(index)) for index in range(len(texts))] == texts
    assert tokens.documents[0] == 0
    assert tokens.documents[-1] == len(tokens) == len(tokens.tokens)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32), (200_000, np.uint32)],
)
def test_the_smallest_type_that_holds_the_vocabulary_is_used(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    tokens = TokenFile.build(documents("ab"), Counting(vocab_size), cache=tmp_path)
    assert tokens.tokens.dtype == dtype
    assert tokens.tokens.tolist() == [vocab_size - 1, vocab_size - 2]
    assert tokens.vocab_size == vocab_size


def test_tokens_are_a_read_only_map(tmp_path: Path) -> None:
    tokens = TokenFile.build(documents("text"), ByteTokenizer(), cache=tmp_path)
    assert isinstance(tokens.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens.tokens[0] = 1


def test_the_second_time_nothing_is_encoded(tmp_path: Path) -> None:
    tokenizer = Counting(300)
    first = TokenFile.build(documents("one", "two"), tokenizer, cache=tmp_path)
    again = TokenFile.build(documents("one", "two"), tokenizer, cache=tmp_path)
    assert tokenizer.calls == ["one", "two"]
    assert (again.path, again.key, again.tokens.tolist()) == (first.path, first.key, first.tokens.tolist())
    assert TokenFile.open(first.path).tokens.tolist() == first.tokens.tolist()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [first.path]


def test_other_texts_other_cuts_and_other_tokenizers_have_other_files(tmp_path: Path) -> None:
    corpora = [("one", "two"), ("onet", "wo"), ("two", "one"), ("onetwo",), ("one", "two", "")]
    paths = [TokenFile.build(documents(*texts), ByteTokenizer(), cache=tmp_path).path for texts in corpora]
    paths.append(TokenFile.build(documents("one", "two"), BPETokenizer(()), cache=tmp_path).path)
    assert len(set(paths)) == len(paths)


def test_names_do_not_matter(tmp_path: Path) -> None:
    first = TokenFile.build([Document("a", "text")], ByteTokenizer(), cache=tmp_path)
    assert TokenFile.build([Document("b", "text")], ByteTokenizer(), cache=tmp_path).path == first.path


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _truncate_header(path: Path) -> None:
    os.truncate(path, 100)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _foreign(path: Path) -> None:
    path.write_bytes(b"something else" * 100)


def _other_json(path: Path) -> None:
    path.write_bytes(b'{"format": "other"}'.ljust(512) + bytes(100))


def _many_documents(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"documents": 2,', b'"documents": 9999999999999,', 1))


def _disorder(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[512 + 8 : 512 + 16] = (99).to_bytes(8, "little")
    path.write_bytes(data)


DAMAGE = pytest.mark.parametrize(
    "damage",
    [_truncate, _truncate_header, _empty, _lengthen, _foreign, _other_json, _many_documents, _disorder, Path.unlink],
)


@DAMAGE
def test_a_damaged_file_is_refused_by_open_and_rebuilt_by_build(tmp_path: Path, damage) -> None:
    corpus = documents("one", "three")
    first = TokenFile.build(corpus, ByteTokenizer(), cache=tmp_path)
    data = first.path.read_bytes()
    damage(first.path)
    with pytest.raises(NestlingError, match=r"[Bb]uild (it|them) again") as caught:
        TokenFile.open(first.path)
    assert "\n" not in str(caught.value)
    again = TokenFile.build(corpus, ByteTokenizer(), cache=tmp_path)
    assert bytes(again.document(1)) == b"three"
    assert again.path.read_bytes() == data


def test_a_whole_file_of_another_corpus_is_rebuilt(tmp_path: Path) -> None:
    one = TokenFile.build(documents("one"), ByteTokenizer(), cache=tmp_path)
    two = TokenFile.build(documents("two"), ByteTokenizer(), cache=tmp_path)
    one.path.write_bytes(two.path.read_bytes())
    with pytest.raises(NestlingError, match="another corpus"):
        TokenFile.open(one.path, one.key)
    assert bytes(TokenFile.build(documents("one"), ByteTokenizer(), cache=tmp_path).tokens) == b"one"


def test_a_crash_while_writing_leaves_nothing_that_is_opened(tmp_path: Path) -> None:
    @dataclass
    class Failing(Counting):
        def encode(self, text: str) -> list[int]:
            if text == "two":
                raise KeyboardInterrupt
            return super().encode(text)

    with pytest.raises(KeyboardInterrupt):
        TokenFile.build(documents("one", "two"), Failing(300), cache=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(TokenFile.build(documents("one", "two"), Counting(300), cache=tmp_path)) == 6


def test_builders_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    corpus = documents(*("some text " * 200 for _ in range(50)))

    def build(_: int) -> bytes:
        return bytes(TokenFile.build(corpus, ByteTokenizer(), cache=tmp_path).tokens)

    with ThreadPoolExecutor(8) as pool:
        results = set(pool.map(build, range(24)))
    assert results == {b"some text " * 200 * 50}


def test_a_map_outlives_the_rebuilding_of_its_file(tmp_path: Path) -> None:
    tokens = TokenFile.build(documents("text"), ByteTokenizer(), cache=tmp_path)
    tokens.path.unlink()
    TokenFile.build(documents("text"), ByteTokenizer(), cache=tmp_path)
    assert bytes(tokens.tokens) == b"text"


def test_progress_counts_characters(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    TokenFile.build(documents("one", "", "three"), ByteTokenizer(), tmp_path, lambda *call: calls.append(call))
    assert calls == [(3, 8), (3, 8), (8, 8)]


def test_ids_that_the_tokenizer_should_not_give_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NestlingError, match="token id -1 at position 3 is outside the vocabulary of 3"):
        TokenFile.build(documents("abcd"), Counting(3), cache=tmp_path)


@pytest.mark.parametrize("corpus", [[], documents("", "")])
def test_no_text_is_an_error(tmp_path: Path, corpus: list[Document]) -> None:
    with pytest.raises(NestlingError, match=rf"no text in {len(corpus)} documents"):
        TokenFile.build(corpus, ByteTokenizer(), cache=tmp_path)


def test_a_document_out_of_range_is_an_error(tmp_path: Path) -> None:
    tokens = TokenFile.build(documents("a", "b"), ByteTokenizer(), cache=tmp_path)
    for index in (-1, 2):
        with pytest.raises(NestlingError, match=rf"document {index} is out of range: .* has 2"):
            tokens.document(index)


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NestlingError, match=r"cannot write tokens to .*Set NESTLING_CACHE"):
        TokenFile.build(documents("text"), ByteTokenizer(), cache=tmp_path / "file")


def test_the_cache_folder_is_the_argument_then_the_variable_then_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NESTLING_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "nestling"
    monkeypatch.setenv("XDG_CACHE_HOME", "/users")
    assert cache_folder() == Path("/users/nestling")
    monkeypatch.setenv("NESTLING_CACHE", "~/chosen")
    assert cache_folder() == Path.home() / "chosen"
    assert cache_folder("given") == Path("given")


def test_a_killed_builder_leaves_a_cache_that_the_next_one_uses(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from nestling.data import ByteTokenizer, Document, TokenFile\n"
        "die = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done > 3 else None\n"
        "TokenFile.build([Document('a', 'one'), Document('b', 'two')], ByteTokenizer(), sys.argv[1], die)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment)
    assert ended.returncode == -9
    assert bytes(TokenFile.build(documents("one", "two"), ByteTokenizer(), cache=tmp_path).tokens) == b"onetwo"
