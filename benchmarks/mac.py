"""Titans MAC, whole models: training and generation beside the PyPI package titans-pytorch.

    python -m benchmarks.mac --peer-python PATH --compile

Width 384, 6 blocks, segments of 128 tokens, 4 persistent tokens, 256 kinds of token, random ones; float32, one thread,
processor time. The peer is its README's configuration (16 long-term memory tokens, memories of one head, gradients of a whole
segment at the memory's start). Ours are the recipe `titans_mac`, with one head and with four: "by token", as it comes, memories have
gates, momentum and reads per token and commit every 16 tokens; "by segment" they do as the peer's do: they commit once a segment, their
momentum moves then, and reads are those of the last commit. Before a side is timed, pieces of a stream give what the whole gives. Each
side is a process of its own; ratios are of medians. GFLOP are those of its matrix products, counted while it runs, forward and
backward; the ceiling is one large product, measured in the same process. ``--compile``: ours make a token by one compiled program too.
The peer's environment has torch and the peer: what more is needed to show results is imported where they are shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

LENGTHS = (256, 1024)
PROMPTS = (128, 1024)
SEGMENT = 128
DECODED = SEGMENT
"""A whole one: what is written at its end counts"""
OURS = {f"by {unit}, heads {heads}": (unit, heads) for unit in ("token", "segment") for heads in (1, 4)}


def ours(unit: str, heads: int) -> Any:
    """``titans_mac`` of that width."""
    import nestling as nl
    from nestling.core import Chain, Descend, Every, Momentum
    from nestling.recipes.titans import LONG_TERM_MEMORY

    memory = LONG_TERM_MEMORY
    if unit == "segment":
        once = Chain((Descend(), Every(SEGMENT, Momentum())))
        memory = replace(memory, rule=once, period=SEGMENT, read_at="commit")
    shape = {"vocab_size": 256, "dim": 384, "layers": 6, "heads": heads, "segment": SEGMENT, "persistent": 4, "pool": 8}
    return nl.build("titans_mac", memory=memory, **shape)


@torch.no_grad()
def same_in_pieces(model: Any) -> None:
    """Raises SystemExit where a stream in pieces does not give what it gives in one."""
    tokens = torch.randint(256, (1, 2 * SEGMENT + 5))
    whole, state, pieces = model(tokens)[0], None, []
    for piece in tokens.split((SEGMENT, 1, SEGMENT - 1, 4, 1), 1):
        found, state = model(piece, state)
        pieces.append(found)
    difference = float((torch.cat(pieces, 1) - whole).abs().max() / whole.abs().max())
    if not difference < 1e-4:
        raise SystemExit(f"no parity: a stream in pieces differs by {difference:.1e} from the stream in one")


def ceiling() -> float:
    """Operations of one large product in a second."""
    a = torch.randn(1536, 1536)
    return 2 * 1536**3 / min(seconds(lambda: a @ a, 5))


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


def measure(side: str, repeats: int, compiled: bool) -> dict[str, Any]:
    """Tokens per second of one model."""
    model = peer() if side == "peer" else ours(*OURS[side])
    if side != "peer":
        same_in_pieces(model)
    rates: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "ceiling": ceiling()}

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
    with FlopCounterMode(display=False) as counter:
        training(tokens)
    rates["operations"] = counter.get_total_flops() / LENGTHS[-1]
    model.zero_grad(set_to_none=True)
    for length in PROMPTS:
        rates[f"generation {length}"] = [DECODED / each for each in generation(model, side, length, repeats)]
    if compiled and side != "peer":
        from nestling.stream import Program

        found = generation(model, side, PROMPTS[-1], repeats, Program(model))
        rates[f"generation {PROMPTS[-1]}, compiled"] = [DECODED / each for each in found]
    return rates


@torch.no_grad()
def generation(model: Any, side: str, length: int, repeats: int, program: Any = None) -> list[float]:
    """Seconds of ``DECODED`` tokens after a prompt, whose own time is measured apart and taken off for the peer.

    ``program``: what makes the tokens after the prompt, where it is not the model itself.
    """
    prompt = torch.randint(256, (1, length))
    if side == "peer":
        # Its cache lives inside of one call, so what one more token costs is the difference between two.
        few, many = (
            seconds(lambda n=n: model.sample(prompt, length + n, use_cache=True, show_progress=False), repeats)
            for n in (1, 1 + DECODED)
        )
        return [max(b - a, 1e-9) for a, b in zip(few, many, strict=False)]
    _, state = model(prompt)
    from nestling.nn import buffered, settled

    state = buffered(state)  # as sessions do

    def run() -> None:
        held, token = state, prompt[:, -1:]
        for _ in range(DECODED):
            found, held = (program or model)(token, held)
            token = found[:, -1:].argmax(-1)
        settled(held)

    return seconds(run, repeats)


def main() -> int:
    """Measure, print a table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter that has titans-pytorch 0.5.5")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--compile", action="store_true", help="generate by one compiled program too: minutes of compiling"
    )
    parser.add_argument("--side", help="measure this one here, and print it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side:
        torch.manual_seed(0)
        print(json.dumps(measure(options.side, options.repeats, options.compile)))
        return 0
    from benchmarks.shared import machine, write
    from benchmarks.sides import told

    found = {}
    more = ["--compile"] if options.compile else []
    for side in (*(["peer"] if options.peer_python else []), *OURS):
        python = options.peer_python if side == "peer" else sys.executable
        found[side] = told(python, __file__, "--side", side, "--repeats", str(options.repeats), *more)
        print(shown(found), flush=True)
    command = " ".join(("python -m benchmarks.mac --peer-python PATH --repeats", str(options.repeats), *more))
    write("mac", f"`{command}` on a {machine()}\n\n{shown(found)}")
    return 0


def shown(found: dict[str, dict[str, Any]]) -> str:
    """Tokens per second, and how many times the peer's."""
    from benchmarks.shared import table

    rows: list[tuple[str, ...]] = [
        ("parameters", *(f"{each['parameters']:,}" for each in found.values())),
        ("GFLOP of a trained token", *(f"{each['operations'] / 1e9:.2f}" for each in found.values())),
    ]
    timed = [name for name in next(reversed(found.values())) if name.startswith(("training", "generation"))]
    for name in timed:
        rates = {side: statistics.median(each[name]) for side, each in found.items() if name in each}
        # what is compiled is compared with what the peer does
        rival = statistics.median(found["peer"][name.split(",")[0]]) if "peer" in found else 0.0
        times = {side: f" ({rate / rival:.1f} ×)" if rival and side != "peer" else "" for side, rate in rates.items()}
        cells = [f"{rates[side]:,.1f}{times[side]}" if side in rates else "" for side in found]
        rows.append((f"{name} tokens".replace(", compiled tokens", " tokens, compiled"), *cells))
    longest = f"training {LENGTHS[-1]}"
    shares = [statistics.median(each[longest]) * each["operations"] / each["ceiling"] for each in found.values()]
    rows.append((f"{longest} tokens, of the ceiling", *(f"{share:.0%}" for share in shares)))
    return table(("tokens/s", *("titans-pytorch" if side == "peer" else f"ours, {side}" for side in found)), rows)


if __name__ == "__main__":
    sys.exit(main())
