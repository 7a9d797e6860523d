"""Training speed of Hope beside the package ``nested-learning``, at width 384, 6 blocks, bytes, in one run on one core.

    python -m benchmarks.hope.speed --peer-python PATH       PATH: the interpreter of an environment that has nested-learning 0.2.0

A step is forward, backward and AdamW on one row; the peer's steps are those of its own training loop, with its own presets, on its own
synthetic rows. Sides take turns, each time in a process of its own; the figure is the median over rounds. Before anything is timed, ours
shows that each of its memories is learnt through the writes: the gradient of every parameter is there, finite and not zero.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

WIDTH, BLOCKS, HEADS = 384, 6, 6
OURS: dict[str, dict[str, Any]] = {
    "hope": {"batch": 1, "length": 256},
    "hope, compiled": {"batch": 1, "length": 256, "compiled": True},
    "hope, 4 rows": {"batch": 4, "length": 256},
    "hope, 4 rows, compiled": {"batch": 4, "length": 256, "compiled": True},
    "hope, 2,048 tokens": {"batch": 1, "length": 2048},
    "hope, memories of two layers": {"batch": 1, "length": 256, "form": "deep"},
    "transformer": {"batch": 1, "length": 256, "recipe": "transformer"},
}
ONCE = ["train.online_updates=false", "train.online_boundary_targets=false", "train.online_carry_attention_cache=false"]
LOOSE = ["train.strict_streaming_contract=false", "train.fail_if_paper_faithful_disabled=false"]
PEER: dict[str, dict[str, Any]] = {
    "paper-faithful preset": {"length": 64, "overrides": []},
    "online, chunks of 64": {"length": 256, "overrides": ["train.online_chunk_size=64"]},
    "offline": {"length": 256, "overrides": [*ONCE, *LOOSE]},
}
"""Settings of ``pilot_selfmod_paper_faithful``; the first is it, the last the fastest with self-modifying memories"""


def ours(
    batch: int, length: int, steps: int, recipe: str = "hope", form: str = "", compiled: bool = False
) -> list[float]:
    """Seconds of processor time of each step after the first."""
    import torch
    import torch.nn.functional as F

    import nestling as nl
    from nestling.core import MLP, Residual
    from nestling.ops import Chunk

    torch.set_num_threads(1)
    torch.manual_seed(0)
    changes = {"form": nl.nn.SelfForm(memory=Residual(MLP()), projections=Residual(MLP()))} if form else {}
    model = nl.build(recipe, vocab_size=256, dim=WIDTH, layers=BLOCKS, heads=HEADS, **changes)
    model = model.using(Chunk(compiled=True)) if compiled else model
    optimizer, seconds = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for step in range(steps + 1):
        tokens = torch.randint(0, 256, (batch, length + 1))
        begun = time.process_time()
        loss = F.cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - begun)
        if step == 0:
            still = [
                n
                for n, p in model.named_parameters()
                if p.grad is None or not (p.grad.isfinite().all() and p.grad.any())
            ]
            if still:
                raise SystemExit(f"not learnt: {still}")
    return seconds[1:]


def peer(length: int, overrides: list[str], steps: int) -> list[float]:
    """The same of the package: the time from one batch of its training loop to the next. Runs in its environment."""
    import nested_learning
    import torch
    from hydra import compose, initialize_config_dir
    from nested_learning import training

    torch.set_num_threads(1)
    stamps, build = [], training.build_dataloader

    class Stamped:
        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def __iter__(self) -> Any:
            for batch in self.loader:
                stamps.append(time.process_time())
                yield batch

        def __len__(self) -> int:
            return len(self.loader)

    def stamped(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        loader, sampler = build(*args, **kwargs)
        return Stamped(loader), sampler

    training.build_dataloader = stamped
    size = {"vocab_size": 256, "dim": WIDTH, "num_layers": BLOCKS, "heads": HEADS}
    data = {
        "source": "synthetic",
        "+vocab_size": 256,
        "+dataset_size": 64,
        "seq_len": length,
        "batch_size": 1,
        "num_workers": 0,
    }
    quiet = {
        "device": "cpu",
        "checkpoint.enable": False,
        "mixed_precision.enabled": False,
        "log_interval": 1000,
        "steps": steps + 1,
    }
    settings = [
        f"{'+' if name[0] == '+' else ''}{group}.{name.removeprefix('+')}={str(value).lower()}"
        for group, part in (("model", size), ("data", data), ("train", quiet))
        for name, value in part.items()
    ]
    with initialize_config_dir(str(Path(nested_learning.__file__).parent / "configs"), version_base=None):
        config = compose(
            "pilot_selfmod_paper_faithful", [*settings, "optim.type=adamw", "logging.enabled=false", *overrides]
        )
    training.run_training_loop(config, device=torch.device("cpu"))
    stamps.append(time.process_time())
    return [after - before for before, after in pairwise(stamps[1:])]


def main() -> None:
    """Take turns, print and write a table; or, with ``--work``, be one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=json.loads, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        side = given.work.pop("side")
        print(json.dumps({"ours": ours, "peer": peer}[side](**given.work)))
        return
    import torch

    from benchmarks.shared import RESULTS, machine, table, write
    from benchmarks.sides import told

    torch.set_num_threads(1)

    sides = [(f"{name} (ours)", sys.executable, {"side": "ours", "steps": 3, **work}) for name, work in OURS.items()]
    if given.peer_python:
        sides += [
            (f"nested-learning, {name}", given.peer_python, {"side": "peer", "steps": 1, **work})
            for name, work in PEER.items()
        ]
    seconds: dict[str, list[float]] = {name: [] for name, *_ in sides}
    for number in range(given.rounds):
        for name, python, work in sides:
            seconds[name] += told(python, __file__, "--work", json.dumps(work))
            print(f"round {number + 1}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    speed = {name: work.get("batch", 1) * work["length"] / statistics.median(seconds[name]) for name, _, work in sides}
    rivals = [name for name in speed if name.startswith("nested-learning")]
    rows = []
    for name, _, work in sides:
        times = seconds[name]
        ratios = [f"{speed[name] / speed[rival]:.0f}" if name not in rivals else "" for rival in rivals]
        half = 50 * (max(times) - min(times)) / statistics.median(times)
        rows.append((name, work.get("batch", 1), f"{work['length']:,}", f"{speed[name]:,.1f}", f"{half:.0f}", *ratios))
    header = (
        "system",
        "rows",
        "tokens",
        "tokens/s",
        "± %",
        *(f"times {rival.removeprefix('nested-learning, ')}" for rival in rivals),
    )
    text = (
        f"# Hope beside nested-learning 0.2.0\n\n`python -m benchmarks.hope.speed --peer-python PATH` on a {machine()}, float32, width "
        f"{WIDTH}, {BLOCKS} blocks, {HEADS} heads, bytes. A training step with AdamW, "
        f"medians of rounds in turns ({given.rounds}), processor time.\n\n"
    )
    text += table(header, rows) + "\n"
    write("hope-speed", text)
    (RESULTS / "hope-speed.json").write_text(json.dumps(seconds, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
