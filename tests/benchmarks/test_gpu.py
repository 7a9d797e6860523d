"""The benchmark for a GPU runs as a whole where there is none: parity first, tiny models, kernels interpreted."""

from __future__ import annotations

import doctest
import json

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import entries
from nestling.core import Matrix, Memory
from nestling.recipes import build


def test_examples() -> None:
    assert doctest.testmod(entries).failed == 0 < doctest.testmod(entries).attempted


def dry(monkeypatch: pytest.MonkeyPatch, folder, names: set[str]) -> dict:
    monkeypatch.setattr(gpu, "ENTRIES", tuple(entry for entry in entries.ENTRIES if entry.name in names))
    monkeypatch.setattr(gpu, "MEMORIES", (Memory(Matrix()),))
    gpu.main(["--dry", "--out", str(folder)])
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text("utf-8"))


def test_a_dry_run_is_whole(monkeypatch, tmp_path) -> None:
    pytest.importorskip("triton", reason="kernels need the package triton")
    found = dry(monkeypatch, tmp_path, {"transformer", "linear Hope, kernels", "linear Hope, blocks", "DeltaNet, fla"})
    plain, kernels, blocks, peer = found["rows"]
    assert found["parity"] and plain["tokens_per_second"] > 0
    assert kernels["loss"] == pytest.approx(blocks["loss"], rel=1e-4)
    assert peer["why"] == "fla is not installed"
    (table,) = tmp_path.glob("*.md")
    assert "| 32 | linear Hope, kernels | 0M |" in table.read_text("utf-8")


def test_nothing_is_timed_where_kernels_are_wrong(monkeypatch, tmp_path) -> None:
    def differ(*given: object) -> None:
        raise AssertionError("tensor 0")

    monkeypatch.setattr("tests.ops.kernels.parity.assert_path", differ)
    with pytest.raises(AssertionError, match="tensor 0"):
        dry(monkeypatch, tmp_path, {"transformer"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry", entries.ENTRIES[1::2], ids=lambda entry: entry.name)
def test_models_of_the_size_are_of_one_size(entry) -> None:
    with torch.device("meta"):
        changes = {"vocab_size": 32_000, **entry.changes}
        model = build(entry.recipe, size="340m", **changes)
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(340e6, rel=0.03)
    assert entries.flops(model, 4096) > 6 * 0.8 * count


def test_without_a_gpu_it_says_how_to_run(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu.main([])
