"""A million tokens through one Hope, its state carried: time per token, memory, surprise and gates along the way.

    python -m benchmarks.hope.stream                         recipe "hope" at size tiny, trained for 150 steps first

Reads novels that it was not trained on, one after another, with every write; in every hundredth piece the memories are recorded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import psutil
import torch

import nestling as nl
import nestling.tree as tree
from benchmarks.hope.positions import GROUPS, trained
from benchmarks.hope.training import as_bytes, bits
from benchmarks.novels import text
from benchmarks.shared import RESULTS, machine, save, table, write
from nestling.nn import recording

NOVELS = ("Dickens_Bleak_1853", "Eliot_Adam_1859")
PARTS, LISTEN = 10, 100


def resident() -> int:
    """MiB of this process that are in memory"""
    return psutil.Process().memory_info().rss // 2**20


def heard(model: nl.LM, piece: torch.Tensor, state: Any) -> dict[str, list[float]]:
    """Mean surprise, η and α of each block in one piece; the state does not move."""
    with recording(model) as record:
        model(piece, state)
    told = list(record.values())
    each = {
        "surprise": [one.surprise for one in told],
        "η": [one.gates.lr for one in told],
        "α": [one.gates.retain for one in told],
    }
    return {name: [torch.as_tensor(one).mean().item() for one in values] for name, values in each.items()}


@torch.no_grad()
def stream(model: nl.LM, tokens: torch.Tensor, piece: int) -> list[dict[str, Any]]:
    """What each part of the stream cost and gave."""
    state, rows = None, []
    pieces = [tokens[None, at : at + piece + 1] for at in range(0, len(tokens) - piece, piece)]
    whole = len(pieces) // PARTS
    for part in range(PARTS):
        seconds, losses, told = [], [], []
        for number in range(part * whole, (part + 1) * whole):
            given = pieces[number]
            begun = time.process_time()
            logits, state = model(given[:, :-1], state)
            seconds.append(time.process_time() - begun)
            losses.append(bits(logits, given[:, 1:]).mean().item())
            if (number - part * whole) % LISTEN == 0:
                told.append(heard(model, given[:, :-1], state))
        largest = max(leaf.abs().max().item() for leaf in tree.leaves(state) if leaf.is_floating_point())
        if not largest < float("inf"):
            raise SystemExit(f"not finite after {(part + 1) * whole * piece:,} tokens")
        mean = (
            {
                name: [statistics.fmean(column) for column in zip(*(one[name] for one in told), strict=True)]
                for name in told[0]
            }
            if told
            else {}
        )
        row = {
            "read": (part + 1) * whole * piece,
            "µs": 1e6 * statistics.median(seconds) / piece,
            "bits": statistics.fmean(losses),
        }
        rows.append({**row, "MiB": resident(), "state": tree.nbytes(state), "largest": largest, **mean})
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Time and memory; surprise and gates of each block."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    read = [row["read"] for row in rows]
    axes[0].plot(read, [row["µs"] for row in rows], marker=".")
    axes[0].set(title="µs a token (median piece)", ylim=(0, None))
    axes[1].plot(read, [row["MiB"] for row in rows], marker=".")
    axes[1].set(title="MiB of the process", ylim=(0, None))
    for axis, name in zip(axes[2:], ("surprise", "η"), strict=True):
        for block in range(len(rows[0][name])):
            axis.plot(read, [row[name][block] for row in rows], marker=".", label=f"block {block}")
        axis.set(title=f"mean {name}", ylim=(0, None))
    axes[2].legend(fontsize=8)
    for axis in axes:
        axis.set_xlabel("tokens read")
    save(figure, "hope-stream")


def trained_hope(steps: int) -> tuple[nl.LM, dict[str, float]]:
    """A Hope of size tiny after so many steps, trained as that of the systems is."""
    group = GROUPS["systems"]
    return trained("hope", {**group.members["hope"].changes, "dim": 192, "layers": 4}, 0, replace(group, steps=steps))


def main() -> None:
    """Train a little, read, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--piece", type=int, default=512)
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, about = trained_hope(given.steps)
    tokens = as_bytes(b"".join(map(text, NOVELS))[: given.tokens + 1])
    rows = stream(model, tokens, given.piece)
    draw(rows)
    (RESULTS / "hope-stream.json").write_text(
        json.dumps({"model": about, "parts": rows}, indent=1, ensure_ascii=False) + "\n"
    )
    listed = lambda values: ", ".join(f"{value:.3f}" for value in values)  # noqa: E731
    shown = [
        (f"{row['read']:,}", f"{row['µs']:.0f}", row["MiB"], f"{row['state']:,}", f"{row['bits']:.3f}", f"{row['largest']:.1f}",
         *(listed(row[name]) for name in ("surprise", "η", "α")))
        for row in rows
    ]  # fmt: skip
    header = (
        "tokens read",
        "µs a token",
        "MiB",
        "bytes of state",
        "bits a byte",
        "largest entry",
        "surprise by block",
        "η",
        "α",
    )
    write(
        "hope-stream",
        f"# {given.tokens:,} tokens through one Hope\n\n`python -m benchmarks.hope.stream` on a {machine()}, seed 0: {about['parameters']:,} "
        f"parameters (size tiny, bytes), {given.steps} steps of training, then one stream in pieces of {given.piece}.\n\n"
        + table(header, shown),
    )


if __name__ == "__main__":
    main()
