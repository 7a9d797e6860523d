"""Titans MAC, whole models: training and generation beside the PyPI package titans-pytorch.

    python -m benchmarks.mac --peer-python PATH

Width 384, 6 blocks, segments of 128 tokens, 4 persistent tokens, 256 kinds of token, random ones; float32, one thread,
processor time. The peer is its README's configuration (16 long-term memory tokens, memories of one head, gradients of a whole
segment at the memory's start). Ours are the recipe `titans_mac`, whose memories have gates, momentum and reads per token and
commit every 16 tokens, with one head and with four. Each model is a process of its own; ratios are of medians. The peer's
environment has torch and the peer: what more is needed to show results is imported where they are shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor

LENGTHS = (256, 1024)
PROMPTS = (128, 1024)
DECODED = 16


def ours(heads: int) -> Any:
    """``titans_mac`` of that width."""
    import nestling as nl

    return nl.build("titans_mac", vocab_size=256, dim=384, layers=6, heads=heads, segment=128, persistent=4, pool=8)


def peer() -> Any:
    """The configuration in the package's README, at that width."""
    from titans_pytorch import MemoryAsContextTransformer

    shape = {"num_tokens": 256, "dim": 384, "depth": 6, "segment_len": 128}
    return MemoryAsContextTransformer(**shape, num_persist_mem_tokens=4, num_longterm_mem_tokens=16)


def seconds(run: Any, repeats: int, budget: float = 60) -> list[float]:
    """Of processor time, after a run to warm up."""
    run()
    found: list[float] = []
    while len(found) < repeats and (not found or sum(found) < budget):
        begin = time.process_time()
        run()
        found.append(time.process_time() - begin)
    return found


def measure(side: str, repeats: int) -> dict[str, Any]:
    """Tokens per second of one model."""
    model = peer() if side == "peer" else ours(int(side))
    rates: dict[str, Any] = {"side": side, "parameters": sum(p.numel() for p in model.parameters())}

    def logits(tokens: Tensor) -> Tensor:
        found = model(tokens)
        return found if isinstance(found, Tensor) else found[0]

    def training(tokens: Tensor) -> None:
        model.zero_grad()
        flat = logits(tokens[:, :-1]).flatten(0, 1)
        torch.nn.functional.cross_entropy(flat, tokens[:, 1:].flatten()).backward()

    for length in LENGTHS:
        tokens = torch.randint(256, (1, length + 1))
        rates[f"training {length}"] = [
            length / each for each in seconds(lambda tokens=tokens: training(tokens), repeats)
        ]
    model.zero_grad(set_to_none=True)
    for length in PROMPTS:
        rates[f"generation {length}"] = [DECODED / each for each in generation(model, side, length, repeats)]
    return rates


@torch.no_grad()
def generation(model: Any, side: str, length: int, repeats: int) -> list[float]:
    """Seconds of ``DECODED`` tokens after a prompt, whose own time is measured apart and taken off for the peer."""
    prompt = torch.randint(256, (1, length))
    if side == "peer":
        # Its cache lives inside of one call, so what one more token costs is the difference between two.
        few, many = (
            seconds(lambda n=n: model.sample(prompt, length + n, use_cache=True, show_progress=False), repeats)
            for n in (1, 1 + DECODED)
        )
        return [max(b - a, 1e-9) for a, b in zip(few, many, strict=False)]
    _, state = model(prompt)

    def run() -> None:
        held, token = state, prompt[:, -1:]
        for _ in range(DECODED):
            found, held = model(token, held)
            token = found[:, -1:].argmax(-1)

    return seconds(run, repeats)


def main() -> int:
    """Measure, print a table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter that has titans-pytorch 0.5.5")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", help="measure this one here, and print it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side:
        torch.manual_seed(0)
        print(json.dumps(measure(options.side, options.repeats)))
        return 0
    from benchmarks.shared import machine, write
    from benchmarks.sides import told

    found = {}
    for side in ("1", "4", *(["peer"] if options.peer_python else [])):
        python = options.peer_python if side == "peer" else sys.executable
        found[side] = told(python, __file__, "--side", side, "--repeats", str(options.repeats))
        print(shown(found), flush=True)
    write("mac", f"`python -m benchmarks.mac --peer-python PATH` on a {machine()}\n\n{shown(found)}")
    return 0


def shown(found: dict[str, dict[str, Any]]) -> str:
    """Tokens per second, and how many times the peer's."""
    from benchmarks.shared import table

    rows: list[tuple[str, ...]] = [("parameters", *(f"{each['parameters']:,}" for each in found.values()))]
    for name in next(iter(found.values())):
        if name in ("side", "parameters"):
            continue
        rates = {side: statistics.median(each[name]) for side, each in found.items()}
        cells = [
            f"{rate:,.1f}" + (f" ({rate / rates['peer']:.1f} ×)" if "peer" in rates and side != "peer" else "")
            for side, rate in rates.items()
        ]
        rows.append((f"{name} tokens", *cells))
    return table(("", *map(_name, found)), rows)


def _name(side: str) -> str:
    return "titans-pytorch" if side == "peer" else f"`titans_mac`, heads {side}"


if __name__ == "__main__":
    sys.exit(main())
