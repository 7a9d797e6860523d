"""``nestling describe``: recipes of every size, and trained runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import nestling as nl
from tests.cli.conftest import Call


def test_a_recipe_is_described_as_the_library_does(call: Call) -> None:
    said = call("describe", "hope", "--changes", "{layers: 1}")
    assert said.status == 0
    assert said.out == f"{nl.describe(nl.build('hope', layers=1))}\n"


def test_json_is_for_programs(call: Call) -> None:
    found = json.loads(call("describe", "titans_lmm", "--json").out)
    assert found["levels"][0]["unit"] == "token"


def test_it_draws_a_picture(call: Call, tmp_path: Path) -> None:
    said = call("describe", "hope", "--plot", tmp_path / "hope.svg")
    assert (said.status, said.out) == (0, f"{tmp_path / 'hope.svg'}\n")
    assert "channel.slow" in (tmp_path / "hope.svg").read_text("utf-8")


def test_the_largest_size_needs_no_memory(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = nl.recipes.build  # type: ignore[attr-defined]
    monkeypatch.setattr(nl.recipes, "build", lambda *given, **changes: made.append(plain(*given, **changes)) or made[0])
    assert call("describe", "transformer", "--size", "1.3b", "--vocab-size", "32000").status == 0
    assert {parameter.device for parameter in made[0].parameters()} == {torch.device("meta")}
    assert sum(parameter.numel() for parameter in made[0].parameters()) > 5e8


def test_a_run_is_described_by_its_checkpoint(run: Path, call: Call) -> None:
    said = call("describe", run)
    assert said.status == 0
    assert "blocks.0.mixer" in said.out


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["hop"], "nestling: error: unknown recipe 'hop': use one of transformer, "),
        (["hope", "--size", "big"], "nestling: error: unknown size 'big': use one of tiny, "),
        (["."], "nestling: error: no checkpoint in: .."),
        ([], "nestling: error: the following arguments are required: target. See nestling describe --help."),
    ],
)
def test_what_is_no_model_is_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], start: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("describe", *words)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(start), said.err
    assert said.err.count("\n") == 1
