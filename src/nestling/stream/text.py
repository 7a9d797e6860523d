"""Text that comes in pieces: where a stop string ends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nestling.errors import NestlingError


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    r"""The text of ``pieces`` up to the first of ``stops``, which is left out, wherever the cuts between pieces fall.

    Nothing is taken from ``pieces`` after a stop. What may be the beginning of a stop is held back until that is known.

    >>> list(until(["Hello\n", "\nYou: "], ["\n\n", "You:"]))
    ['Hello']
    """
    held = ""
    for piece in pieces:
        held += piece
        # The stop that is complete first, and of those the longest: where pieces are cut must not matter.
        found = [(held.index(stop) + len(stop), held.index(stop)) for stop in stops if stop in held]
        if found:
            held = held[: min(found)[1]]
            break
        begun = max((size for stop in stops for size in range(1, len(stop)) if held.endswith(stop[:size])), default=0)
        sure, held = held[: len(held) - begun], held[len(held) - begun :]
        if sure:
            yield sure
    if held:
        yield held


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string or several, checked."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stops:
        raise NestlingError("a stop string must not be empty, got ''. Leave it out, or pass the text to stop at.")
    return stops
