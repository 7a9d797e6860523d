"""Does a continuum memory system learn what it reads? A document is read twice, at several rates of its levels.

    python -m benchmarks.hope.in_context --seconds 150 --out benchmarks/results/hope-in-context.json

Trains a small ``hope_attention`` on the source of Python's standard library, then reads held-out documents of 4 KB, each by a
session of its own: first read, second read, and another text afterwards (which says what learning has cost).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

import nestling as nl
from nestling.data import corpus
from nestling.train import OptimizerConfig, TrainConfig
from nestling.train.run import Run

RATES = (0.0, 0.03, 0.1, 0.3)
LEVELS = (nl.Level("fast", 64, owns="*.chain.0.*"), nl.Level("slow", 256, owns="*.chain.1.*"))
SIZES = {
    "small": {"dim": 128, "layers": 2, "heads": 4, "window": 256},
    "smallest": {"dim": 64, "layers": 2, "heads": 2, "window": 256},
}


def trained(seconds: float, seed: int, size: str) -> tuple[nl.LM, dict[str, float]]:
    config = TrainConfig(
        recipe="hope_attention",
        changes=SIZES[size],
        steps=400,
        batch=4,
        length=256,
        seed=seed,
        precision="float32",
        optimizer=OptimizerConfig(lr=3e-3),
        eval_batches=2,
        console="quiet",
    )
    run = Run.build(config)
    begun, step, bits = time.process_time(), 0, []
    while step < config.steps and time.process_time() - begun < seconds:
        step += 1
        bits.append(run.update(step).score.bits_per_byte)
    about = {
        "steps": step,
        "seconds": time.process_time() - begun,
        "bits per byte, last 20": statistics.mean(bits[-20:]),
    }
    return run.model.eval(), {**about, "parameters": run.parameters, "held out": run.evaluate().bits_per_byte}


def documents(count: int, length: int = 4096) -> list[str]:
    """The middle of held-out documents that are long enough: ASCII, so that a byte is a character."""
    long = [d.text for d in corpus.stdlib("valid") if len(d.text) > 2 * length and d.text.isascii()]
    return [text[len(text) // 2 :][:length] for text in long[:count]]


def read_twice(model: nl.LM, text: str, other: str, rate: float) -> dict[str, float]:
    learner = nl.InContext(model, LEVELS, lr=rate)
    session = nl.Session(learner, nl.data.ByteTokenizer(), piece=1024)
    first, second = session.learn(text).bits_per_byte, session.learn(text).bits_per_byte
    return {"first": first, "second": second, "other": session.learn(other).bits_per_byte}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150, help="processor time of the training")
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hope-in-context.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, about = trained(given.seconds, given.seed, given.size)
    print(about, flush=True)
    texts = documents(given.documents)
    rows = []
    for rate in RATES:
        begun = time.process_time()
        found = [read_twice(model, text, texts[(index + 1) % len(texts)], rate) for index, text in enumerate(texts)]
        row: dict[str, float] = {"rate": rate, "seconds": time.process_time() - begun}
        row |= {name: statistics.mean(each[name] for each in found) for name in ("first", "second", "other")}
        gains = [each["first"] - each["second"] for each in found]
        row |= {
            "gain": statistics.mean(gains),
            "± gain": statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan"),
        }
        rows.append({**row, "documents": found})
        print({name: round(value, 4) for name, value in row.items()}, flush=True)
    result = {
        "command": " ".join(["python -m benchmarks.hope.in_context", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, one thread, float32",
        "torch": torch.__version__,
        "seed": given.seed,
        "model": {"recipe": "hope_attention", **SIZES[given.size], **about},
        "levels": repr(LEVELS),
        "rates": rows,
    }
    given.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
