"""Comparisons whose sides are processes: what they say, where they can run, and what is written of it."""

from __future__ import annotations

import json
import runpy
import sys

import pytest

from benchmarks import mac, optimizers, shared
from benchmarks.hope import speed
from benchmarks.sides import told


def test_the_last_line_counts_and_failures_are_said(tmp_path) -> None:
    script = tmp_path / "side.py"
    script.write_text("import json, sys\nprint('warming up')\nprint(json.dumps([int(sys.argv[1]), sys.path[0]]))")
    number, first = told(sys.executable, str(script), "3")
    assert number == 3 and first != str(tmp_path)
    script.write_text("raise ValueError('no peer')")
    with pytest.raises(SystemExit, match=r"side\.py: (?s:.*)no peer"):
        told(sys.executable, str(script))


@pytest.mark.parametrize("module", [mac, speed], ids=lambda module: module.__name__)
def test_a_side_needs_nothing_that_the_peer_does_not_have(monkeypatch: pytest.MonkeyPatch, module) -> None:
    for name in ("benchmarks", "benchmarks.shared", "benchmarks.sides", "matplotlib", "nestling"):
        monkeypatch.setitem(sys.modules, name, None)
    assert callable(runpy.run_path(module.__file__)["peer"])


def answers(monkeypatch: pytest.MonkeyPatch, folder, module, answer: object, *arguments: str) -> None:
    """Run a comparison whose sides all say the same."""
    monkeypatch.setattr("benchmarks.sides.told", lambda python, script, *given: answer)
    monkeypatch.setattr(shared, "RESULTS", folder)
    monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
    module.main()


def test_speed_writes_ratios_to_each_preset_of_the_peer(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    answers(monkeypatch, tmp_path, speed, [2.0, 2.0], "--peer-python", "elsewhere", "--rounds", "2")
    lines = (tmp_path / "hope-speed.md").read_text("utf-8").splitlines()
    assert "| hope, 4 rows (ours) | 4 | 256 | 512.0 | 0 | 16 | 4 | 4 |" in lines
    assert "| nested-learning, offline | 1 | 256 | 128.0 | 0 |  |  |  |" in lines
    assert json.loads((tmp_path / "hope-speed.json").read_text())["hope (ours)"] == [2.0] * 4


def test_mac_writes_a_column_for_each_side(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    said = {"parameters": 5, "ceiling": 1e10, "operations": 5e8, "training 1024": [4.0], "generation 8": [2.0]}
    said["generation 8, compiled"] = [6.0]
    answers(monkeypatch, tmp_path, mac, said, "--peer-python", "elsewhere")
    lines = (tmp_path / "mac.md").read_text("utf-8").splitlines()
    assert lines[-8].startswith("| tokens/s | titans-pytorch | ours, by token, heads 1 | ours, by token, heads 4 |")
    assert lines[-4].startswith("| training 1024 tokens | 4.0 | 4.0 (1.0 ×) |")
    assert lines[-2].startswith("| generation 8 tokens, compiled | 6.0 | 6.0 (3.0 ×) |")
    assert lines[-1].startswith("| training 1024 tokens, of the ceiling | 20% |")


def test_mac_refuses_a_stream_that_depends_on_its_pieces() -> None:
    import nestling as nl

    model = nl.build("titans_mac", vocab_size=256, dim=16, layers=1, heads=1, segment=mac.SEGMENT, persistent=1, pool=8)
    mac.same_in_pieces(model)
    with pytest.raises(SystemExit, match="no parity"):
        mac.same_in_pieces(lambda tokens, state=None: (model(tokens)[0], None))


def test_optimizers_write_their_tables(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(shared, "RESULTS", tmp_path)
    contenders, model = optimizers.tables()["matrices"][:3], optimizers.transformer(16, 1)
    for _ in optimizers.measure(contenders, model, rounds=2):
        text = optimizers.write("matrices", contenders, True, model, {"Muon": 1e-7})
    (file,) = tmp_path.glob("optimizers-matrices-*-quick.md")
    assert file.read_text("utf-8") == text + "\n" and "2 rounds in turns" in text and "Muon 1.0e-07" in text
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| optimizer",
        "| torch.optim.Muon",
        "| Muon",
        "| M3",
    ]
    assert len(json.loads(file.with_suffix(".json").read_text())["optimizers"][2]["seconds"]) == 4
