from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nestling.errors import NestlingError
from nestling.train.log import (
    NAMES,
    Ended,
    Evaluated,
    Event,
    JsonLog,
    Saved,
    Started,
    TensorBoard,
    Trained,
    read,
    to_json,
)

STARTED = Started(0, 4, "hope", "tiny", 10, 32, 1000, 50, "cpu", "float32")


def trained(step: int, loss: float = 2.0) -> Trained:
    return Trained(step, loss, loss * 1.5, 1e-3, 0.5, 32 * step, 1e4)


EVENTS: list[Event] = [STARTED, trained(1), Evaluated(1, 3.0, 4.0), trained(2), Saved(2, "step_00000002"), Ended(2, 15)]

# The schema that readers of log.jsonl rely on: a change here is a change for them.
SCHEMA = {
    "start": {
        "step": int,
        "steps": int,
        "recipe": str,
        "size": str,
        "parameters": int,
        "tokens_per_step": int,
        "train_tokens": int,
        "valid_tokens": int,
        "device": str,
        "precision": str,
    },
    "train": {
        "step": int,
        "loss": float,
        "bits_per_byte": float,
        "lr": float,
        "gradient_norm": float,
        "tokens": int,
        "tokens_per_second": float,
    },
    "eval": {"step": int, "loss": float, "bits_per_byte": float},
    "checkpoint": {"step": int, "folder": str},
    "end": {"step": int, "signal": int},
}


def write(path: Path, step: int, events: list[Event]) -> None:
    log = JsonLog(path, step)
    for event in events:
        log(event)
    log.close()


def test_the_schema() -> None:
    assert {name: get_type_hints(kind) for kind, name in NAMES.items()} == SCHEMA


def test_a_line_is_an_event(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", 0, EVENTS)
    lines: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "train", "eval", "train", "checkpoint", "end"]
    for line, event in zip(lines, EVENTS, strict=True):
        assert list(line) == ["event", "time", *(field.name for field in fields(event))]
        assert line == to_json(event, line["time"])
    assert [event for _, event in read(tmp_path / "log.jsonl")] == EVENTS


def test_lines_are_written_through_at_once(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl", 0)
    for number, event in enumerate(EVENTS, 1):
        log(event)
        assert len(read(tmp_path / "log.jsonl")) == number
    log.close()


@pytest.mark.parametrize(("step", "kept"), [(0, 1), (1, 3), (2, 6), (9, 6)])
def test_going_on_drops_later_lines(tmp_path: Path, step: int, kept: int) -> None:
    write(tmp_path / "log.jsonl", 0, EVENTS)
    write(tmp_path / "log.jsonl", step, [trained(step + 1, 7.0)])
    assert [event for _, event in read(tmp_path / "log.jsonl")] == [*EVENTS[:kept], trained(step + 1, 7.0)]


def test_going_on_drops_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, 0, EVENTS)
    path.write_bytes(path.read_bytes()[:-5])
    assert [event for _, event in read(path)] == EVENTS[:-1]
    write(path, 2, [trained(3)])
    assert [event for _, event in read(path)] == [*EVENTS[:-1], trained(3)]


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NestlingError, match="cannot read the log"):
        read(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").write_text('{"event": "end", "time": 1, "step": 2, "signal": 0}\n{"event": "lunch"}\n')
    with pytest.raises(NestlingError, match="line 2 is no event of a run"):
        read(tmp_path / "log.jsonl")


def test_tensorboard_shows_the_curve_that_was_gone_on_with(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, 0)
    for event in [STARTED, trained(1), trained(2), trained(3, 9.0), Evaluated(3, 9.0, 9.0), Ended(3, 9)]:
        first(event)
    first.close()
    second = TensorBoard(tmp_path, 2)
    second(trained(3, 4.0))
    second.close()
    shown = EventAccumulator(str(tmp_path)).Reload()
    points = [(point.step, point.value) for point in shown.Scalars("train/loss")]
    assert points == [(1, 2.0), (2, 2.0), (3, 4.0)]
    names = {"loss", "bits_per_byte", "lr", "gradient_norm", "tokens_per_second"}
    assert {name for name in shown.Tags()["scalars"] if name.startswith("train/")} == {
        f"train/{name}" for name in names
    }
