"""``nestling bench paths``: every cell in its own process, no figure without parity, and a run that goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import date
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

import nestling.nn.memory
from nestling.bench import paths, report, worker
from nestling.bench.cells import cells, flops, moved
from nestling.bench.config import PathsConfig
from nestling.bench.paths import Result, bench_paths, hopeless, load, named
from nestling.bench.report import markdown, write
from nestling.cli import main
from nestling.errors import NestlingError
from nestling.ops import stretches
from nestling.ops.native.library import compiler

TINY = {"dim": 16, "heads": (2,), "chunks": (4,), "lengths": (8,), "repeats": 1, "budget": 1.0}


@pytest.fixture
def here(monkeypatch):
    """Cells in this process: what they do is the same, and a process takes seconds to begin."""
    monkeypatch.setattr(worker, "ceiling", lambda cell: 1e9)
    monkeypatch.setattr(worker, "bandwidth", lambda cell: 1e9)
    monkeypatch.setattr(nestling.nn.memory, "scan", nestling.nn.memory.scan)  # which ``naively`` replaces

    # Results are named by the day, and a test may begin on one and end on the next.
    today = SimpleNamespace(date=SimpleNamespace(today=lambda: date(2026, 1, 1)))
    monkeypatch.setattr(paths, "datetime", today)

    def run(cell, config, base):
        return paths._result(cell, worker.measured(asdict(cell)))

    monkeypatch.setattr(paths, "run", run)


def test_every_path_is_measured_after_parity(here, tmp_path):
    native = ("native",) if compiler() else ()
    ours = ("reference", "naive", "chunk", "commit", *native, "plain", "dgd", "linear", "exact")
    config = PathsConfig(ours, ("training",), out=str(tmp_path), **TINY)
    more = PathsConfig(("commit",), ("forward", "decode", "stream"), out=str(tmp_path), **TINY)
    assert not list(cells(replace(more, paths=("naive",), whats=("decode", "stream"))))
    results = [*bench_paths(config), *bench_paths(more)]
    assert len(results) == 3 + len(ours)
    for each in results:
        assert each.rate > 0 and each.tokens == 8 and not each.error, each
        assert (each.cell.path == "reference") == (each.parity is None)
        assert each.parity is None or each.parity < 1e-8
        assert (each.breakdown is not None) == (each.cell.what == "training")
    table = named(config).with_suffix(".md").read_text()
    assert table.count("\n| commit | 2 | 4 | 8 | float32 |") == 4
    plots = {path.name.removeprefix(named(config).name) for path in tmp_path.glob("*.png")}
    assert plots == {"-throughput.png", "-roofline.png", "-breakdown.png"}


def test_stretches_are_measured_beside_the_whole(here, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_save", lambda *drawn: None)
    config = PathsConfig(("chunk", "commit"), ("training",), out=str(tmp_path), **TINY)
    lengths = []
    monkeypatch.setattr(nestling.ops, "stretches", lambda *given: lengths.append(given[3]) or stretches(*given))
    (whole, _), (held, other) = bench_paths(config), bench_paths(replace(config, recompute=3))
    assert set(lengths) == {2, 3}, "parity has stretches, too"
    assert held.parity < 1e-8 and other.parity < 1e-8 and held.cell.shape != whole.cell.shape
    table = named(config).with_suffix(".md").read_text()
    assert "\n| chunk | 2 | 4 | 8 |" in table and "\n| chunk, by 3 | 2 | 4 | 8 |" in table


def test_what_is_measured_is_not_measured_again(here, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_save", lambda *drawn: None)
    config = PathsConfig(("commit",), ("forward",), out=str(tmp_path), **TINY)
    first = bench_paths(config)
    assert load(named(config).with_suffix(".json")) == first
    more = replace(config, paths=("commit", "linear"), seconds=-1.0)
    assert bench_paths(more) == first
    assert [each.cell.path for each in bench_paths(replace(more, seconds=1e9))] == ["commit", "linear"]
    monkeypatch.setattr(paths, "run", None)
    assert bench_paths(config) == first


def test_no_figure_without_parity(monkeypatch):
    (cell,) = cells(PathsConfig(("chunk",), ("forward",), **TINY))
    monkeypatch.setattr(worker, "parity", lambda layer, cell: (1e-3, 1e-8, 0.0))
    found = worker.measured(asdict(cell))
    assert found["error"].startswith("parity failed") and "seconds" not in found
    monkeypatch.undo()

    def wrong(cell, plain=worker.ours):
        layer = plain(cell)
        weights = layer.weights
        layer.weights = lambda: {
            n: w * (1.0 if type(layer.path).__name__ == "Reference" else 1.01) for n, w in weights().items()
        }
        return layer

    monkeypatch.setattr(worker, "ours", wrong)
    assert "parity failed" in worker.measured(asdict(cell))["error"]


def test_half_precision_is_skipped_where_it_is_emulated(monkeypatch):
    (cell,) = cells(PathsConfig(("commit",), ("training",), dtypes=("bfloat16",), **TINY))
    monkeypatch.setattr(worker, "_halves", lambda device: False)
    found = paths._result(cell, worker.measured(asdict(cell)))
    assert "no bfloat16" in markdown([found], PathsConfig())
    monkeypatch.setattr(worker, "_halves", lambda device: True)
    monkeypatch.setattr(worker, "ceiling", lambda cell: 1e9)
    monkeypatch.setattr(worker, "bandwidth", lambda cell: 1e9)
    assert worker.measured(asdict(cell))["seconds"]


def test_a_process_of_its_own_and_another_revision(tmp_path, monkeypatch):
    """The worker is run by its path, with the other revision's package before what is installed."""
    package = tmp_path / "tree" / "src" / "nestling"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('out of memory: another revision')\n")
    (cell,) = cells(PathsConfig(("commit",), ("forward",), **TINY))
    assert paths.run(replace(cell, source="base"), PathsConfig(), tmp_path / "tree").error == "out of memory"
    with pytest.raises(NestlingError, match="cannot run"):
        paths.run(replace(cell, source="peer"), PathsConfig(peer_python="/nowhere/python"), None)
    with pytest.raises(NestlingError, match="git worktree add failed"), paths._revision("no-such-revision"):
        pass


