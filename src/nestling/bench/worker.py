"""One cell in a process of its own: ``python -P worker.py '<cell as JSON>'`` prints its figures as a line of JSON.

A process of its own, because a compiler's or an allocator's past would count. The peer and other revisions run here too, under an
interpreter or a path that has them; so nothing of ours is imported before it is needed, and only names that stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-1}
"""Of what is compiled, and of half precision: relative, norm against norm, outer gradients too"""

PRODUCTS = ("mm", "dot", "linear", "conv")
MOVES = ("copy", "cat", "clone", "contiguous", "fill", "zero", "empty", "stack", "index", "gather", "to")


class Peak:
    """The most memory that the process held since this object was made, beyond what it held then (MiB; None where unknown)."""

    def __init__(self, device: str) -> None:
        """Begin anew: what came before (imports, parity) does not count, nor may what it freed be taken again unseen."""
        self.device, self.known = device, device != "cpu" or Path("/proc/self/clear_refs").exists()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 2**20
        elif self.known:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def mib(self) -> float | None:
        """The peak so far."""
        if not self.known:
            return None
        now = _status("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated(self.device) / 2**20
        return now - self.before


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def ours(cell: dict[str, Any]) -> Any:
    """The layer of ``cell["path"]``."""
    from nestling import core
    from nestling.nn import MemoryLayer
    from nestling.ops import Chunk, Reference

    body, chunk = core.Residual(core.Normed(core.MLP(expand=4, depth=2))), cell["chunk"]
    titans = core.Chain((core.Descend(), core.Momentum()))
    once = core.Chain((core.Descend(), core.Every(chunk, core.Momentum())))
    plain, squared = core.Descend(), core.L2()
    commit = core.Memory(body, squared, core.Decay(), once, chunk, "commit")
    memory = {
        "commit": commit,
        "native": commit,
        "plain": core.Memory(body, squared, core.Decay(), plain, chunk),
        "dgd": core.Memory(body, squared, core.UnitDelta(), plain, chunk),
        "linear": core.Memory(core.Matrix(), squared, core.Decay(), plain, chunk),
        "exact": core.Memory(core.Matrix(), core.DotProduct(), core.Erase(), plain, chunk),
    }.get(cell["path"], core.Memory(body, squared, core.Decay(), titans, chunk))
    fast = Chunk(block=chunk, compiled=cell["path"] == "compiled", native=cell["path"] == "native")
    layer = MemoryLayer(cell["dim"], cell["heads"], memory, path=Reference() if cell["path"] == "reference" else fast)
    return naively(layer) if cell["path"] == "naive" else layer


class Naive:
    """What one would write first, as the path of a layer: each token's gradient by ``vmap(grad)``, weights and all, one token after another."""

    def __call__(self, memory: Any, start: Any, q: Tensor, k: Tensor, v: Tensor, gates: Any, **_: Any) -> Any:
        """``ops.scan`` of Titans' memory from its initial weights; there is no state to go on from."""
        from nestling.core import linear

        def one(weights: dict[str, Tensor], key: Tensor) -> Tensor:
            return memory.architecture(linear(weights), key)

        def loss(weights: dict[str, Tensor], key: Tensor, value: Tensor) -> Tensor:
            return memory.objective(one(weights, key), value, float("inf"))

        slope, read = (torch.vmap(torch.vmap(each)) for each in (torch.func.grad(loss), one))
        now = {name: weight.expand(q.shape[0], *weight.shape) for name, weight in start.items()}
        trace, anchor, outputs = {name: torch.zeros_like(weight) for name, weight in now.items()}, now, []
        for t in range(q.shape[2]):
            if t % memory.period == 0:
                anchor = now
            found = slope(anchor, k[:, :, t], v[:, :, t])
            for name in now:
                gate = gates.of(name)
                lr, retain, momentum = (x[:, :, t, None, None] for x in (gate.lr, gate.retain, gate.momentum))
                # Sₜ = ηₜSₜ₋₁ − θₜ∇ℓ,  Mₜ = (1 − αₜ)Mₜ₋₁ + Sₜ        Titans eqs 13-14
                trace[name] = momentum * trace[name] - lr * found[name]
                now = {**now, name: retain * now[name] + trace[name]}
            outputs.append(read(now, q[:, :, t]))
        return torch.stack(outputs, 2), None


