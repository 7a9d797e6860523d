"""``nestling train``: runs, goes on, rehearses, and refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, Call


def test_a_run_has_its_checkpoint_and_log(run: Path) -> None:
    assert (run / "step_00000003" / "manifest.json").is_file()
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["step"]) == ("end", 3)


def test_a_run_that_was_interrupted_goes_on_by_its_own_settings(text: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "run"
    settings = [
        "--data",
        text,
        "--steps",
        "4",
        "--every.checkpoint",
        "2",
        "--keep",
        "9",
        "--tensorboard",
        "false",
        *TINY,
    ]
    assert call("train", "--out", out, *settings).status == 0
    whole = (out / "step_00000004" / "model.safetensors").read_bytes()
    for file in sorted((out / "step_00000004").iterdir(), reverse=True):
        file.unlink()
    (out / "step_00000004").rmdir()
    said = call("train", "--resume", "--out", out)
    assert (said.status, said.err) == (0, "")
    assert (out / "step_00000004" / "model.safetensors").read_bytes() == whole


def test_resume_needs_a_run(tmp_path: Path, call: Call) -> None:
    said = call("train", "--resume", "--out", tmp_path / "absent")
    assert said.status == 2
    assert (
        said.err
        == f"nestling: error: no such folder: {tmp_path / 'absent'}. Pass the folder of a run, or one of its step_* folders.\n"
    )


def test_a_rehearsal_prints_and_writes_nothing(text: Path, tmp_path: Path, call: Call) -> None:
    said = call("train", "--dry-run", "--out", tmp_path / "run", "--data", text, "--steps", "3", *TINY)
    assert said.status == 0
    assert "parameters" in said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["--recipe", "hop"], "nestling: error: unknown recipe 'hop': use one of transformer, "),
        (["--size", "huge"], "nestling: error: unknown size 'huge': use one of tiny, "),
        (["--changes.depth", "3"], "nestling: error: titans_lmm has no field 'depth': use one of "),
        (["--data", "absent.txt"], "nestling: error: no such file or folder: absent.txt."),
        (["--data", "EMPTY"], "nestling: error: no text to read in EMPTY: pass text files, or folders that hold some."),
        (["--device", "abacus"], "nestling: error: device 'abacus' cannot be used here"),
        (["--batch", "0"], "nestling: error: batch must be at least 1, got 0: use a positive number."),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    text: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, words: list[str], start: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    data = [] if "--data" in words else ["--data", text]
    said = call("train", "--out", "run", *data, "--length", "16", "--batch", "2", *words)
    assert said.status == 2
    assert said.err.startswith(start), said.err
    assert said.err.count("\n") == 1
