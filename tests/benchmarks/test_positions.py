"""Bits by position: every system is trained and read in each of its ways, and what is written in context is what is claimed."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest
import torch

import nestling as nl
from benchmarks.hope import positions, stream, training

SYSTEMS = positions.GROUPS["systems"]
SMALL = replace(SYSTEMS, steps=3, length=64, edges=(0, 64, 192), shape={"dim": 32, "layers": 2, "heads": 2})


def test_examples() -> None:
    assert doctest.testmod(training).failed == 0 < doctest.testmod(training).attempted


@pytest.fixture
def no_novels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from files."""
    draw = torch.Generator().manual_seed(0)
    parts = tuple(torch.randint(256, (500,), generator=draw) for _ in range(2))
    monkeypatch.setattr(positions, "learnt", lambda: parts)
    monkeypatch.setattr(
        positions, "held_out", lambda length: {"prose": torch.randint(256, (2, length + 1), generator=draw)}
    )


@pytest.mark.parametrize("name", SYSTEMS.members)
def test_every_system_is_read_in_all_its_ways(no_novels: None, name: str) -> None:
    member = SYSTEMS.members[name]
    one = positions.measured(member, 0, SMALL)
    assert list(one["found"]) == ["on", "off", *member.levels]
    # nothing is written before the first period of 64 is over
    before, after = ([row[part] for row in one["found"]["on"]["prose"]] for part in (0, 1))
    for way in member.levels:
        assert [row[0] for row in one["found"][way]["prose"]] == pytest.approx(before, rel=1e-4)
        assert [row[1] for row in one["found"][way]["prose"]] != pytest.approx(after, rel=1e-6)
    assert positions.report("systems", {name: [one]}).count(f"| {name} |") == 2 + len(member.levels)


@pytest.mark.parametrize("name", [name for name, member in SYSTEMS.members.items() if member.levels])
def test_systems_that_are_written_are_of_one_size_and_write_their_channel_mixers(name: str) -> None:
    member = SYSTEMS.members[name]
    model = nl.build(member.recipe, vocab_size=256, **SYSTEMS.shape, **member.changes)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(430_000, rel=0.02)
    mixers = {n: p.numel() for n, p in model.named_parameters() if ".channel." in n and n.endswith("weight")}
    for levels in member.levels.values():
        owned = nl.InContext(model, levels).writer.owned
        assert {n for each in owned for n in each} == set(mixers)
        shares = [sum(mixers[n] for n in each) / sum(mixers.values()) for each in owned]
        assert shares == [1 / len(levels)] * len(levels) and levels[0].period == 64


def test_a_stream_is_read_by_a_hope_that_was_trained_as_the_other_is(
    no_novels: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(positions.GROUPS, "systems", SMALL)
    model, about = stream.trained_hope(2)
    assert len(model.blocks) == 4 and about["parameters"] > 1_500_000
    rows = stream.stream(model, torch.randint(256, (stream.PARTS * 16 + 1,)), 16)
    assert [row["read"] for row in rows] == [16 * part for part in range(1, 11)]
    assert len({row["state"] for row in rows}) == 1 and all(len(row["surprise"]) == 4 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
