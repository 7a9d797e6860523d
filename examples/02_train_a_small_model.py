"""Train a small model on text, stop, go on, and open what was trained. On a text of your own: nestling train --data PATH."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import nestling as nl
from nestling.train import Intervals, OptimizerConfig, train


def main(folder: Path) -> None:
    config = nl.TrainConfig(
        recipe="titans_lmm",
        changes={"dim": 32, "layers": 1, "heads": 2},
        data=(__file__,),
        out=str(folder / "run"),
        steps=40,
        batch=4,
        length=64,
        optimizer=OptimizerConfig(lr=5e-3),
        every=Intervals(log=10, evaluate=20, checkpoint=20),
        console="plain",
        tensorboard=False,
    )
    result = train(config)
    print(f"step {result.step}, held-out bits per byte {result.evaluated.bits_per_byte:.2f}")

    # A run is a function of its configuration: the same one goes on where it stands, which here is at its end.
    print("again:", train(replace(config, console="quiet")).step, "steps, none of them new")

    model, tokenizer, _ = nl.load_model(config.out)
    print(nl.describe(model))
    session = nl.Session(model, tokenizer)
    print(repr(session.generate("import ", max_tokens=40, sampler=nl.Sampler(temperature=0.5))))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
