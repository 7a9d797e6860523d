from __future__ import annotations

from pathlib import Path

import pytest

from nestling.data import BPETokenizer, ByteTokenizer, Document
from nestling.errors import NestlingError
from nestling.train.source import documents, hold_out, prepare
from tests.train.tiny import config


def corpus(*sizes: int) -> list[Document]:
    return [Document(f"d{index}", f"{index} " * size) for index, size in enumerate(sizes)]


def test_a_twentieth_of_many_documents_is_held_out_whole() -> None:
    given = corpus(*[50] * 100)
    train, valid = hold_out(given)
    assert sorted((*train, *valid), key=lambda d: d.name) == sorted(given, key=lambda d: d.name)
    size = sum(len(document.text) for document in given)
    assert size / 40 < sum(len(document.text) for document in valid) <= size / 20


def test_what_is_held_out_depends_on_the_texts_alone() -> None:
    given = corpus(*range(40, 80))
    moved = [Document("elsewhere/" + document.name, document.text) for document in reversed(given)]
    texts = [{document.text for document in hold_out(each)[1]} for each in (given, moved)]
    assert texts[0] == texts[1]


def test_large_documents_are_cut_at_a_line() -> None:
    text = "".join(f"line {index}\n" for index in range(100))
    train, valid = hold_out([Document("a", text), Document("b", text * 2)])
    assert [document.text for document in train] != [text, text * 2]
    for given, first, last in zip((text, text * 2), train, valid, strict=True):
        assert first.text + last.text == given
        assert first.text.endswith("\n")
        assert 0.02 < len(last.text) / len(given) < 0.1


def test_given_held_out_text_is_taken(tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("held out")
    asked = config(tmp_path, valid=(str(tmp_path / "held.txt"),))
    train, valid = documents(asked)
    assert len(train) == 30
    assert [document.text for document in valid] == ["held out"]


def test_without_data_the_standard_library_is_read(tmp_path: Path) -> None:
    train, valid = documents(config(tmp_path, data=()))
    assert "asyncio/events.py" in {document.name for document in train}
    assert "textwrap.py" in {document.name for document in valid}


def test_batches_of_bytes(tmp_path: Path) -> None:
    source = prepare(config(tmp_path), cache=tmp_path / "other")
    assert source.tokenizer == ByteTokenizer()
    assert source.train.batch(0).tokens.shape == (2, 16)
    assert source.key == source.train.tokens.key
    assert list((tmp_path / "other" / "tokens").iterdir())


def test_a_bpe_tokenizer_is_trained_on_the_training_text(tmp_path: Path) -> None:
    asked = config(tmp_path, tokenizer="bpe", vocab_size=300)
    source = prepare(asked)
    assert source.tokenizer == BPETokenizer.train(documents(asked)[0], 300)
    assert source.tokenizer.vocab_size == 300
    assert prepare(asked, ByteTokenizer()).tokenizer == ByteTokenizer()


def test_short_held_out_text_gives_short_rows(tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("held out")
    source = prepare(config(tmp_path, valid=(str(tmp_path / "held.txt"),)))
    assert source.valid.batch(0).tokens.shape == (2, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no text to read"), ("short", "tokens do not fill one row: length=16 needs 17"), (None, "no such file")],
)
def test_data_that_is_empty_missing_or_too_short_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    with pytest.raises(NestlingError, match=message):
        prepare(config(tmp_path, data=(str(tmp_path / "a.txt"),)))
