"""The demonstration from beginning to end: read it from top to bottom."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nestling.data import Document, corpus
from nestling.demo import page
from nestling.demo.ahead import ahead, cores
from nestling.demo.checks import Copies, excerpts, kept
from nestling.demo.config import FULL, QUICK, DemoConfig, Plan
from nestling.demo.console import Steps
from nestling.demo.contenders import Trainee, baseline_config, fit, memory_config
from nestling.demo.pace import fitted
from nestling.demo.reading import PIECE, Text, compare, feed, reader
from nestling.demo.results import Kept, Reader, Results, Sessions, Stream
from nestling.errors import NestlingError
from nestling.models import LM, describe
from nestling.nn import State
from nestling.stream import Session

_WORTH_A_PROCESS = 50
"""A process needs some seconds to begin; from so many steps on, training beside one another is faster."""


def demo(config: DemoConfig, plan: Plan = FULL) -> tuple[Results, Path]:
    """Train both models, let them read, check, ask, and write the report; returns what came out and the page.

    Raises:
        NestlingError: the folder cannot be written, or this Python carries no source to train on.
    """
    with _one_thread():
        return _demo(config, plan)


def machine() -> dict[str, Any]:
    """What the speeds depend on."""
    return {
        "processor": platform.processor() or platform.machine() or "unknown",
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Models this small gain little from a second thread and stall when another program takes its core.

    And so the figures do not depend on how many cores there are.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _demo(config: DemoConfig, plan: Plan) -> tuple[Results, Path]:
    begun, steps = time.perf_counter(), Steps(5)
    unseen, runs = corpus.stdlib("unseen"), Path(config.out) / "runs"
    if config.minutes is not None:
        plan = fitted(plan, config, sum(len(document.text) for document in unseen))
    memory, baseline = _trained(config, plan, runs, steps)
    if memory.tokenizer.fingerprint != baseline.tokenizer.fingerprint:
        raise NestlingError(f"the two runs below {runs} have different tokenizers: remove that folder and start again.")
    stream, sessions, state = _read_unseen(memory, baseline, unseen, plan, steps)
    steps.begin("ask what it still knows")
    after = _asked(memory, state, plan)
    system = describe(memory.model)
    results = Results(
        command=_command(config, plan),
        machine=machine(),
        plan={**asdict(plan), "tokens": plan.tokens},
        seed=config.seed,
        corpus={split: str(corpus.summary(corpus.stdlib(split))) for split in ("train", "valid", "unseen")},
        memory=memory.found,
        baseline=baseline.found,
        stream=stream,
        sessions=sessions,
        kept=after,
        levels=tuple(json.loads(system.json())["levels"]),
        level_table=str(system),
        seconds=time.perf_counter() - begun,
    )
    return results, page.write(Path(config.out), results)


def _trained(config: DemoConfig, plan: Plan, runs: Path, steps: Steps) -> tuple[Trainee, Trainee]:
    """Both models; the transformer in a process of its own where there are cores for it and enough to do."""
    ours, theirs = (make(config.recipe, plan, config.seed, runs) for make in (memory_config, baseline_config))
    beside = cores() > 1 and plan.steps >= _WORTH_A_PROCESS
    what = f"train {config.recipe} on {plan.tokens:,} tokens of the standard library's source"
    steps.begin(f"{what}, a transformer beside it" if beside else what)
    with ahead(theirs) if beside else nullcontext():
        memory = fit(ours)
    steps.begin(
        "a transformer of equal size, trained on the same tokens" if beside else "train a transformer of equal size"
    )
    return memory, fit(theirs)


def _read_unseen(
    memory: Trainee, baseline: Trainee, unseen: Sequence[Document], plan: Plan, steps: Steps
) -> tuple[Stream, Sessions, State]:
    """All three readings, what became of the copies of the first, and its state at the end."""
    text = Text.of(unseen, memory.tokenizer, plan.unseen)
    total, name = len(text.tokens), memory.found.recipe
    steps.begin(f"read the unseen package {text.package} once: {total:,} tokens")
    head = (total - plan.tail) | 1  # inside a period, the harder moment to save a session at
    session = Session(memory.model, memory.tokenizer, piece=PIECE)
    with steps.bar("memory on", total) as progress:
        early, spent = feed(session, text.tokens[:head], progress)
        copies = Copies.of(session, astray=text.tokens[:head].flip(0)[: plan.tail])
        late, more = feed(session, text.tokens[head:], progress)
    speed = total / (spent + more)
    on = reader(f"{name}, memory on", text, torch.cat((early, late)), speed, session.nbytes, plan.windows)

    def read(title: str, model: LM) -> Reader:
        own = Session(model, memory.tokenizer, piece=PIECE)
        with steps.bar(title, total) as progress:
            nats, seconds = feed(own, text.tokens, progress)
        return reader(title, text, nats, total / seconds, own.nbytes, plan.windows)

    off = read(f"{name}, memory off", memory.model.frozen())
    other = read("transformer", baseline.model)
    steps.begin(f"read the last {plan.tail:,} tokens again with a session from a file, a fork and its child")
    return compare(text, on, off, other), copies.compare(text.tokens[head:], late), session.state


def _asked(memory: Trainee, after: State, plan: Plan) -> tuple[Kept, ...]:
    kinds = {"training documents": corpus.stdlib("train"), "held-out documents": corpus.stdlib("valid")}
    return tuple(
        kept(kind, memory.model, memory.tokenizer, excerpts(documents, plan.probe, plan.probe_bytes), after)
        for kind, documents in kinds.items()
    )


def _command(config: DemoConfig, plan: Plan) -> str:
    parts = ["nestling demo", f"--recipe {config.recipe}", f"--seed {config.seed}"]
    if config.minutes is not None:
        parts.append(f"--minutes {config.minutes:g}")
    return " ".join([*parts, "--quick"] if plan == QUICK else parts)