def naively(layer: Any) -> Any:
    """The layer with ``Naive`` for a path, which ``ops.scan`` does not know."""
    import nestling.nn.memory as home

    known: Any = home.scan

    def scan(*given: Any, path: Any, **options: Any) -> Any:
        return path(*given) if isinstance(path, Naive) else known(*given, path=path, **options)

    home.scan = scan  # type: ignore[assignment]  # this process is the cell's own
    layer.path = Naive()
    return layer


def peer(cell: dict[str, Any]) -> Any:
    """The PyPI package titans-pytorch, weights advancing every chunk."""
    from titans_pytorch import NeuralMemory  # type: ignore[import-not-found]

    dim, heads, chunk = cell["dim"], cell["heads"], cell["chunk"]
    return NeuralMemory(dim=dim, heads=heads, dim_head=dim // heads, chunk_size=chunk, batch_size=chunk)


def parity(layer: Any, cell: dict[str, Any]) -> tuple[float, float, float]:
    """(largest relative difference of outputs and outer gradients from the reference, what it may be, seconds of the first run)."""
    from nestling.ops import Reference

    whole = cell["path"] == "compiled" or cell["dtype"] != "float32"
    dtype = getattr(torch, cell["dtype"]) if whole else torch.float64
    # What is compiled has one shape of block; a padded one would be compiled anew.
    length = 2 * cell["chunk"] if cell["path"] == "compiled" else cell["chunk"] + 5
    x, weight = torch.randn(2, 1, length, cell["dim"], dtype=torch.float64).to(cell["device"]).unbind(0)
    fast, start = layer.path, next(layer.parameters()).dtype

    # Stretches that are shorter than the sequence, so that there is one between others.
    held = cell["recompute"] and max(1, cell["chunk"] // 2)

    def answer(path: Any, dtype: torch.dtype, held: int | None = None) -> list[Tensor]:
        layer.to(dtype)
        layer.path = path
        layer.zero_grad()
        y = over(layer, x.to(dtype), held)
        (y * weight.to(dtype)).sum().backward()
        return [y.detach().double(), *(p.grad.double() for p in layer.parameters() if p.grad is not None)]

    begin = time.perf_counter()  # compilers work in processes of their own
    got = answer(fast, dtype, held)
    first = time.perf_counter() - begin
    expected = answer(Reference(), torch.float32 if whole else torch.float64)
    layer.zero_grad(set_to_none=True)
    layer.to(start)
    layer.path = fast
    worst = max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(got, expected, strict=True))
    return worst, TOLERANCES[cell["dtype"]] if whole else 1e-8, first


def ceiling(cell: dict[str, Any]) -> float:
    """FLOP/s of a large matrix product of this precision: what this machine gives at this moment."""
    size = 1024 if cell["device"] == "cpu" else 8192
    a, b = torch.randn(2, size, size, dtype=getattr(torch, cell["dtype"]), device=cell["device"]).unbind(0)
    seconds = timed(lambda: a @ b, {**cell, "repeats": 15, "budget": 2})[1]
    return 2 * size**3 / statistics.median(seconds)


def bandwidth(cell: dict[str, Any]) -> float:
    """Bytes a second of a copy that no cache holds, reading and writing."""
    source = torch.randn(2**25 if cell["device"] == "cpu" else 2**28, device=cell["device"])
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), {**cell, "repeats": 5, "budget": 2})[1]
    return 2 * source.numel() * 4 / statistics.median(seconds)


def timed(run: Callable[[], Any], cell: dict[str, Any]) -> tuple[float, list[float]]:
    """Seconds of the first run, and of the others; fewer when the budget is spent. Of one thread: seconds that it had a processor."""
    clock = time.process_time if cell["device"] == "cpu" and cell["threads"] == 1 else time.perf_counter

    def once() -> float:
        begin = clock()
        run()
        if cell["device"] != "cpu":
            torch.cuda.synchronize()
        return clock() - begin

    first, seconds = once(), list[float]()
    while len(seconds) < cell["repeats"] and (not seconds or first + sum(seconds) < cell["budget"]):
        seconds.append(once())
    return first, seconds


