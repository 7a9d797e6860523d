"""``nestling bench recipes``: a table that goes on where it stopped, on a page, with what failed named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import nestling as nl
from nestling.bench import measure as measuring
from nestling.bench import run as running
from nestling.bench.config import BenchConfig
from nestling.bench.measure import training
from nestling.bench.table import BEGIN, END, include, load
from nestling.cli import main
from tests.train.tiny import MODEL, text

NAMES = ("transformer", "gla")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Small models on a small text."""
    given = text(tmp_path / "text")
    monkeypatch.setattr(
        measuring,
        "training",
        lambda recipe, config: replace(training(recipe, config), changes=MODEL, data=(given,), console="quiet"),
    )
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    return BenchConfig(
        NAMES, str(tmp_path / "out"), str(page), steps=3, batch=2, length=16, vocab_size=256, valid=2, decode=2
    )


def test_every_recipe_has_a_row_with_all_figures(config, tmp_path):
    rows = running.bench(config)
    assert [row.recipe for row in rows] == list(NAMES)
    for row in rows:
        model = nl.build(row.recipe)
        assert row.parameters == sum(p.numel() for p in model.parameters())
        assert row.state_bytes == nl.describe(model).state_bytes
        assert min(row.training, row.decoding, row.before, row.trained, row.valid, row.gradient) > 0
        assert row.before == pytest.approx(8, rel=0.1) and not row.failure
    saved = json.loads((tmp_path / "out" / "recipes.json").read_text())
    assert saved["settings"]["steps"] == 3 and [row["recipe"] for row in saved["rows"]] == list(NAMES)
    table = (tmp_path / "out" / "recipes.md").read_text()
    assert table.startswith("`nestling bench recipes --steps 3 --batch 2 --length 16 ")
    page = (tmp_path / "page.md").read_text()
    assert page == f"above\n{BEGIN}\n\n{table}\n{END}\nbelow\n" and "| `gla` |" in page


def test_what_is_measured_is_not_measured_again(config, monkeypatch):
    """Called again it measures what is missing; with other settings everything."""
    first = running.bench(replace(config, recipes=("gla",)))
    measured = []
    plain = running.measure
    monkeypatch.setattr(running, "measure", lambda recipe, config: measured.append(recipe) or plain(recipe, config))
    both = running.bench(config)
    assert measured == ["transformer"] and both[1:] == first
    running.bench(config)
    assert measured == ["transformer"]
    running.bench(replace(config, recipes=("gla",), seed=1))
    assert measured == ["transformer", "gla"]


def test_a_recipe_that_fails_has_a_row_too(config, monkeypatch):
    """The loss becomes nan: its row says so, and the others are measured."""
    plain = measuring.train

    def train(run):
        if run.recipe == "gla":
            plain(replace(run, steps=1))
            raise nl.NestlingError("the loss is nan at step 2.")
        return plain(run)

    monkeypatch.setattr(measuring, "train", train)
    good, bad = running.bench(config)
    assert not good.failure
    assert bad.failure == "the loss is nan at step 2." and bad.decoding is None and bad.before is not None
    assert "- `gla` stopped: the loss is nan at step 2." in Path(config.page).read_text()


def test_a_page_without_a_place_for_the_table_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    for page in ("page.md", "absent.md"):
        with pytest.raises(nl.NestlingError, match="has no lines"):
            include(tmp_path / page, "table")
    (tmp_path / "recipes.json").write_text("{}")
    with pytest.raises(nl.NestlingError, match="no table of recipes"):
        load(tmp_path / "recipes.json")


def test_what_cannot_be_measured_is_refused_in_one_line(capsys):
    for words, message in (
        (["recipes", "hop"], "unknown recipe 'hop'"),
        (["recipes", "--steps", "0"], "steps must be"),
    ):
        assert main(["bench", *words]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
