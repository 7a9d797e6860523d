"""The benchmark of whole MAC models: its table, and our sides of it."""

from __future__ import annotations

import pytest

from benchmarks import mac
from nestling.ops.coefficients import once


def test_ratios_are_of_medians_and_to_the_peer():
    rows = {"parameters": 5, "ceiling": 1e10, "operations": 5e8, "training 1024": [4.0, 8.0, 6.0]}
    table = mac.shown({"peer": {**rows, "training 1024": [2.0]}, "by token, heads 1": rows})
    assert table.splitlines()[-2:] == [
        "| training 1024 tokens | 2.0 | 6.0 (3.0 ×) |",
        "| training 1024 tokens, of the ceiling | 10% | 30% |",
    ]


@pytest.mark.parametrize("side", mac.OURS)
def test_ours_have_the_peer_s_shape_and_by_segment_its_semantics(monkeypatch, side):
    built = []
    monkeypatch.setattr("nestling.build", lambda name, **changes: built.append((name, changes)))
    mac.ours(*mac.OURS[side])
    ((name, changes),) = built
    memory = changes["memory"]
    assert (name, changes["layers"], changes["dim"], changes["segment"]) == ("titans_mac", 6, 384, 128)
    expected = (128, "commit", True) if side.startswith("by segment") else (16, "current", False)
    assert (memory.period, memory.read_at, once(memory)) == expected
