"""One layer measured in a process of its own: ``python -m benchmarks.worker '<case as JSON>'`` prints a line of JSON a cell.

A process of its own, because a compiler's or an allocator's past would count. A cell is one length and pass; the shortest come first,
so that one which would take too long, judging by a shorter one, is not begun.
The peer runs here too, under an interpreter that has it; nothing of ours is imported then.
"""

from __future__ import annotations

import ctypes
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GIB = 2**30


class Peak:
    """The most memory that the process held since this object was made, beyond what it held then (MiB; Linux only)."""

    def __init__(self) -> None:
        """Begin anew: what came before (imports, parity) does not count, nor may what it freed be taken again unseen."""
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")

    def mib(self) -> float:
        """The peak so far."""
        return (_status("VmHWM") - self.before) / 1024


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def ours(case: dict[str, Any]) -> Any:
    """A Titans memory layer: 2 layers x4, residual and layer norm, momentum, forgetting; per-token gates, per-token reads."""
    from nestling.core import L2, MLP, Chain, Decay, Descend, Memory, Momentum, Normed, Residual
    from nestling.nn import MemoryLayer
    from nestling.ops import Chunk, Reference

    rule = Chain((Descend(), Momentum()))
    memory = Memory(Residual(Normed(MLP(expand=4, depth=2))), L2(), Decay(), rule, period=case["chunk"])
    paths = {"reference": Reference(), "chunk": Chunk(), "compiled": Chunk(compiled=True)}
    return MemoryLayer(case["dim"], case["heads"], memory, path=paths[case["implementation"]])


def peer(case: dict[str, Any]) -> Any:
    """The PyPI package titans-pytorch, weights advancing every chunk."""
    from titans_pytorch import NeuralMemory

    dim, heads, chunk = case["dim"], case["heads"], case["chunk"]
    return NeuralMemory(dim=dim, heads=heads, dim_head=dim // heads, chunk_size=chunk, batch_size=chunk)


def parity(layer: Any, case: dict[str, Any]) -> float:
    """Largest relative difference of outputs and outer gradients from the reference, on a few chunks (float32)."""
    from nestling.ops import Reference

    # What is compiled has one shape of block; a padded one would be compiled anew.
    length = 2 * case["chunk"] if case["implementation"] == "compiled" else case["chunk"] + 5
    x = torch.randn(1, length, case["dim"])
    weight = torch.randn(1, length, case["dim"])

    def answer() -> list[Tensor]:
        layer.zero_grad()
        y, _ = layer(x)
        (y * weight).sum().backward()
        return [y.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]

    fast, layer.path = (answer(), layer.path), Reference()
    slow, layer.path = answer(), fast[1]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(fast[0], slow, strict=True))


def measure(run: Callable[[], Any], case: dict[str, Any]) -> list[float]:
    """Seconds of each run, after one to warm up where the runs are short; fewer when the budget is spent."""
    repeats, budget = case["repeats"], case["budget"]
    if case["warm"]:
        run()
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or sum(seconds) < budget):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return seconds


def training(layer: Any, case: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """Forward, or forward and backward, over T tokens at once."""
    x = torch.randn(1, cell["length"], case["dim"])
    peak = Peak()

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def both() -> None:
        layer.zero_grad()
        layer(x)[0].square().mean().backward()

    # Where a run is long, what comes before it in the process has warmed it up.
    settings = {**case, "warm": cell["length"] <= 4096}
    seconds = measure(both if cell["backward"] else forward, settings)
    return {"seconds": seconds, "tokens": cell["length"], "peak_mib": peak.mib()}


def hopeless(cell: dict[str, Any], done: list[dict[str, Any]], limit: float) -> str | None:
    """Why a cell need not be begun, judging by shorter ones of the same pass."""
    for before in (each for each in done if each["backward"] == cell["backward"]):
        if "error" in before:
            return str(before["error"])
        if statistics.median(before["seconds"]) * cell["length"] / before["length"] > limit:
            return f"over {limit:.0f} s"
    return None


def ceiling() -> dict[str, Any]:
    """GFLOP/s of a large matrix product: what this machine gives at this moment."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = measure(lambda: a @ b, {"repeats": 30, "budget": 3, "warm": True})
    return {"seconds": seconds, "gflops": 2 * 1024**3 / statistics.median(seconds) / 1e9}


def streaming(layer: Any, case: dict[str, Any]) -> dict[str, Any]:
    """A stream of T tokens in pieces, state carried: seconds of each tenth, and the memory that the whole took."""
    piece, tenth = case["piece"], case["length"] // 10
    # Fresh tokens at every call: on one that repeats, a memory ends at a fixed point, and gradients at denormal numbers.
    pieces = torch.randn(1, 64 * piece, case["dim"]).split(piece, 1)
    state = None
    with torch.no_grad():
        for i in range(max(2, 512 // piece)):
            _, state = layer(pieces[i % 64], state)
        peak, seconds = Peak(), []
        for _ in range(10):
            begin = time.perf_counter()
            for i in range(max(1, tenth // piece)):
                _, state = layer(pieces[i % 64], state)
            seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds, "tokens": max(1, tenth // piece) * piece, "peak_mib": peak.mib()}


def main() -> int:
    """Run the case given on the command line."""
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    torch.manual_seed(case["seed"])
    if case["kind"] == "ceiling":
        print(json.dumps(ceiling()))
        return 0
    resource.setrlimit(resource.RLIMIT_AS, (case["limit_gib"] * GIB, case["limit_gib"] * GIB))
    layer = peer(case) if case["implementation"] == "titans-pytorch" else ours(case)
    fast = case["implementation"] not in ("titans-pytorch", "reference")
    deviation = {"parity": parity(layer, case) if fast else None}
    done: list[dict[str, Any]] = []
    for cell in case["cells"]:
        result = {**cell, **deviation, **_measured(layer, case, {**cell, **deviation}, done)}
        if "seconds" in result:
            result["tokens_per_second"] = result["tokens"] / statistics.median(result["seconds"])
        done.append(result)
        print(json.dumps(result), flush=True)
    return 0


def _measured(layer: Any, case: dict[str, Any], cell: dict[str, Any], done: list[dict[str, Any]]) -> dict[str, Any]:
    deviation = cell.get("parity")
    if deviation is not None and not deviation < 1e-3:
        return {"error": "parity failed"}
    if case["kind"] == "streaming":
        return streaming(layer, {**case, **cell})
    if reason := hopeless(cell, done, case["limit_s"]):
        return {"error": reason}
    try:
        return training(layer, case, cell)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        layer.zero_grad()
        return {"error": "out of memory"}


if __name__ == "__main__":
    sys.exit(main())
