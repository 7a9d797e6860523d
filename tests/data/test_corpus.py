"""Documents: what is read, what is skipped, and that the parts of the default corpus share nothing."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from nestling.data import Document, corpus, summary
from nestling.errors import NestlingError


def _put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_folder_is_read_whole_in_sorted_order_without_what_is_no_text(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.py", "a/b/c.md", "c"):
        _put(tmp_path / name, name.encode())
    _put(tmp_path / ".hidden", b"no")
    _put(tmp_path / ".git/config", b"no")
    _put(tmp_path / "image.png", b"\x89PNG\0")
    _put(tmp_path / "late.bin", b"x" * 10_000 + b"\0")
    _put(tmp_path / "empty.txt", b"")
    documents = corpus.read(tmp_path)
    assert [document.text for document in documents] == ["a/b/c.md", "a/z.py", "b.txt", "c"]
    assert [document.name for document in documents] == [f"{tmp_path.as_posix()}/{d.text}" for d in documents]


def test_text_is_utf8_without_byte_order_mark_and_with_replacements(tmp_path: Path) -> None:
    path = _put(tmp_path / "a.txt", b"\xef\xbb\xbfcaf\xc3\xa9 \xff\r\n")
    assert corpus.read(path) == [Document(path.as_posix(), "café \ufffd\r\n")]


def test_one_path_and_a_list_of_paths_are_the_same(tmp_path: Path) -> None:
    path = _put(tmp_path / "a.txt", b"text")
    assert corpus.read(str(path)) == corpus.read(path) == corpus.read([path]) == corpus.read(p for p in [str(path)])


def test_paths_keep_their_order_and_a_file_reached_twice_is_read_once(tmp_path: Path) -> None:
    first, second = _put(tmp_path / "z/a.txt", b"first"), _put(tmp_path / "b.txt", b"second")
    assert [d.text for d in corpus.read([first, tmp_path, second])] == ["first", "second"]


def test_a_loop_of_symbolic_links_ends(tmp_path: Path) -> None:
    _put(tmp_path / "a/b.txt", b"once")
    (tmp_path / "a/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert [d.text for d in corpus.read(tmp_path)] == ["once"]


def test_a_hidden_file_named_by_itself_is_read(tmp_path: Path) -> None:
    assert len(corpus.read(_put(tmp_path / ".notes", b"text"))) == 1


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    _put(tmp_path / "a.txt", b"text")
    with pytest.raises(NestlingError, match=r"no such file or folder: .*missing\.txt"):
        corpus.read([tmp_path, tmp_path / "missing.txt"])


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    _put(tmp_path / "image.png", b"\0")
    with pytest.raises(NestlingError, match=r"no text to read in .*: pass text files"):
        corpus.read(tmp_path)
    with pytest.raises(NestlingError, match="no text to read in no path"):
        corpus.read([])


def test_a_binary_file_named_by_itself_is_an_error(tmp_path: Path) -> None:
    path = _put(tmp_path / "image.png", b"\0")
    with pytest.raises(NestlingError, match=r"image\.png is binary"):
        corpus.read(path)


def test_a_pipe_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NestlingError, match="neither a file nor a folder"):
        corpus.read(tmp_path / "pipe")


@pytest.mark.parametrize("method", ["open", "iterdir", "stat"])
def test_what_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    _put(tmp_path / "a.txt", b"text")

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(NestlingError, match=r"^cannot read .*: Permission denied\. Grant access") as caught:
        corpus.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_summary_counts() -> None:
    got = summary([Document("a", "ä\nb\n"), Document("b", "")])
    assert (got.documents, got.lines, got.characters, got.bytes) == (2, 2, 4, 5)
    assert str(got) == "2 documents, 2 lines, 5 bytes"


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Document]]:
    return {split: corpus.stdlib(split) for split in ("train", "valid", "unseen")}


def test_stdlib_parts_share_no_top_level_name_and_no_text(parts: dict[str, list[Document]]) -> None:
    tops = {split: {d.name.split("/")[0].removesuffix(".py") for d in documents} for split, documents in parts.items()}
    texts = {split: {d.text for d in documents} for split, documents in parts.items()}
    for one, other in (("train", "valid"), ("train", "unseen"), ("valid", "unseen")):
        assert tops[one].isdisjoint(tops[other])
        assert texts[one].isdisjoint(texts[other])


def test_stdlib_unseen_is_one_whole_package_to_read_as_a_stream(parts: dict[str, list[Document]]) -> None:
    (name,) = {d.name.split("/")[0] for d in parts["unseen"]}
    package = Path(sysconfig.get_paths()["stdlib"], name)
    sources = {p.relative_to(package.parent).as_posix() for p in package.rglob("*.py") if p.read_bytes()}
    assert {d.name for d in parts["unseen"]} == sources
    assert 200_000 < summary(parts["unseen"]).bytes < 700_000


def test_stdlib_holds_the_library_and_nothing_else(parts: dict[str, list[Document]]) -> None:
    names = {d.name for d in parts["train"]}
    assert {"argparse.py", "asyncio/tasks.py"} <= names
    strangers = {"site-packages", "test", "tests", "idlelib", "encodings", "__pycache__"}
    assert not [name for name in names if strangers & set(name.split("/")) or "_sysconfigdata" in name]
    assert summary(parts["train"]).bytes > 10 * summary(parts["valid"]).bytes
    assert summary(parts["valid"]).bytes > 200_000


def test_stdlib_is_the_same_each_time(parts: dict[str, list[Document]]) -> None:
    assert corpus.stdlib("valid") == parts["valid"]
    assert [d.name for d in parts["train"]] == [d.name for d in corpus.stdlib("train")]


def test_without_the_first_choice_another_package_is_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("asyncio/tasks.py", "xml/dom.py", "json/decoder.py", "ast.py", "site-packages/torch/nn.py"):
        _put(tmp_path / name, name.encode())
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert [d.name for d in corpus.stdlib("unseen")] == ["asyncio/tasks.py"]
    assert [d.name for d in corpus.stdlib("valid")] == ["json/decoder.py"]
    assert [d.name for d in corpus.stdlib("train")] == ["ast.py", "xml/dom.py"]


@pytest.mark.parametrize("folder", ["", "python311.zip"])
def test_a_python_without_source_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / folder)})
    with pytest.raises(NestlingError, match=r"no library source for 'train': pass --data"):
        corpus.stdlib("train")


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(NestlingError, match=r"unknown split 'test'.*train, valid, unseen"):
        corpus.stdlib("test")  # type: ignore[arg-type]
