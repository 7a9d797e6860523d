"""The whole job at toy scale: what it writes, what it prints, and that it repeats itself."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import nestling as nl
from nestling.cli import main
from nestling.demo import contenders
from nestling.demo.config import QUICK
from nestling.train import Event, TrainConfig, Trained, TrainResult
from tests.cli.conftest import Call
from tests.demo.conftest import Report


def test_the_summary_holds_every_part(report: Report) -> None:
    found = report.summary
    assert found["plan"]["steps"] == QUICK.steps
    assert found["stream"]["package"] == "email"
    assert found["stream"]["tokens"] == QUICK.unseen
    assert len(found["stream"]["on"]["windows"]) == QUICK.windows
    assert [kept["kind"] for kept in found["kept"]] == ["training documents", "held-out documents"]
    assert found["memory"]["tokens"] == found["baseline"]["tokens"] == QUICK.tokens
    assert found["levels"][-1]["name"] == "weights"


def test_both_models_have_about_the_same_size(report: Report) -> None:
    sizes = [report.summary[key]["parameters"] for key in ("memory", "baseline")]
    assert abs(sizes[0] - sizes[1]) <= 0.03 * sizes[0]


def test_sessions_are_exact(report: Report) -> None:
    sessions = report.summary["sessions"]
    assert sessions["reload_difference"] == 0
    assert sessions["fork_difference"] == 0
    assert sessions["child_difference"] > 0
    assert sessions["position"] + sessions["tokens"] == QUICK.unseen


def test_the_command_prints_the_findings_of_the_summary(report: Report) -> None:
    printed = " ".join(report.out.replace("•", " ").split())
    for sentence in [*report.summary["findings"], report.summary["caveat"]]:
        assert sentence in printed


def test_progress_is_plain_lines_on_stderr(report: Report) -> None:
    assert "[1/5] train" in report.err
    assert "\x1b" not in report.err + report.out


def test_the_trained_models_can_be_opened(report: Report) -> None:
    for key in ("memory", "baseline"):
        model, _, manifest = nl.load_model(report.summary[key]["folder"])
        assert manifest.step == QUICK.steps
        assert repr(model.config) == report.summary[key]["shape"]


def test_the_same_command_repeats_the_same_figures(report: Report, tmp_path: Path, capsys) -> None:
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "summary.json").read_text())
    for path in ("stream.on.windows", "stream.off.windows", "stream.baseline.windows", "kept"):
        ours, theirs = again, report.summary
        for key in path.split("."):
            ours, theirs = ours[key], theirs[key]
        assert ours == theirs, path
    assert again["memory"]["bits_per_byte"] == report.summary["memory"]["bits_per_byte"]


def test_an_interrupt_saves_and_the_same_command_goes_on(tmp_path: Path, call: Call, monkeypatch) -> None:
    before = contenders.train

    def stopped(config: TrainConfig) -> TrainResult:
        def once(event: Event) -> None:
            if isinstance(event, Trained) and event.step == 1:
                signal.raise_signal(signal.SIGINT)

        return before(config, [once])

    monkeypatch.setattr(contenders, "train", stopped)
    said = call("demo", "--quick", "--out", tmp_path)
    assert said.status == 130
    assert "stopped by SIGINT after step 1" in said.err
    monkeypatch.setattr(contenders, "train", before)
    said = call("demo", "--quick", "--out", tmp_path)
    assert said.status == 0
    assert "goes on after step 1" in said.err


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["--recipe", "transformer"], "nestling: error: --recipe: expected one of hope, titans_lmm, got transformer."),
        (["--minutes", "0"], "nestling: error: minutes must be positive, got 0.0: use 5."),
        (["--seed", "-1"], "nestling: error: seed must not be negative, got -1: use 0."),
        (["--out", ""], "nestling: error: out must be a folder, got '': use report."),
    ],
)
def test_what_is_no_demonstration_is_one_line(call: Call, words: list[str], start: str) -> None:
    said = call("demo", *words)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(start), said.err
    assert said.err.count("\n") == 1