def test_what_would_take_too_long_is_not_begun():
    short, long = cells(PathsConfig(("commit",), ("forward",), **{**TINY, "lengths": (8, 800)}))
    assert hopeless(long, [Result(short, (2.0,), tokens=8)], 120) == "over 120 s"
    assert hopeless(long, [Result(short, (0.2,), tokens=8)], 120) == ""
    assert hopeless(long, [Result(short, error="out of memory")], 120) == "out of memory"
    assert hopeless(short, [Result(long, error="out of memory")], 120) == ""


def test_rounds_are_one_row_and_rivals_have_ratios(tmp_path):
    config = PathsConfig(("commit", "peer"), ("training",), peer_python="python", rounds=2, base="HEAD", **TINY)
    listed = list(cells(config))
    assert [(each.path, each.source, each.round) for each in listed] == [
        *(("commit", "here", 0), ("commit", "base", 0), ("peer", "peer", 0)),
        *(("commit", "here", 1), ("commit", "base", 1), ("peer", "peer", 1)),
    ]
    rates = {"here": 1.0, "base": 2.0, "peer": 4.0}
    results = [Result(each, (rates[each.source],), tokens=8, ceiling=1e9, bandwidth=1e9) for each in listed]
    write(tmp_path / "paths", results, config)
    rows = [
        line for line in (tmp_path / "paths.md").read_text().splitlines() if line.startswith(("| commit", "| peer"))
    ]
    assert len(rows) == 3 and rows[0].endswith("| 4.0 |  |  | 2.0 |")
    assert flops(listed[0]) > 0 and moved(listed[0]) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"recompute": 0}, "recompute must be at least 1 token, got 0"),
        ({"recompute": 64, "paths": ("peer",), "peer_python": "python"}, "path 'peer' has no stretches"),
        ({"heads": (5,)}, "not divisible by 5 heads"),
        ({"paths": ()}, "paths is empty"),
        ({"paths": ("peer",)}, "give --peer-python"),
        ({"base": "--force; rm"}, "git revision"),
    ],
)
def test_what_is_wrong_is_said(changes, message):
    with pytest.raises(NestlingError, match=message):
        PathsConfig(**changes)


def test_the_command_line(here, tmp_path, capsys):
    words = "bench paths --paths commit --whats forward --heads 2 --chunks 4 --lengths 8 --dim 16 --repeats 1 --budget 1 --out"
    assert main([*words.split(), str(tmp_path)]) == 0
    assert "| commit | 2 | 4 | 8 | float32 |" in capsys.readouterr().out
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())[0]["cell"]["path"] == "commit"
    file.write_text("[3]")
    assert main([*words.split(), str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("lengths", [(8,), (8, 16)])
def test_one_length_is_drawn_as_dots_and_several_as_lines(lengths):
    config = PathsConfig(("chunk", "commit"), ("training",), heads=(2,), chunks=(4,), lengths=lengths)
    results = [Result(cell, seconds=(cell.length / 10,), tokens=cell.length) for cell in cells(config)]
    axes = Figure().subplots()
    report._throughput(axes, results)
    dots = [float(x) for group in axes.collections for x, _ in group.get_offsets()]
    lines = [line.get_ydata().tolist() for line in axes.lines]
    assert (dots, lines) == (([10, 10], []) if len(lengths) == 1 else ([], [[10, 10], [10, 10]]))
