"""``nestling eval``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nestling.cli.options import EvalOptions
from nestling.cli.parser import Parser

if TYPE_CHECKING:
    from nestling.eval import Score


def run(arguments: Sequence[str]) -> int:
    """Print perplexity and bits per byte; see ``nestling eval --help``."""
    parser = Parser(
        "eval", "RUN [PATH ...] [options]", "How well a trained model predicts text, by position in the stream."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("checkpoint", help="the folder of a run or of a checkpoint")
    parser.add_argument(
        "paths",
        nargs="*",
        default=[],
        help="text files and folders; none: the held-out part of Python's standard library",
    )
    parser.add_class_arguments(EvalOptions, skip={"checkpoint", "paths"})
    values = parser.read(arguments)
    options = parser.build(EvalOptions, values)
    found = _scored(options)
    print(json.dumps(_as_json(options, found), indent=2) if values.json else _table(found))
    return 0


def _scored(options: EvalOptions) -> dict[str, Score]:
    """The score for each state of the memory, on and off."""
    from nestling.data import corpus
    from nestling.eval import Carried, Fresh, score
    from nestling.train import load_model
    from nestling.train.device import choose_device

    documents = corpus.read(options.paths) if options.paths else corpus.stdlib("valid")
    model, tokenizer, _ = load_model(options.checkpoint, choose_device(options.device))
    policy = Carried() if options.state == "carried" else Fresh()
    asked = ("on", "off") if options.memory == "both" else (options.memory,)
    return {
        memory: score(model if memory == "on" else model.frozen(), documents, tokenizer, policy) for memory in asked
    }


def _as_json(options: EvalOptions, found: dict[str, Score]) -> dict[str, Any]:
    from nestling.eval import log_edges

    return {
        "checkpoint": options.checkpoint,
        "state": options.state,
        "memory": {
            memory: {
                "tokens": score.total.tokens,
                "bytes": score.total.bytes,
                "perplexity": score.perplexity,
                "bits_per_byte": score.bits_per_byte,
                "positions": [
                    {"from": bucket.low, "to": bucket.high, "bits_per_byte": bucket.bits_per_byte}
                    for bucket in score.by_position(log_edges(score.length))
                ],
            }
            for memory, score in found.items()
        },
    }


def _table(found: dict[str, Score]) -> str:
    from nestling.eval import log_edges

    scores = list(found.values())
    total = scores[0].total
    lines = [f"{total.tokens:,} tokens, {total.bytes:,} bytes", ""]
    lines += [f"{'':<22}" + "".join(f"{f'memory {memory}':>14}" for memory in found)]
    for name, figures in (
        ("perplexity", [score.perplexity for score in scores]),
        ("bits per byte", [score.bits_per_byte for score in scores]),
    ):
        lines.append(f"{name:<22}" + "".join(f"{figure:>14.3f}" for figure in figures))
    lines += ["", "bits per byte by position in the stream (tokens)"]
    columns = [score.by_position(log_edges(score.length)) for score in scores]
    for row in zip(*columns, strict=True):
        low, last = row[0].low, row[0].high - 1
        place = f"{low:,} to {last:,}" if low < last else f"{low:,}"
        lines.append(f"{place:<22}" + "".join(f"{bucket.bits_per_byte:>14.3f}" for bucket in row))
    return "\n".join(lines)
