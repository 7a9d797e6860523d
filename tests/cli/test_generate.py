"""``nestling generate``: text on stdout, the same for the same seed, and sessions that go on."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from nestling.cli import main
from nestling.stream import Program
from tests.cli.conftest import TINY, Call


def test_equal_seeds_give_equal_text(run: Path, call: Call) -> None:
    first, again, other = (
        call("generate", run, "--prompt", "def", "--max-tokens", "20", "--seed", seed) for seed in "003"
    )
    assert first.status == 0
    assert first.out == again.out != other.out
    assert first.err == ""


def test_text_comes_as_it_is_made(run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bool] = []
    monkeypatch.setattr("builtins.print", lambda *text, end="\n", flush=False: flushed.append(flush))
    call("generate", run, "--prompt", "def", "--max-tokens", "20")
    assert len(flushed) > 3
    assert all(flushed)


def test_the_prompt_is_read_from_standard_input(run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--max-tokens", "12", "--temperature", "0"]
    given = call("generate", run, "--prompt", "return a", *words).out
    monkeypatch.setattr("sys.stdin", io.StringIO("return a"))
    assert call("generate", run, "--prompt", "-", *words).out == given


def test_a_session_goes_on_where_it_was_saved(run: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "a.safetensors"
    whole = call("generate", run, "--prompt", "def", "--max-tokens", "12", "--temperature", "0").out
    begun = call("generate", run, "--prompt", "def", "--max-tokens", "4", "--temperature", "0", "--save-session", file)
    ended = call("generate", run, "--session", file, "--max-tokens", "8", "--temperature", "0")
    assert (begun.status, ended.status) == (0, 0)
    assert begun.out + ended.out == whole


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ([], "nestling: error: there is nothing to go on from: give --prompt TEXT, or --session FILE."),
        (["--prompt", "a", "--temperature", "-1"], "nestling: error: temperature must be at least 0, got -1.0."),
        (["--prompt", "a", "--top-k", "0"], "nestling: error: top_k must be at least 1, got 0."),
        (["--prompt", "a", "--session", "absent"], "nestling: error: no such file: absent."),
    ],
)
def test_what_cannot_be_said_is_one_line(run: Path, call: Call, words: list[str], start: str) -> None:
    said = call("generate", run, *words)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(start), said.err
    assert said.err.count("\n") == 1


def test_a_compiled_program_says_the_same(run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    # A compiler of C++ is no part of a bare machine.
    monkeypatch.setattr(Program.__init__, "__defaults__", ("eager",))
    words = ["generate", run, "--prompt", "def", "--max-tokens", "5"]
    said, compiled = call(*words), call(*words, "--compile", "true")
    assert (compiled.status, compiled.out, compiled.err) == (0, said.out, "")


def test_a_session_of_another_model_is_refused(run: Path, text: Path, tmp_path: Path, call: Call) -> None:
    file, other = tmp_path / "a.safetensors", tmp_path / "other"
    assert call("generate", run, "--prompt", "def", "--max-tokens", "1", "--save-session", file).status == 0
    settings = ["--recipe", "titans_lmm", "--data", text, "--steps", "1", "--tensorboard", "false", *TINY]
    assert main(["train", "--out", str(other), *map(str, settings)]) == 0
    said = call("generate", other, "--session", file)
    assert said.status == 2
    assert said.err.startswith(f"nestling: error: {file} is a session of another model; first difference: ")
    assert said.err.count("\n") == 1


def test_a_truncated_checkpoint_is_refused(run: Path, tmp_path: Path, call: Call) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    weights = copy / "step_00000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    said = call("generate", copy, "--prompt", "a")
    assert said.status == 2
    assert said.err.startswith(f"nestling: error: {weights} is truncated: ")
    assert said.err.count("\n") == 1


def test_a_folder_without_a_run_is_refused(tmp_path: Path, call: Call) -> None:
    said = call("generate", tmp_path, "--prompt", "a")
    assert said.status == 2
    assert said.err.startswith(f"nestling: error: no checkpoint in: {tmp_path}.")