def opened(state: Any, cell: dict[str, Any]) -> Any:
    """The state of a stream that goes on token by token: for the peer, and before there was such a thing, the state itself."""
    if cell["source"] == "peer" or cell["what"] != "decode":
        return state
    try:
        from nestling.nn import buffered
    except ImportError:
        return state
    return buffered(state)


def over(layer: Any, x: Tensor, held: int | None) -> Tensor:
    """What the layer gives; computed again in the backward pass by stretches of ``held`` tokens, where it is given."""
    if held is None:
        return layer(x)[0]
    from nestling.ops import stretches

    return torch.cat(stretches(layer, x, None, held)[0], 1)


def work(layer: Any, cell: dict[str, Any]) -> Callable[[], Any]:
    """What one run does."""
    dtype, length = getattr(torch, cell["dtype"]), cell["length"]
    # Fresh tokens: on ones that repeat, a memory ends at a fixed point, and gradients at denormal numbers.
    x = torch.randn(cell["batch"], length, cell["dim"], dtype=dtype, device=cell["device"])

    def training() -> None:
        layer.zero_grad()
        over(layer, x, cell["recompute"]).square().mean().backward()

    def pieces(size: int) -> Callable[[], None]:
        def run() -> None:
            first, *others = x.split(size, 1)
            state = opened(layer(first)[1], cell)
            for piece in others:
                _, state = layer(piece, state=state)

        return torch.no_grad()(run)

    runs = {"training": training, "forward": pieces(length), "decode": pieces(1), "stream": pieces(512)}
    return runs[cell["what"]]


def breakdown(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one run by kind of operator; what the profiler itself costs counts as ``outside``."""
    kinds = {"matrix products": 0.0, "moving": 0.0, "elementwise": 0.0}
    begin = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    whole = time.perf_counter() - begin
    # Seconds on a shared machine: what matters is the shares.
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::")
        if event.key.startswith("aten::"):
            is_product = any(part in name for part in PRODUCTS)
            kind = "matrix products" if is_product else "moving" if name.startswith(MOVES) else "elementwise"
            kinds[kind] += event.self_cpu_time_total / 1e6
    return {**kinds, "outside": max(0.0, whole - sum(kinds.values()))}


def measured(cell: dict[str, Any]) -> dict[str, Any]:
    """The figures of a cell, or why it has none."""
    if cell["dtype"] == "bfloat16" and not _halves(cell["device"]):
        return {"skipped": "no bfloat16 instructions here"}
    dtype = getattr(torch, cell["dtype"])
    layer = (peer(cell) if cell["source"] == "peer" else ours(cell)).to(cell["device"], dtype)
    # Before parity, whose tensors of twice the size leave the allocator in another state.
    run, peak = work(layer, cell), Peak(cell["device"])
    run()
    found: dict[str, Any] = {"peak_mib": peak.mib()}
    if cell["source"] != "peer" and cell["path"] != "reference":
        worst, allowed, first = parity(layer, cell)
        found |= {"parity": worst, "first": first}
        if not worst <= allowed:
            return {**found, "error": f"parity failed: {worst:.1e} > {allowed:.0e}"}
    before = ceiling(cell)
    warm, seconds = timed(run, cell)
    found = {
        "first": warm,
        **found,
        "seconds": seconds,
        "tokens": cell["batch"] * cell["length"],
    }
    found |= {"ceiling": (before + ceiling(cell)) / 2, "bandwidth": bandwidth(cell)}
    # A profiler makes long runs of many operators much longer.
    if cell["what"] == "training" and cell["device"] == "cpu" and 5 * warm < cell["budget"]:
        found["breakdown"] = breakdown(run)
    return found


def _halves(device: str) -> bool:
    if device != "cpu":
        return torch.cuda.is_bf16_supported()
    flags = Path("/proc/cpuinfo")
    return flags.exists() and any(name in flags.read_text() for name in ("avx512_bf16", "amx_bf16"))


def main() -> int:
    """Measure the cell given on the command line."""
    cell = json.loads(sys.argv[1])
    torch.set_num_threads(cell["threads"])
    torch.manual_seed(cell["seed"])
    if cell["device"] == "cpu" and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(cell["gib"] * 2**30),) * 2)
    try:
        found = measured(cell)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        found = {"error": "out of memory"}
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
