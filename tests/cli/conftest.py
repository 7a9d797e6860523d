"""A tiny trained run, made once by the command itself, and a way to call commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nestling.cli import main

TINY = ["--changes", "{dim: 16, layers: 1, heads: 2}", "--length", "16", "--batch", "2", "--console", "quiet"]
TEXT = "def add(a, b):\n    return a + b\n\n\n" * 40


@dataclass(frozen=True)
class Called:
    """What a command left behind."""

    status: int
    out: str
    err: str


Call = Callable[..., Called]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.delenv("NESTLING_TRACEBACK", raising=False)

    def run(*arguments: str | Path) -> Called:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Called(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "add.py").write_text(TEXT)
    (folder / "words.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
    return folder


@pytest.fixture(scope="session")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of hope."""
    folder = tmp_path_factory.mktemp("runs") / "hope"
    words = ["--recipe", "hope", "--data", str(text), "--steps", "3", "--tensorboard", "false", *TINY]
    status = main(["train", "--out", str(folder), *words])
    assert status == 0
    return folder
