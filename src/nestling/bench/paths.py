"""A benchmark of paths: every cell in its own process, written down after each; called again it goes on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from nestling.atomic import write_text
from nestling.bench.cells import Cell, cells, flops
from nestling.bench.config import PathsConfig
from nestling.errors import NestlingError

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Result:
    """A cell and its figures, or why there are none."""

    cell: Cell
    seconds: tuple[float, ...] = ()
    first: float = 0.0
    """Seconds of the first run, a short one, which compiles what is compiled"""
    tokens: int = 0
    peak_mib: float | None = None
    parity: float | None = None
    ceiling: float = 0.0
    """FLOP/s of a large matrix product in the same process, before and after"""
    bandwidth: float = 0.0
    """Bytes a second of a copy"""
    breakdown: dict[str, float] | None = None
    skipped: str = ""
    error: str = ""

    @property
    def rate(self) -> float:
        """Tokens per second; the median."""
        return self.tokens / statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def achieved(self) -> float:
        """Share of the ceiling that the least work of the path took."""
        return self.rate * flops(self.cell) / self.ceiling if self.ceiling else 0.0


def bench_paths(config: PathsConfig) -> list[Result]:
    """Measure what is not measured yet, write tables and plots after every cell, and return all results.

    Raises:
        NestlingError: a setting, a file or the revision is not usable.
    """
    from nestling.bench.report import write

    target = named(config)
    listed = list(cells(config))
    results = {key(result.cell): result for result in load(target.with_suffix(".json"))}
    missing = [cell for cell in listed if key(cell) not in results]
    end = time.monotonic() + config.seconds
    with _revision(config.base) as base, Progress(disable=not sys.stderr.isatty()) as progress:
        for cell in progress.track(missing, description="measuring"):
            if time.monotonic() > end:
                break
            why = hopeless(cell, results.values(), config.limit)
            results[key(cell)] = Result(cell, error=why) if why else run(cell, config, base)
            save(target.with_suffix(".json"), list(results.values()))
    write(target, list(results.values()), config)
    return [results[key(cell)] for cell in listed if key(cell) in results]


def key(cell: Cell) -> str:
    """What tells cells apart, whatever the time they were given."""
    return json.dumps({k: v for k, v in asdict(cell).items() if k not in ("repeats", "budget", "gib")})


def run(cell: Cell, config: PathsConfig, base: Path | None) -> Result:
    """One cell in a process of its own."""
    python = config.peer_python if cell.source == "peer" else sys.executable
    # Another revision comes before what is installed.
    extra = {"PYTHONPATH": str(base / "src")} if cell.source == "base" and base is not None else {}
    command = [python or sys.executable, "-P", str(WORKER), json.dumps(asdict(cell))]
    limit = 120 + config.budget + 3 * config.limit
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, env={**os.environ, **extra}
        )
    except subprocess.TimeoutExpired:
        return Result(cell, error=f"over {limit:.0f} s")
    except OSError as error:
        raise NestlingError(f"cannot run {command[0]}: {error.strerror}. Give an interpreter.") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        said = done.stderr.strip().splitlines()
        return Result(
            cell, error="out of memory" if done.returncode < 0 else said[-1][:100] if said else "nothing said"
        )
    return _result(cell, json.loads(lines[-1]))


def hopeless(cell: Cell, done: Any, limit: float) -> str:
    """Why a cell need not be begun, judging by shorter ones; nothing where it can be."""
    for before in done:
        if before.cell.kind != cell.kind or before.cell.length >= cell.length:
            continue
        if before.error and "parity" not in before.error:
            return str(before.error)
        if before.seconds and statistics.median(before.seconds) * cell.length / before.cell.length > limit:
            return f"over {limit:.0f} s"
    return ""


def named(config: PathsConfig) -> Path:
    """Where the results of this machine and day lie, without a suffix."""
    hardware = f"{os.cpu_count()}-core-{platform.machine()}"
    if config.device != "cpu":
        import torch

        hardware = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(config.device).lower()).strip("-")
    return Path(config.out) / f"paths-{hardware}-{datetime.date.today().isoformat()}"


def load(path: Path) -> list[Result]:
    """The results that ``save`` wrote; none where there is no file.

    Raises:
        NestlingError: the file is another one.
    """
    if not path.exists():
        return []
    try:
        return [_result(Cell(**each.pop("cell")), each) for each in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NestlingError(f"{path} holds no results of paths ({error!r}): move it away to measure anew.") from error


def _result(cell: Cell, found: dict[str, Any]) -> Result:
    return Result(cell, **{**found, "seconds": tuple(found.get("seconds", ()))})


def save(path: Path, results: list[Result]) -> None:
    """Write all results, seconds with six digits."""
    whole = [{k: v for k, v in asdict(each).items() if v not in ((), "", None)} for each in results]
    write_text(path, json.dumps(whole, indent=1, default=str) + "\n")


@contextmanager
def _revision(name: str | None) -> Iterator[Path | None]:
    """The files of a git revision, in a folder of their own while the block runs."""
    if name is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), name)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*words: str) -> None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NestlingError("git is not here: --base needs it, and a clone of the repository.") from error
    if done.returncode:
        raise NestlingError(f"git {words[0]} {words[1]} failed: {done.stderr.strip().splitlines()[-1]}")
