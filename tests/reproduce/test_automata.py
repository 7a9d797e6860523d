"""Cells are made once, kept at once, and gathered in a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nestling.cli import main
from nestling.data.synthetic.automata import LANGUAGES, task, vocabulary
from nestling.errors import NestlingError
from nestling.reproduce import automata
from nestling.reproduce.automata import CONTENDERS, Cell, Point
from nestling.reproduce.config import AutomataConfig
from nestling.reproduce.table import markdown


@pytest.fixture
def config(tmp_path: Path) -> AutomataConfig:
    return AutomataConfig(
        str(tmp_path / "made"), ("transformer", "deltanet"), ("(aa)*",), seeds=2, steps=2, batch=2, every=1
    )


def test_a_run_makes_every_cell_and_goes_on_where_it_stopped(config: AutomataConfig) -> None:
    path = Path(config.out, "cells.jsonl")
    cells = automata.run(config)
    assert [(cell.model, cell.seed) for cell in cells] == [
        (model, seed) for seed in (0, 1) for model in ("transformer", "deltanet")
    ]
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:3]), "utf-8")
    told: list[str] = []
    again = automata.run(config, told.append)
    assert sum("done before" in line for line in told) == 3
    assert again[:3] == cells[:3]
    assert again[3].curve == cells[3].curve  # equal seeds, equal runs
    assert len(path.read_text("utf-8").splitlines()) == 4


def test_cells_of_other_settings_are_refused(config: AutomataConfig) -> None:
    small = replace(config, models=("transformer",), seeds=1)
    automata.run(small)
    with pytest.raises(NestlingError, match=r"cells with steps 2, asked is 3: choose another --out"):
        automata.run(replace(small, steps=3))


def test_a_run_ends_when_both_bins_are_solved(config: AutomataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([0.5, 0.0, 1.0, 1.0])
    monkeypatch.setattr(automata, "accuracy", lambda model, words: next(found))
    made = task(LANGUAGES["(aa)*"], train=10)
    points = list(automata.train(CONTENDERS["transformer"], "(aa)*", 0, replace(config, steps=9), made))
    assert [(point.step, point.bins) for point in points] == [(1, (0.5, 0.0)), (2, (1.0, 1.0))]


def test_what_is_asked_is_the_average_of_the_weights(config: AutomataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With average 0 the weights as they are; with .999 what they were at first."""
    made, asked = task(LANGUAGES["(aa)*"], train=10), []
    monkeypatch.setattr(automata, "accuracy", lambda model, words: float(asked.append(model.head.weight.clone()) or 0))
    for average in (0.0, 0.999):
        list(automata.train(CONTENDERS["transformer"], "(aa)*", 0, replace(config, steps=5, average=average), made))
    now, slow = asked[0::2][:5], asked[0::2][5:]
    assert (now[4] - now[0]).abs().max() > 100 * (slow[4] - slow[0]).abs().max() > 0


def test_training_lowers_the_loss(config: AutomataConfig) -> None:
    made = task(LANGUAGES["a^n b^n"], train=50)
    longer = replace(config, steps=12, every=3, batch=8)
    losses = [point.loss for point in automata.train(CONTENDERS["deltanet"], "a^n b^n", 0, longer, made)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_are_of_one_size_and_read_the_longest_word(name: str) -> None:
    torch.manual_seed(0)
    model = CONTENDERS[name].build(vocabulary(LANGUAGES["a^n b^n c^n"]))
    assert 8_000 < sum(parameter.numel() for parameter in model.parameters()) < 20_000
    assert model(torch.zeros(1, 300, dtype=torch.int64))[0].shape == (1, 300, 4)


def test_linear_attention_forgets_nothing_and_knows_no_position() -> None:
    """Its layer reads a sum: what came in which order, and how long ago, is one."""
    torch.manual_seed(0)
    mixer = CONTENDERS["linear attention"].build(2).blocks[0].mixer
    x = torch.randn(1, 200, 32)
    mixed = torch.cat((x[:, :199][:, torch.randperm(199)], x[:, 199:]), 1)
    torch.testing.assert_close(mixer(x)[0][:, -1], mixer(mixed)[0][:, -1], rtol=1e-4, atol=1e-4)


def test_the_table_shows_the_best_the_last_and_the_spread(config: AutomataConfig) -> None:
    def cell(model: str, seed: int, *bins: tuple[float, float]) -> Cell:
        curve = tuple(Point(step, 0.1, each) for step, each in enumerate(bins, 1))
        return Cell(model, "parity", seed, 10_000, 2.0, curve)

    cells = [
        cell("hope", 0, (0.2, 0.0), (1.0, 1.0)),
        cell("hope", 1, (1.0, 0.9995), (1.0, 0.5)),
        cell("transformer", 0, (0.4, 0.0)),
    ]
    text = markdown(cells, config, "a machine")
    best, last = text.split("The same runs")
    assert "| hope | 100 / 99.9 (99.9–100) |" in best
    assert "| hope | 100 / 75 (50–100) |" in last
    assert "| transformer | 40 / 0 |" in best
    assert "a machine" in text


def test_the_command_writes_the_table(config: AutomataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--steps", "1", "--batch", "2", "--seeds", "1", "--models", "transformer", "--languages", "(aa)*"]
    assert main(["reproduce", "automata", "--out", config.out, *words]) == 0
    assert capsys.readouterr().out.strip() == Path(config.out, "table.md").read_text("utf-8").strip()
    held = json.loads(Path(config.out, "cells.jsonl").read_text("utf-8"))
    assert (held["model"], held["language"], held["seed"]) == ("transformer", "(aa)*", 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reproduce"], "reproduce needs the name of an experiment"),
        (["reproduce", "automaton"], "unknown experiment 'automaton'"),
        (["reproduce", "automata", "--models", "hoper"], "unknown model 'hoper'"),
        (["reproduce", "automata", "--languages", "dyck"], "unknown language 'dyck'"),
        (["reproduce", "automata", "--steps", "0"], "steps must be at least 1"),
        (["reproduce", "automata", "--average", "1"], "average must be at least 0 and below 1"),
    ],
)
def test_bad_requests_are_said_in_a_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--help"]) == 0
    assert "automata" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("language", ["(aa)*", "parity"])
def test_hope_tells_odd_from_even_far_beyond_what_it_has_learnt(language: str) -> None:
    made = task(LANGUAGES[language], train=2000, test=100)
    config = replace(AutomataConfig(), every=50)
    assert max(sum(point.bins) for point in automata.train(CONTENDERS["hope"], language, 0, config, made)) > 1.9
