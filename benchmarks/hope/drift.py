"""Does a self-modifying memory outlast its training length? Train on short rows, then read one long stream with it on and off.

    python -m benchmarks.hope.drift --form "SelfForm(memory=Matrix(), projections=Matrix(), retention=Delta())" --seed 1

Prints one JSON object: bits per byte by position in the stream, with the memory on and with its writes shut off.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.hope.training import as_bytes, fit, read
from nestling.core import parse, values
from nestling.models import LM, Config
from nestling.nn import Block, Exactly, SelfForm, SelfModifying, SelfRange, SwiGLU, UpTo

TRAINING = ("asyncio", "unittest", "json", "http", "logging", "multiprocessing", "importlib", "urllib", "html")
HELD_OUT, SKIP, LENGTH = "email", 20_000, 2**15
RATE, PIECE = 3e-3, 2048
EDGES = (0, 256, 1024, 4096, 2**14, 2**15)
NAMES = {**values(), **{each.__name__: each for each in (SelfForm, SelfRange, Exactly, UpTo)}}


def code(packages: tuple[str, ...]) -> Tensor:
    """The code of packages of the standard library, as bytes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [file for package in packages for file in sorted((library / package).glob("*.py"))]
    return as_bytes(b"".join(file.read_bytes() for file in files))


def trained(form: SelfForm, ranges: SelfRange, seed: int, steps: int, rows: int, length: int) -> tuple[LM, float]:
    """Two blocks of width 64, and bits per byte over the last steps of training."""
    torch.manual_seed(seed)
    blocks = [Block(64, SelfModifying(64, 2, form=form, ranges=ranges), SwiGLU(64, 2)) for _ in range(2)]
    model, corpus = LM(Config("drift", "small", 256, 64, 2, 2), blocks), code(TRAINING)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        starts = torch.randint(0, len(corpus) - length - 1, (rows,), generator=generator).tolist()
        return torch.stack([corpus[start : start + length + 1] for start in starts])

    losses = fit(model, draw, steps, RATE, floor=0.0)
    return model, sum(losses[-30:]) / len(losses[-30:])


def streamed(model: LM, stream: Tensor) -> list[float]:
    """Bits per byte between the edges, of one stream."""
    return [round(each, 3) for each in read(model, stream[None], EDGES, PIECE)[0]]


def main() -> None:
    """Train, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", default="SelfForm()")
    parser.add_argument("--ranges", default="SelfRange()")
    for name, default in (("seed", 0), ("steps", 250), ("rows", 4), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    form, ranges = parse(given.form, NAMES), parse(given.ranges, NAMES)
    model, last = trained(form, ranges, given.seed, given.steps, given.rows, given.length)
    stream = code((HELD_OUT,))[SKIP : SKIP + LENGTH + 1]
    answer = {"on": streamed(model, stream), "off": streamed(model.frozen(), stream), "training": round(last, 3)}
    print(json.dumps({**vars(given), "seconds": round(time.process_time() - started), **answer}, ensure_ascii=False))


if __name__ == "__main__":
    main()
