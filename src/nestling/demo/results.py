"""What a demonstration finds, as values: ``summary.json`` holds all of it, the page and the summary show it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A trained model."""

    recipe: str
    parameters: int
    shape: str
    """The configuration, as source."""
    folder: str
    """Of its run: checkpoints and log."""
    tokens: int
    """Tokens that it was trained on."""
    seconds: float
    """Time of its updates."""
    bits_per_byte: float
    """On held-out documents, each read from a fresh state."""
    curve: tuple[tuple[int, float], ...]
    """Bits per byte of the training batches against the tokens read so far."""


@dataclass(frozen=True)
class Reader:
    """One way of reading the unseen package."""

    name: str
    bits_per_byte: float
    windows: tuple[float, ...]
    """Bits per byte in equal parts of the stream, in order."""
    tokens_per_second: float
    state_bytes: int
    """Bytes that it carries from token to token, at the end as at the beginning."""


@dataclass(frozen=True)
class Difference:
    """Bits per byte that one reader spends less than another on the same stream, window by window.

    ``error`` is the standard error of the mean over the windows: it says how far the stream by itself scatters, and
    nothing about other seeds.
    """

    mean: float
    """Over all bytes."""
    error: float
    first: float
    """In the first quarter of the windows."""
    last: float
    """In the last quarter of the windows."""

    @classmethod
    def between(cls, more: Reader, less: Reader) -> Difference:
        """What the reader ``less`` saves against the reader ``more``.

        >>> slow, fast = Reader("a", 2.0, (2.0, 2.0), 1.0, 1), Reader("b", 1.8, (1.9, 1.7), 1.0, 1)
        >>> round(Difference.between(slow, fast).mean, 3)
        0.2
        """
        saved = [a - b for a, b in zip(more.windows, less.windows, strict=True)]
        count = len(saved)
        middle = sum(saved) / count
        spread = math.sqrt(sum((each - middle) ** 2 for each in saved) / max(count - 1, 1))
        quarter = max(count // 4, 1)
        ends = (sum(saved[:quarter]) / quarter, sum(saved[-quarter:]) / quarter)
        return cls(more.bits_per_byte - less.bits_per_byte, spread / math.sqrt(count), *ends)

    @property
    def sure(self) -> bool:
        """Whether the mean lies more than two standard errors from zero."""
        return abs(self.mean) > 2 * self.error


@dataclass(frozen=True)
class Stream:
    """The unseen package, read once by each reader."""

    package: str
    part: str
    """What of it was read, in words."""
    documents: int
    bytes: int
    tokens: int
    window_bytes: int
    """Bytes in a window, on average."""
    on: Reader
    off: Reader
    baseline: Reader
    memory: Difference
    """What the memory saves: on against off."""
    against_baseline: Difference
    """What the model with its memory on saves against the transformer."""


@dataclass(frozen=True)
class Sessions:
    """Whether a session is a value: saved and loaded, it goes on exactly; forked, it stays apart."""

    position: int
    """Tokens read before it was saved."""
    tokens: int
    """Tokens read afterwards, by each copy."""
    file_bytes: int
    reload_difference: float
    """Largest difference in nats between the session that went on and the one that was loaded, over all those tokens."""
    fork_difference: float
    """The same for a parent whose child read something else in between."""
    child_difference: float
    """How much the child's predictions differ after that: not zero, or the test would show nothing."""

    @property
    def exact(self) -> bool:
        """Whether both are exactly zero, and the child did learn something."""
        return self.reload_difference == 0 and self.fork_difference == 0 and self.child_difference > 0


@dataclass(frozen=True)
class Kept:
    """Bits per byte on documents of one kind: from a fresh state, and from the state after the unseen package."""

    kind: str
    documents: int
    bytes: int
    fresh: float
    after: float
    error: float
    """Standard error of the difference, over the documents."""

    @property
    def sure(self) -> bool:
        """Whether the difference is more than two standard errors."""
        return abs(self.after - self.fresh) > 2 * self.error


@dataclass(frozen=True)
class Results:
    """A whole demonstration."""

    command: str
    machine: dict[str, Any]
    plan: dict[str, Any]
    seed: int
    corpus: dict[str, str]
    memory: Contender
    baseline: Contender
    stream: Stream
    sessions: Sessions
    kept: tuple[Kept, ...]
    levels: tuple[dict[str, Any], ...]
    level_table: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)
