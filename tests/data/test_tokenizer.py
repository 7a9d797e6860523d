"""Tokenizers lose nothing, count bytes, survive their file, and refuse ids outside their vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.data import BPETokenizer, ByteTokenizer, Document, IncrementalDecoder, Tokenizer, check_range
from nestling.data import load_tokenizer as load
from nestling.errors import NestlingError

_TEXT = "def scan(state, query):\n    return state, query  # the state — и запрос\n" * 8
BPE = BPETokenizer.train([Document("a", _TEXT), Document("b", "")], vocab_size=300)
BOTH = pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["byte", "bpe"])
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.text("def scan(state)\n—и")


@BOTH
@given(text=texts)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.to_bytes(ids) == text.encode()
    assert tokenizer.count_bytes(ids) == len(text.encode())
    assert all(0 <= index < tokenizer.vocab_size for index in ids)


@BOTH
@given(data=st.data())
def test_decoding_piece_by_piece_is_decoding_whole_for_any_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    index = st.integers(0, tokenizer.vocab_size - 1)
    pieces = data.draw(st.lists(st.lists(index, max_size=3) | texts.map(tokenizer.encode)))
    decoder = IncrementalDecoder(tokenizer)
    parts = [decoder.push(piece) for piece in pieces]
    assert "".join(parts) + decoder.flush() == tokenizer.decode([index for piece in pieces for index in piece])


def test_a_character_is_given_out_with_its_last_byte_and_not_before() -> None:
    decoder = IncrementalDecoder(ByteTokenizer())
    assert [decoder.push([byte]) for byte in "a€".encode()] == ["a", "", "", "€"]
    assert (decoder.push([0xE2]), decoder.flush()) == ("", "\ufffd")


@BOTH
def test_a_lone_surrogate_becomes_a_question_mark(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


@BOTH
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_ids_may_be_a_list_an_array_or_a_tensor(tokenizer: Tokenizer, kind: type) -> None:
    ids = kind(tokenizer.encode("state é"))
    assert tokenizer.decode(ids) == "state é"
    assert tokenizer.count_bytes(ids) == 8


@BOTH
def test_no_ids_are_no_text(tokenizer: Tokenizer) -> None:
    assert (tokenizer.encode(""), tokenizer.decode([]), tokenizer.count_bytes([])) == ([], "", 0)


@BOTH
def test_the_file_gives_an_equal_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t.json")
    again = load(tmp_path / "t.json")
    assert again == tokenizer
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(_TEXT) == tokenizer.encode(_TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_training_again_gives_the_same_tokenizer_and_other_text_another() -> None:
    documents = [Document("a", _TEXT), Document("b", "")]
    assert BPETokenizer.train(documents, vocab_size=300) == BPE
    other = BPETokenizer.train(documents, vocab_size=280)
    assert len({ByteTokenizer().fingerprint, BPE.fingerprint, other.fingerprint}) == 3
    assert other.merges == BPE.merges[:24]


def test_training_reaches_the_size_and_shortens_the_text() -> None:
    assert BPE.vocab_size == 300
    assert len(BPE.encode(_TEXT)) < len(_TEXT.encode()) / 2
    assert repr(BPE) == f"BPETokenizer(vocab_size=300, fingerprint='{BPE.fingerprint[:12]}')"


def test_without_merges_it_is_the_byte_tokenizer() -> None:
    assert BPETokenizer(()).encode(_TEXT) == ByteTokenizer().encode(_TEXT)


def test_a_corpus_that_runs_out_of_pairs_gives_fewer_tokens() -> None:
    assert BPETokenizer.train([Document("a", "aa")], vocab_size=1000).vocab_size == 257


def test_merges_that_spell_the_same_bytes_share_an_id() -> None:
    tokenizer = BPETokenizer(((97, 98), (98, 99), (256, 99), (97, 257)))  # ab, bc, ab c, a bc
    assert tokenizer.vocab_size == 259
    assert tokenizer.encode("abc bc") == [258, 32, 257]


@given(text=st.text("abc ", min_size=1, max_size=200), size=st.integers(256, 300))
@settings(max_examples=50)
def test_what_training_learns_from_any_text_is_what_tokenizers_learned(text: str, size: int) -> None:
    tokenizer = BPETokenizer.train([Document("a", text)], vocab_size=size)
    assert tokenizer.vocab_size <= size
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert BPETokenizer(tokenizer.merges).encode(text) == tokenizer.encode(text)


def test_training_needs_room_for_the_bytes_and_some_text() -> None:
    with pytest.raises(NestlingError, match=r"at least 256.*got 100"):
        BPETokenizer.train([Document("a", "text")], vocab_size=100)
    with pytest.raises(NestlingError, match="no text to train"):
        BPETokenizer.train([Document("a", "")], vocab_size=300)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "nestling.tok', "no tokenizer: not whole JSON"),
        ("\udcff", "not whole JSON"),
        ("[1, 2]", "no tokenizer of Nestling"),
        ('{"format": "nestling.tokenizer", "version": 9, "kind": "byte"}', "kind 'byte', version 9"),
        ('{"format": "nestling.tokenizer", "version": 1, "kind": "word"}', "kind 'word'"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(NestlingError, match=message):
        load(tmp_path / "t.json")


@pytest.mark.parametrize("merge", [[97], "ab", [97, 500], [-1, 97], [97.0, 98]])
def test_damaged_merges_are_refused(tmp_path: Path, merge: object) -> None:
    BPE.save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(content | {"merges": [*content["merges"], merge]}))
    with pytest.raises(NestlingError, match="damaged"):
        load(tmp_path / "t.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NestlingError, match=r"cannot read the tokenizer .*t\.json: No such file"):
        load(tmp_path / "t.json")


@BOTH
@pytest.mark.parametrize("ids", [[0, -1], [0, 5000]])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, ids: list[int]) -> None:
    for use in (tokenizer.decode, tokenizer.to_bytes, tokenizer.count_bytes):
        with pytest.raises(NestlingError, match=f"token id {ids[1]} at position 1 is outside the vocabulary"):
            use(ids)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_check_range_gives_the_ids_back_or_says_which_is_outside(kind: type) -> None:
    assert check_range(kind([0, 255]), 256).tolist() == [0, 255]
    with pytest.raises(
        NestlingError, match=r"token id 256 at position 2 .* of 256 \(ids 0 to 255\): use the tokenizer"
    ):
        check_range(kind([0, 1, 256]), 256)
    with pytest.raises(NestlingError, match="must be integers, got float64"):
        check_range(np.array([0.5]), 256)


def test_check_range_reads_every_row() -> None:
    with pytest.raises(NestlingError, match="token id 9 at position 3"):
        check_range(torch.tensor([[0, 1], [2, 9]]), 9)
