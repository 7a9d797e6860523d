"""The benchmark of whole MAC models: its table, and that our side of it runs."""

from __future__ import annotations

from benchmarks import mac


def test_ratios_are_to_the_peer_and_the_models_have_its_shape(monkeypatch):
    rows = {"side": "1", "parameters": 5, "training 8": [4.0, 8.0, 6.0]}
    table = mac.shown({"1": rows, "peer": {**rows, "training 8": [2.0]}})
    assert table.splitlines()[-1] == "| training 8 tokens | 6.0 (3.0 ×) | 2.0 |"
    built = []
    monkeypatch.setattr("nestling.build", lambda name, **changes: built.append((name, changes["layers"])))
    mac.ours(4)
    assert built == [("titans_mac", 6)]
