"""Sentences follow the figures, whichever way they fall."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nestling.demo import words
from nestling.demo.results import Difference, Kept, Results, Sessions


def with_memory(results: Results, on: tuple[float, ...]) -> Results:
    stream = results.stream
    mean = sum(on) / len(on)
    reader = replace(stream.on, windows=on, bits_per_byte=mean)
    changed = replace(
        stream,
        on=reader,
        memory=Difference.between(stream.off, reader),
        against_baseline=Difference.between(stream.baseline, reader),
    )
    return replace(results, stream=changed)


@pytest.mark.parametrize(
    ("on", "verdict", "along"),
    [
        ((2.2, 2.1, 1.9, 1.8), "writing helps, by 13.0 %", "The gain grows along the stream: +0.100"),
        ((1.8, 1.9, 2.1, 2.2), "writing helps, by 13.0 %", "The gain shrinks along the stream: +0.500"),
        ((2.4, 2.5, 2.7, 2.8), "writing hurts, by 13.0 %", "The loss grows along the stream: +0.100"),
        ((2.0, 2.0, 2.01, 2.0), "writing helps, by 12.9 %", "The gain stays about the same along the stream"),
        ((2.2, 2.4, 2.2, 2.4), "writing makes no difference that this stream can show", None),
    ],
)
def test_whether_writing_helps(results: Results, on: tuple[float, ...], verdict: str, along: str | None) -> None:
    found = with_memory(results, on)
    assert verdict in words.memory(found.stream)
    said = words.along(found.stream)
    assert said[0].startswith(along) if along else said == []


@pytest.mark.parametrize(
    ("on", "verdict"),
    [
        ((2.0, 2.0, 2.0, 2.0), "hope needs 20.0 % fewer bits"),
        ((3.0, 3.0, 3.0, 3.0), "hope needs 20.0 % more bits"),
        ((2.5, 2.5, 2.5, 2.5), "no clear difference"),
    ],
)
def test_how_it_compares_with_the_transformer(results: Results, on: tuple[float, ...], verdict: str) -> None:
    assert verdict in words.baseline(with_memory(results, on))


@pytest.mark.parametrize(
    ("differences", "start"),
    [
        ((0.0, 0.0, 0.4), "A session that was saved after 501 tokens and loaded again went on exactly"),
        ((1e-9, 0.0, 0.4), "Sessions are NOT exact: over 499 tokens the largest difference is 1e-09 after loading"),
        ((0.0, 2e-3, 0.4), "Sessions are NOT exact"),
        ((0.0, 0.0, 0.0), "Sessions are NOT exact"),
        ((float("nan"), 0.0, 0.4), "Sessions are NOT exact"),
    ],
)
def test_whether_sessions_are_exact(differences: tuple[float, float, float], start: str) -> None:
    assert words.sessions(Sessions(501, 499, 2048, *differences)).startswith(start)


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (2.005, "no clear change"),
        (2.1, "5.0 % more: it forgot a little"),
        (2.6, "30.0 % more: it forgot ("),
        (1.9, "5.0 % fewer: it forgot nothing"),
    ],
)
def test_what_was_kept(after: float, verdict: str) -> None:
    assert verdict in words.retention(Kept("documents", 4, 4000, 2.0, after, 0.01), "email")


def test_the_caveat_names_size_tokens_and_seed(results: Results) -> None:
    assert "1,000 and 1,000 parameters" in words.caveat(results)
    assert "5,000 tokens with one seed (0)" in words.caveat(results)


def test_findings_come_in_order(results: Results) -> None:
    said = words.findings(results)
    assert [sentence.split()[0] for sentence in said] == ["Reading", "The", "The", "A", "After", "After"]
