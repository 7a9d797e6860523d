"""``nestling generate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.cli.parser import Parser
from nestling.errors import NestlingError

if TYPE_CHECKING:
    from nestling.stream import Session


@dataclass(frozen=True)
class GenerateOptions:
    """What to say, and how to choose the words."""

    checkpoint: str
    """The folder of a run or of a checkpoint."""
    prompt: str = ""
    """The text to go on from; - reads it from standard input."""
    max_tokens: int = 256
    """Tokens to make."""
    temperature: float = 1.0
    """0 takes the likeliest token, 1 draws as trained."""
    top_k: int | None = None
    """Draw from this many of the likeliest tokens; none: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Of the draws: equal seeds, equal text."""
    session: str | None = None
    """Go on from a session in this file."""
    save_session: str | None = None
    """Write the session to this file afterwards: all that was read and said, to go on from."""
    device: str = "auto"
    """Where to compute: auto (a GPU when there is one), cpu, cuda, cuda:1."""


def run(arguments: Sequence[str]) -> int:
    """Print a continuation as it is made; see ``nestling generate --help``."""
    parser = Parser("generate", "RUN [options]", "Continue a text with a trained model.")
    parser.add_class_arguments(GenerateOptions, as_positional=True)
    options = parser.build(GenerateOptions, parser.read(arguments))

    from nestling.stream import Sampler  # torch

    sampler = Sampler(options.temperature, options.top_k, options.top_p, options.seed)
    session = _session(options)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt and session.position == 0:
        raise NestlingError("there is nothing to go on from: give --prompt TEXT, or --session FILE.")
    for text in session.stream(prompt, options.max_tokens, sampler):
        print(text, end="", flush=True)
    if sys.stdout.isatty():
        print()
    if options.save_session is not None:
        session.save(options.save_session)
    return 0


def _session(options: GenerateOptions) -> Session:
    from nestling.stream import Session
    from nestling.train import load_model
    from nestling.train.device import choose_device

    model, tokenizer, _ = load_model(options.checkpoint, choose_device(options.device))
    if options.session is None:
        return Session(model, tokenizer)
    return Session.load(model, Path(options.session), tokenizer)
