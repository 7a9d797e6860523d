"""Parity of the kernels, then training tokens a second and model-FLOPs utilisation, in one run.

    python -m benchmarks.gpu                   models of 340M parameters on the GPU: about half an hour, most of it compiling
    python -m benchmarks.gpu --only LMM        those entries whose names hold the word
    python -m benchmarks.gpu --dry             on a processor at tiny shapes, kernels interpreted: shows that all of it runs, no speed

Nothing is timed before the kernels agree here with the reference in float64: in float32 to 2e-5 and in bfloat16 to 2e-2 in every output,
state and gradient. A step is forward, backward and AdamW under bfloat16 autocast. Rivals on one length run one after another, with the
matrix-product ceiling measured between them. Layers of flash-linear-attention stand in the same model where it is installed. Writes
``gpu-<device>-<date>.md`` and ``.json``, anew after every row.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

if "--dry" in sys.argv:
    # Before Triton is imported, by whomever
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import torch.nn.functional as F

from benchmarks.gpu.entries import ENTRIES, HOPE_MEMORY, TINY, Entry, Shape, flops
from benchmarks.gpu.timing import ceiling, middle, seconds
from nestling.core import L2, Decay, DotProduct, Erase, Matrix, Memory
from nestling.ops import Kernels
from nestling.recipes.titans import LONG_TERM_MEMORY

RESULTS = Path(__file__).parent.parent / "results"
MEMORIES = (LONG_TERM_MEMORY, HOPE_MEMORY, Memory(Matrix(), L2(), Decay()), Memory(Matrix(), DotProduct(), Erase()))


def parity(device: torch.device) -> list[str]:
    """A line for each memory whose kernels agree with the reference; an error where they do not."""
    from tests.ops.kernels.parity import BFLOAT16, FLOAT32, assert_path, draw

    real = device.type == "cuda"
    length, width = (500, 64) if real else (17, 16)
    lines = []
    for memory in MEMORIES:
        given = draw(memory, length, (1, 2 if real else 1), (width, width), strength=0.03)
        for products, tolerance in ((None, 2 * FLOAT32), (torch.bfloat16, 2 * BFLOAT16))[: 2 if real else 1]:
            like = torch.zeros((), device=device)
            assert_path(memory, given, Kernels(products=products), like, tolerance)
            lines.append(f"{memory!r} in {products or torch.float32}: within {tolerance:g}")
    return lines


def measured(entry: Entry, shape: Shape, length: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """One row: a step of training, timed; or why it is none."""
    row: dict[str, Any] = {"entry": entry.name, "length": length}
    if entry.longest is not None and length > entry.longest:
        return {**row, "why": f"not measured beyond {entry.longest:,}"}
    try:
        return {**row, **_step(entry, shape, length, device, repeats)}
    except ModuleNotFoundError as error:
        return {**row, "why": f"{error.name} is not installed"}
    except torch.OutOfMemoryError:
        return {**row, "why": "out of memory"}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _step(entry: Entry, shape: Shape, length: int, device: torch.device, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    with torch.device(device):
        model = entry.model(shape, length).to(device)
    rows = max(1, shape.tokens // length)
    tokens = torch.randint(0, shape.vocab, (rows, length + 1), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    losses = []

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, _ = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first, each = seconds(step, device, repeats)
    needed, rate = flops(model, length), rows * length / middle(each)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": rows,
        "tokens_per_second": rate,
        "spread": (max(each) - min(each)) / middle(each),
        "flops_per_token": needed,
        "achieved": rate * needed,
        "first_seconds": first,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        "loss": float(losses[-1]),
    }


def markdown(found: dict[str, Any]) -> str:
    """The table, and how it was made."""
    rows = found["rows"]
    base = {
        row["length"]: row["tokens_per_second"]
        for row in rows
        if row["entry"] == "Gated DeltaNet, fla" and "why" not in row
    }
    lines = [
        f"# Training on {found['device']}, {found['date']}",
        "",
        f"torch {found['torch']}, size `{found['size']}`, {found['tokens']:,} tokens a step (forward, backward, AdamW), "
        f"{found['kind']}, median of {found['repeats']}. MFU is of the matrix-product ceiling measured beside each row.",
        "",
        *(f"- {line}" for line in found["parity"]),
        "",
        "| T | model | parameters | tokens/s | spread | MFU | / fla's Gated DeltaNet | peak GiB | first step, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "why" in row:
            lines.append(f"| {row['length']:,} | {row['entry']} | {row['why']} | | | | | | |")
            continue
        rate = row["tokens_per_second"]
        against = f"{rate / base[row['length']]:.2f}" if row["length"] in base else ""
        lines.append(
            f"| {row['length']:,} | {row['entry']} | {row['parameters'] / 1e6:,.0f}M | {rate:,.0f} | {row['spread']:.0%} | "
            f"{row['achieved'] / row['ceiling']:.1%} | {against} | {row['peak_bytes'] / 2**30:.1f} | {row['first_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Parity, rows, files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="on a processor, tiny, kernels interpreted")
    parser.add_argument("--only", default="", help="entries whose names hold this")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens of a sequence")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if not given.dry and not torch.cuda.is_available():
        raise SystemExit(
            "there is no CUDA device here: run with --dry to see that everything runs, or on a machine with a GPU."
        )
    device = torch.device("cpu" if given.dry else "cuda")
    shape, repeats = (TINY, 1) if given.dry else (Shape(), given.repeats)
    shape = replace(shape, lengths=tuple(given.lengths)) if given.lengths else shape
    name = "dry run on a processor" if given.dry else torch.cuda.get_device_name(device)
    date = datetime.date.today().isoformat()
    found: dict[str, Any] = {
        "device": name,
        "date": date,
        "torch": torch.__version__,
        "size": shape.size,
        "tokens": shape.tokens,
        "kind": "float32, which says nothing of speed" if given.dry else "bfloat16 autocast",
        "repeats": repeats,
        "parity": parity(device),
        "rows": [],
    }
    file = given.out / f"gpu-{name.lower().replace(' ', '-')}-{date}"
    for length in shape.lengths:
        for entry in (entry for entry in ENTRIES if given.only in entry.name):
            row = measured(entry, shape, length, device, repeats)
            row["ceiling"] = ceiling(device, 256 if given.dry else 8192, 3)
            found["rows"].append(row)
            print(row, flush=True)
            file.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
            file.with_suffix(".md").write_text(markdown(found), "utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
