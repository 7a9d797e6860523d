from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nestling.errors import NestlingError
from nestling.train import dry_run, train
from tests.train.tiny import config, curve


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_dry_run_reports_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(tmp_path, tokenizer="bpe", vocab_size=270)
    dry_run(asked)  # torch makes a folder of its own at its first use
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before, random = files(tmp_path), torch.get_rng_state()
    report = dry_run(asked)
    assert files(tmp_path) == before
    assert torch.equal(torch.get_rng_state(), random)

    assert report.tokens_per_step == 2 * 16 * 2
    assert report.steps == 12
    assert report.seconds == pytest.approx(12 * report.seconds_per_step)
    assert report.seconds_per_step > 0
    assert report.epochs == pytest.approx(12 * 64 / report.train_tokens)
    assert report.memory > 2**20

    train(replace(asked, out=str(tmp_path / "real")))
    assert curve(tmp_path / "real")[0]["loss"] == report.loss
    assert str(report).splitlines()[0].split() == ["parameters", f"{report.parameters:,}"]


def test_a_dry_run_leaves_a_run_alone(tmp_path: Path) -> None:
    asked = config(tmp_path, steps=4)
    train(asked)
    before = {path: path.read_bytes() for path in files(tmp_path / "run") if path.is_file()}
    dry_run(replace(asked, seed=3))
    assert {path: path.read_bytes() for path in files(tmp_path / "run") if path.is_file()} == before


def test_a_dry_run_finds_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(NestlingError, match="unknown recipe"):
        dry_run(config(tmp_path, recipe="hop"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(NestlingError, match="no text to read"):
        dry_run(config(tmp_path, data=(str(tmp_path / "empty"),)))
