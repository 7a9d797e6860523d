"""One toy demonstration, made once by the command itself, and results made by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nestling.cli import main
from nestling.demo.results import Contender, Difference, Kept, Reader, Results, Sessions, Stream
from tests.cli.conftest import call

__all__ = ["call"]  # a fixture


@dataclass(frozen=True)
class Report:
    """What the command wrote and printed."""

    folder: Path
    out: str
    err: str

    @property
    def page(self) -> str:
        return (self.folder / "index.html").read_text("utf-8")

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """``nestling demo --quick``."""
    import contextlib
    import io

    folder, out, err = tmp_path_factory.mktemp("demo") / "report", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["demo", "--quick", "--out", str(folder)])
    assert status == 0, err.getvalue()
    return Report(folder, out.getvalue(), err.getvalue())


@pytest.fixture
def results() -> Results:
    """Writing helps, and more and more; the transformer is worse; sessions are exact; little is forgotten."""
    readers = [
        Reader(name, bits, windows, 1000.0, 4096)
        for name, bits, windows in (
            ("hope, memory on", 2.0, (2.2, 2.1, 1.9, 1.8)),
            ("hope, memory off", 2.3, (2.3, 2.3, 2.3, 2.3)),
            ("transformer", 2.5, (2.5, 2.6, 2.4, 2.5)),
        )
    ]
    on, off, baseline = readers
    stream = Stream(
        package="email",
        part="email",
        documents=2,
        bytes=4000,
        tokens=1000,
        window_bytes=1000,
        on=on,
        off=off,
        baseline=baseline,
        memory=Difference.between(off, on),
        against_baseline=Difference.between(baseline, on),
    )
    contender = Contender("hope", 1000, "Hope()", "report/runs/hope-1", 5000, 9.0, 2.4, ((1000, 5.0), (5000, 2.5)))
    return Results(
        command="nestling demo --recipe hope --seed 0",
        machine={"processor": "abacus", "system": "Linux", "threads": 2, "python": "3.11", "torch": "2.13"},
        plan={"length": 64},
        seed=0,
        corpus={"train": "much", "valid": "some", "unseen": "a little"},
        memory=contender,
        baseline=replace(contender, recipe="transformer"),
        stream=stream,
        sessions=Sessions(501, 499, 2048, 0.0, 0.0, 0.4),
        kept=(
            Kept("training documents", 4, 4000, 2.0, 2.05, 0.01),
            Kept("held-out documents", 4, 4000, 2.0, 2.0, 0.01),
        ),
        levels=(
            {
                "name": "memory",
                "period": 16,
                "unit": "token",
                "context": "c",
                "objective": "o",
                "rule": "r",
                "parameters": 9,
            },
            {
                "name": "still",
                "period": None,
                "unit": "step",
                "context": "c",
                "objective": "o",
                "rule": "r",
                "parameters": 9,
            },
        ),
        level_table="levels",
        seconds=12.0,
    )
