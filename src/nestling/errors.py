"""Errors that a user can act on: one line that says what is wrong, what was given, and what to do."""

from __future__ import annotations


class NestlingError(ValueError):
    """A mistake in the input: the message says what, got, do. The command line prints it as one line and exits with 2.

    >>> raise NestlingError("chunk must be positive, got 0. Pass chunk=16.")
    Traceback (most recent call last):
    nestling.errors.NestlingError: chunk must be positive, got 0. Pass chunk=16.
    """
