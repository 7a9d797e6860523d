"""Options from dataclasses: spelling, lists, files, and errors in words that a user knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from nestling.cli.parser import Parser
from nestling.errors import NestlingError
from nestling.train.config import TrainConfig


def parser() -> Parser:
    made = Parser("train", "[options]", "Train.")
    made.add_class_arguments(TrainConfig)
    return made


def read(*arguments: str) -> TrainConfig:
    made = parser()
    return made.build(TrainConfig, made.read(arguments, ("data", "valid")))


def test_nothing_given_is_the_default() -> None:
    assert read() == TrainConfig()


@pytest.mark.parametrize("spelling", ["--eval-batches=3", "--eval_batches=3"])
def test_dashes_and_underscores_are_the_same(spelling: str) -> None:
    assert read(spelling).eval_batches == 3


def test_values_keep_their_dashes_and_underscores() -> None:
    assert read("--out=runs/my_run-1").out == "runs/my_run-1"
    assert read("--out", "runs/my_run-1").out == "runs/my_run-1"


def test_help_spells_with_dashes_and_shows_the_docstrings() -> None:
    shown = parser().format_help()
    assert "--eval-batches" in shown
    assert "_" not in "".join(word for word in shown.split() if word.startswith("--"))
    assert "Decoupled decay, of matrices only" in shown


def test_dotted_options_reach_inside() -> None:
    config = read("--optimizer.lr", "0.5", "--every.log=3", "--changes.layers", "2")
    assert (config.optimizer.lr, config.every.log, config.changes) == (0.5, 3, {"layers": 2})


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--data", "a", "b c"], ("a", "b c")),
        (["--data", "a"], ("a",)),
        (["--data", "[a, b]"], ("a", "b")),
        (["--data=[a, b]"], ("a", "b")),
        (["--data", "a", "--steps", "7"], ("a",)),
    ],
)
def test_lists_take_the_words_up_to_the_next_option(words: list[str], wanted: tuple[str, ...]) -> None:
    assert read(*words).data == wanted


def test_a_file_is_read_and_later_options_win(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("steps: 7\noptimizer:\n  lr: 0.5\ndata: [x, y]\n")
    config = read("--config", str(file), "--steps", "9")
    assert (config.steps, config.optimizer.lr, config.data) == (9, 0.5, ("x", "y"))


def test_a_printed_configuration_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--steps", "7", "--optimizer.betas", "[0.5, 0.75]", "--changes", "{layers: 2}", "--data", "a", "b"]
    with pytest.raises(SystemExit):
        read(*words, "--print-config")
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    assert read("--config", str(file)) == read(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepz", "3"], "unknown option --stepz: did you mean --steps? See nestling train --help."),
        (
            ["--eval_batchez=3"],
            "unknown option --eval-batchez=3: did you mean --eval-batches? See nestling train --help.",
        ),
        (["extra"], "unknown argument extra. See nestling train --help."),
        (["--steps", "many"], "--steps: expected int, got many. See nestling train --help."),
        (["--steps"], "argument --steps: expected one argument. See nestling train --help."),
        (["--tokenizer", "words"], "--tokenizer: expected one of bytes, bpe, got words. See nestling train --help."),
        (["--config", "absent.yaml"], "--config: "),
        (["--optimizer.lr", "-1"], "optimizer.lr must be positive, got -1.0: use 0.001."),
        (["--steps", "0"], "steps must be at least 1, got 0: use a positive number."),
    ],
)
def test_errors_are_one_line_in_plain_words(words: list[str], message: str) -> None:
    with pytest.raises(NestlingError) as caught:
        read(*words)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
