"""Minutes become steps."""

from __future__ import annotations

import pytest

from nestling.demo import pace
from nestling.demo.config import QUICK, DemoConfig


@pytest.mark.parametrize("cores", [1, 2])
def test_minutes_buy_steps(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(pace, "measure", lambda config: (0.5 * cores, 0.001))
    monkeypatch.setattr(pace, "cores", lambda: cores)
    # 60 s · 2 − overhead − three readings of at most 2048 tokens, at a second for one update of both models
    plan = pace.fitted(QUICK, DemoConfig(minutes=2), unseen_bytes=10**6)
    assert plan.steps == int(120 - pace._OVERHEAD - 3 * 2048 * 0.001)
    assert pace.fitted(QUICK, DemoConfig(minutes=4), 10**6).steps == plan.steps + 120
    assert pace.fitted(QUICK, DemoConfig(minutes=0.1), 10**6).steps == 10
    assert pace.fitted(QUICK, DemoConfig(), 10**6) == QUICK


def test_a_machine_is_measured() -> None:
    from pathlib import Path

    from nestling.demo.contenders import memory_config

    update, token = pace.measure(memory_config("hope", QUICK, 0, Path("runs")))
    assert update > 0
    assert token > 0
