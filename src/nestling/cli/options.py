"""The options of commands, as values. Nothing here may import torch, not even for type checkers: help reads these types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


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
    compile: bool = False
    """Read each word by one compiled program: the first waits a minute or two for the compiler, the others take less time."""
    device: str = "auto"
    """Where to compute: auto (a GPU when there is one), cpu, cuda, cuda:1."""


@dataclass(frozen=True)
class EvalOptions:
    """What to read, and how."""

    checkpoint: str
    """The folder of a run or of a checkpoint."""
    paths: tuple[str, ...] = ()
    """Text files and folders; none: the held-out part of Python's standard library."""
    memory: Literal["on", "off", "both"] = "on"
    """Whether what is read is written to the model's memories; off reads with the memories as they were trained."""
    state: Literal["fresh", "carried"] = "fresh"
    """Whether each document is a stream of its own, or all are one stream."""
    device: str = "auto"
    """Where to compute: auto (a GPU when there is one), cpu, cuda, cuda:1."""


@dataclass(frozen=True)
class DescribeOptions:
    """What to describe."""

    target: str
    """A recipe, or the folder of a run or checkpoint."""
    size: str = "tiny"
    """The recipe's size."""
    vocab_size: int = 256
    """Tokens in the recipe's vocabulary."""
    changes: dict[str, int | float | str | bool] = field(default_factory=dict)
    """Changes to the recipe's configuration, such as ``{"layers": 2}``; a text is the source of a value."""
