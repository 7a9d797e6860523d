"""Levels: frequencies, and which parameters they own."""

from __future__ import annotations

import pytest

from nestling.core import Level
from nestling.errors import NestlingError


def test_frequency_is_updates_per_unit_of_time():
    assert Level("fast", 1).frequency == 1
    assert Level("slow", 512).frequency == 1 / 512
    assert Level("never", float("inf")).frequency == 0


@pytest.mark.parametrize(
    ("owns", "name", "answer"),
    [
        ("*", "blocks.0.out.weight", True),
        ("blocks.*.chain.1.*", "blocks.3.channel.chain.1.up.weight", True),
        ("blocks.?.out.*", "blocks.12.out.weight", False),
        ("*.chain.1.*", "blocks.3.channel.chain.1.up.weight", True),
        ("*.chain.1.*", "blocks.3.channel.chain.10.up.weight", False),
        ("*.chain.1.*", "blocks.3.channel.CHAIN.1.up.weight", False),
        ("embedding.weight", "embedding.weight", True),
        ("embedding", "embedding.weight", False),
    ],
)
def test_it_owns_what_its_glob_matches(owns, name, answer):
    assert Level("level", 1, owns=owns).owner(name) is answer


@pytest.mark.parametrize("period", [0, -3, 0.5, float("nan")])
def test_periods_are_at_least_one(period):
    with pytest.raises(NestlingError, match="level 'x'"):
        Level("x", period)
