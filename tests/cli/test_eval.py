"""``nestling eval``: what it prints is what the library computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nestling import data, eval, train
from tests.cli.conftest import Call


def test_the_figures_are_those_of_the_library(run: Path, text: Path, call: Call) -> None:
    said = call("eval", run, text, "--memory", "both", "--state", "carried", "--json")
    assert said.status == 0
    found = json.loads(said.out)
    model, tokenizer, _ = train.load_model(run)
    wanted = eval.score(model, data.corpus.read(text), tokenizer, eval.Carried())
    shut = eval.score(model.frozen(), data.corpus.read(text), tokenizer, eval.Carried())
    assert found["state"] == "carried"
    assert found["memory"]["on"]["bits_per_byte"] == wanted.bits_per_byte
    assert found["memory"]["on"]["perplexity"] == wanted.perplexity
    assert found["memory"]["off"]["bits_per_byte"] == shut.bits_per_byte
    edges = found["memory"]["on"]["positions"]
    assert (edges[0]["from"], edges[-1]["to"]) == (1, wanted.length)


def test_fresh_documents_are_shorter_streams_than_a_carried_one(run: Path, text: Path, call: Call) -> None:
    ends = [
        json.loads(call("eval", run, text, "--state", state, "--json").out)["memory"]["on"]["positions"][-1]["to"]
        for state in ("fresh", "carried")
    ]
    assert ends[0] < ends[1]


def test_the_table_has_a_column_for_each_memory(run: Path, text: Path, call: Call) -> None:
    shown = call("eval", run, text / "add.py", "--memory", "both").out
    assert "memory on    memory off" in shown
    assert "bits per byte by position in the stream (tokens)" in shown
    assert "memory off" not in call("eval", run, text / "add.py").out


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["absent.txt"], "nestling: error: no such file or folder: absent.txt."),
        (["EMPTY"], "nestling: error: no text to read in EMPTY"),
        (["--memory", "maybe"], "nestling: error: --memory: expected one of on, off, both, got maybe."),
    ],
)
def test_what_cannot_be_read_is_one_line(
    run: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, words: list[str], start: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    said = call("eval", run, *words)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(start), said.err
    assert said.err.count("\n") == 1
