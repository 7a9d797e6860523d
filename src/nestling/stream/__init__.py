"""Streams: a session reads, learns, writes, and can be forked and saved; its memory is constant in what it has read."""

from nestling.stream.program import Program
from nestling.stream.reading import Moment, Reading, Surprisal, advance, begin
from nestling.stream.sampler import Sampler
from nestling.stream.session import Session

__all__ = ["Session", "Program", "Sampler", "Reading", "Surprisal", "Moment", "advance", "begin"]
