"""A training beside another: a head start that nothing depends on."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nestling.demo.ahead import ahead
from nestling.demo.config import QUICK
from nestling.demo.contenders import baseline_config
from nestling.train import load_model, train


def test_what_was_trained_beside_is_found_finished_and_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    beside, here = (baseline_config("titans_lmm", QUICK, 0, tmp_path / name) for name in ("beside", "here"))
    with ahead(beside):
        pass
    assert capfd.readouterr() == ("", "")
    ours, _, manifest = load_model(beside.out)
    assert manifest.step == QUICK.steps
    train(here)
    theirs, _, _ = load_model(here.out)
    assert all((a == b).all() for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_body_that_fails_stops_it_saved(tmp_path: Path) -> None:
    config = baseline_config("titans_lmm", replace(QUICK, steps=100_000), 0, tmp_path)
    log = Path(config.out) / "log.jsonl"

    def body() -> None:
        deadline = time.monotonic() + 60
        while not (log.exists() and log.stat().st_size > 2000) and time.monotonic() < deadline:
            time.sleep(0.05)
        raise KeyError("the other training")

    with pytest.raises(KeyError), ahead(config):
        body()
    _, _, manifest = load_model(config.out)
    assert 0 < manifest.step < 100_000


def test_a_process_that_cannot_run_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = baseline_config("titans_lmm", QUICK, 0, tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with ahead(config):
        pass
    assert train(config).exit_code == 0
