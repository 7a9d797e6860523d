"""A Titans memory layer: reference, chunk and compiled path beside the PyPI package titans-pytorch, in one run.

    python -m benchmarks.scan --peer-python PATH        every path at every length (half an hour to an hour)
    python -m benchmarks.scan --short --peer-python PATH    about 15 minutes
    python -m benchmarks.scan --quick                   a few minutes, short sequences, without what is slow
    python -m benchmarks.scan --only compiled           these cases again, in the table that today's run left

The peer lives in an environment of its own (``pip install -c constraints.txt torch titans-pytorch==0.5.5``); without
``--peer-python`` its column stays empty. Every case runs in a process of its own, after parity with the reference passed there;
rivals on the same shapes run one after another, and the matrix-product ceiling of the machine is measured between them.
Writes ``benchmarks/results/scan-<machine>-<date>.md`` and the raw figures beside it, anew after every case.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.progress import Progress

ROOT = Path(__file__).parent.parent
OURS = ("reference", "chunk", "compiled")
PEER = "titans-pytorch"


def cases(quick: bool, short: bool, threads: int) -> list[dict[str, Any]]:
    """Everything that is measured, a process each: rivals on the same shapes one after another."""
    lengths = [1024, 4096] if quick else [1024, 4096, 32_768]
    fixed = {"dim": 384, "threads": threads, "seed": 0, "limit_gib": 20}
    ceiling = {**fixed, "kind": "ceiling", "implementation": "matrix product", "cells": []}
    streams = [
        {**fixed, "kind": "streaming", "implementation": "chunk", "heads": heads, "chunk": 16}
        | {"cells": [{"piece": piece, "length": length // (10 if quick else 1)}]}
        for heads in (1, 4)
        for piece, length in ((512, 32_768), (1, 4_000))
    ]
    listed = [ceiling, *streams]
    for heads in (1, 4):
        for chunk in (16, 64):
            for name in (*OURS, PEER):
                cells = [
                    {"length": length, "backward": backward}
                    for length in lengths
                    for backward in (False, True)
                    if not (quick or short) or _worth(name, length, backward, quick)
                ]
                case = {**fixed, "kind": "training", "implementation": name, "heads": heads, "chunk": chunk}
                listed += [{**case, "repeats": 5, "budget": 8, "cells": cells}] if cells else []
            # A shared machine does not keep its speed.
            listed.append(ceiling)
    return listed


def _worth(name: str, length: int, backward: bool, quick: bool) -> bool:
    """Forward alone at one length; the reference, and what is compiled for a block, need not be seen at every length."""
    if length > 1024 and not backward:
        return False
    return {"reference": length == 1024 and not quick, "compiled": length <= 4096}.get(name, True)


def run(case: dict[str, Any], peer: str | None, limit: float) -> list[dict[str, Any]]:
    """One case in its own process: what came out of each cell, at most ``limit`` seconds a run."""
    shared = {key: value for key, value in case.items() if key != "cells"}
    cells = case["cells"] or [{}]
    python = peer if case["implementation"] == PEER else sys.executable
    if python is None:
        return [{**shared, **cell, "error": "no peer"} for cell in cells]
    command = [python, "-m", "benchmarks.worker", json.dumps({**case, "limit_s": limit})]
    try:
        # Twelve runs a cell at most, and what it takes to begin and to compile.
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300 + 4 * limit, check=False)
        out, reason = done.stdout, done.stderr.strip().splitlines()[-1][:80] if done.stderr.strip() else ""
        reason = "out of memory" if done.returncode < 0 else reason
    except subprocess.TimeoutExpired as expired:
        out, reason = _text(expired.stdout), f"over {limit:.0f} s"
    found = [dict(json.loads(line)) for line in out.splitlines() if line.startswith("{")]
    missing = [{**cell, "error": reason} for cell in cells[len(found) :]]
    return [{**shared, **each} for each in (*found, *missing)]


def _text(out: bytes | str | None) -> str:
    return out.decode() if isinstance(out, bytes) else out or ""


def markdown(results: list[dict[str, Any]], header: str) -> str:
    """The tables, and the ratios to the peer."""
    lines = [header, "", "## Whole sequences", ""]
    lines += [
        "| heads | chunk | T | pass | reference | chunk | compiled | titans-pytorch | chunk / peer | compiled / peer |"
    ]
    lines += ["|" + "---|" * 10]
    rows: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for result in (r for r in results if r["kind"] == "training"):
        key = (result["heads"], result["chunk"], result["length"], "fwd+bwd" if result["backward"] else "fwd")
        rows.setdefault(key, {})[result["implementation"]] = result
    for key, row in sorted(rows.items()):
        cells = [_cell(row.get(name)) for name in (*OURS, PEER)]
        ratios = [_ratio(row.get(name), row.get(PEER)) for name in ("chunk", "compiled")]
        lines.append("| " + " | ".join([*(f"{k:,}" if isinstance(k, int) else k for k in key), *cells, *ratios]) + " |")
    lines += ["", "Tokens per second (median; ± half the spread in percent), and peak memory beyond the inputs.", ""]
    lines += [
        "## Streams, state carried",
        "",
        "| heads | chunk | tokens a call | tokens | µs a token, first tenth | last tenth | ratio | growth |",
    ]
    lines += ["|" + "---|" * 8]
    for r in (r for r in results if r["kind"] == "streaming" and "seconds" in r):
        first, last = (1e6 * r["seconds"][i] / r["tokens"] for i in (0, -1))
        shape = f"| {r['heads']} | {r['chunk']} | {r['piece']} | {r['length']:,} "
        lines.append(f"{shape}| {first:,.0f} | {last:,.0f} | {last / first:.2f} | {r['peak_mib']:,.0f} MiB |")
    ceilings = [r["gflops"] for r in results if r["kind"] == "ceiling" and "gflops" in r]
    if ceilings:
        listed = ", ".join(f"{rate:,.0f}" for rate in ceilings)
        lines += ["", f"Matrix products of 1,024 (the ceiling), through the run: {listed} GFLOP/s."]
    worst = max((r["parity"] for r in results if r.get("parity") is not None), default=float("nan"))
    lines += ["", f"Parity with the reference before each timing: relative difference at most {worst:.1e} (float32)."]
    return "\n".join(lines) + "\n"


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    if "seconds" not in result:
        return str(result["error"])
    middle = statistics.median(result["seconds"])
    spread = 50 * (max(result["seconds"]) - min(result["seconds"])) / middle
    memory = "" if result["peak_mib"] is None else f", {result['peak_mib']:,.0f} MiB"
    return f"{result['tokens_per_second']:,.0f} ± {spread:.0f}%{memory}"


def _ratio(ours: dict[str, Any] | None, peer: dict[str, Any] | None) -> str:
    if not ours or not peer or "seconds" not in ours or "seconds" not in peer:
        return ""
    return f"{ours['tokens_per_second'] / peer['tokens_per_second']:.1f}"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter that has titans-pytorch 0.5.5")
    parser.add_argument("--threads", type=int, default=1, help="more than one stalls when another program wants a core")
    parser.add_argument("--kind", choices=("training", "streaming"), help="only these cases (default: both)")
    parser.add_argument(
        "--only", choices=(*OURS, PEER), help="measure these again and keep the others' figures of today"
    )
    parser.add_argument("--short", action="store_true", help="forward and the slow paths at short sequences only")
    parser.add_argument("--quick", action="store_true", help="short sequences only")
    parser.add_argument("--limit", type=float, default=120, help="seconds one run may take; longer ones are not begun")
    options = parser.parse_args()
    listed = [
        case
        for case in cases(options.quick, options.short, options.threads)
        if options.kind in (None, case["kind"]) or case["kind"] == "ceiling"
    ]
    results: list[dict[str, Any]] = []
    if options.only:
        listed = [case for case in listed if case["kind"] == "training" and case["implementation"] == options.only]
        kept = json.loads(target(options).with_suffix(".json").read_text())
        results = [each for each in kept if each["kind"] != "training" or each["implementation"] != options.only]
    with Progress() as progress:
        task = progress.add_task("measuring", total=len(listed))
        for case in listed:
            results += run(case, options.peer_python, options.limit)
            text = write(results, options)
            progress.advance(task)
    print(text)
    return 0


def write(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table and the raw figures of what has been measured so far."""
    machine, today = platform_name(), datetime.date.today().isoformat()
    command = (
        "python -m benchmarks.scan"
        + (f" --kind {options.kind}" if options.kind else "")
        + (" --short" if options.short else "")
        + (" --quick" if options.quick else "")
        + f" --limit {options.limit:.0f} --peer-python PATH"
        + (f"`, then `python -m benchmarks.scan --only {options.only}" if options.only else "")
    )
    header = (
        f"# Memory layer: paths side by side ({machine}, {today})\n\n`{command}`, seed 0, batch 1, dim 384, float32, "
        f"threads {options.threads}, {_torch()}. Titans LMM: 2-layer ×4 memory with residual and layer norm, momentum and forgetting. "
        "Ours: gates, momentum and reads per token. titans-pytorch 0.5.5: same memory, `batch_size=chunk_size`, gates per chunk."
    )
    text = markdown(results, header)
    base = target(options)
    base.with_suffix(".md").write_text(text)
    base.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    return text


def target(options: argparse.Namespace) -> Path:
    """Where today's results of this machine lie, without a suffix."""
    name = f"{options.kind or 'scan'}-{platform_name()}-{datetime.date.today().isoformat()}"
    return ROOT / "benchmarks" / "results" / f"{name}{'-quick' if options.quick else ''}"


def platform_name() -> str:
    """The machine, as far as it may be named."""
    return f"{os.cpu_count()}-core-{platform.machine()}"


def _torch() -> str:
    import torch

    return f"torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
