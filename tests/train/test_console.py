from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from nestling.train.console import Bar, Describer, Lines, Quiet, view
from nestling.train.log import Ended, Evaluated, Saved, Started, Trained

RUN = Path("runs/a")
STARTED = Started(0, 1000, "hope", "tiny", 1_234_567, 4096, 8_000_000, 50, "cpu", "float32")
TRAINED = Trained(100, 2.5, 3.607, 1e-3, 0.5, 409_600, 20_480.0)
EVENTS = [STARTED, TRAINED, Evaluated(100, 2.25, 3.25), Saved(100, "step_00000100"), Ended(100, signal.SIGINT)]


def test_events_as_lines() -> None:
    describe = Describer(RUN)
    assert [describe(event) for event in EVENTS] == [
        "hope (tiny) begins: 1,234,567 parameters, 1,000 steps of 4,096 tokens from 8,000,000, cpu, float32",
        "step 100/1,000  loss 2.500  3.607 bits/byte  20,480 tokens/s  lr 1.00e-03  3:00 left",
        "step 100: held-out loss 2.250, 3.250 bits/byte",
        "step 100: wrote runs/a/step_00000100",
        "stopped by SIGINT after step 100: saved runs/a/step_00000100. Give the same command to go on.",
    ]
    assert describe(Ended(1000, 0)) == "finished after step 1,000: runs/a/step_00000100"
    assert "goes on after step 100: " in describe(Started(**{**vars(STARTED), "step": 100}))


def test_without_a_terminal_updates_are_shown_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    seldom, always = Lines(RUN, pause=1e9), Lines(RUN, pause=0.0)
    for event in EVENTS:
        seldom(event)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "hope (tiny) begins",
        "step 100",
        "stopped by SIGINT after step 100",
    ]
    always(TRAINED)
    captured = capsys.readouterr()
    assert captured.err.startswith("step 100/")
    assert captured.out == ""


def test_on_a_terminal_the_bar_moves_and_evaluations_stay() -> None:
    screen = io.StringIO()
    bar = Bar(RUN, Console(file=screen, force_terminal=True, width=160))
    for event in EVENTS:
        bar(event)
        bar._progress.refresh()
    bar.close()
    shown = screen.getvalue()
    assert "100/1000" in shown
    assert "loss 2.500  3.607 bits/byte  20,480 tokens/s  lr 1.00e-03  3:00 left" in shown
    assert "step 100: held-out loss 2.250" in shown


def test_the_view_suits_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(view("auto", RUN), Bar)
    assert isinstance(view("plain", RUN), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert isinstance(view("auto", RUN), Lines)
    assert isinstance(view("quiet", RUN), Quiet)
