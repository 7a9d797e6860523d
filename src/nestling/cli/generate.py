"""``nestling generate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.cli.options import GenerateOptions
from nestling.cli.parser import Parser
from nestling.errors import NestlingError

if TYPE_CHECKING:
    from nestling.stream import Session


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
    if options.compile and sys.stderr.isatty():
        print("compiling a program for one token, which takes a minute or two", file=sys.stderr)
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
        return Session(model, tokenizer, compiled=options.compile)
    return Session.load(model, Path(options.session), tokenizer, compiled=options.compile)
