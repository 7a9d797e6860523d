"""What goes through ``torch.compile``: one graph for each layout, and room for as many layouts as a model meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LAYOUTS = 64
"""Programs for one memory: with and without gradients, first and later blocks, each size of a batch, padded blocks."""


def compiled(work: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``work`` as one compiled graph, counted apart from others whose ``work`` is the same function. ``options``: torch.compile's.

    >>> compiled(lambda x: x + 1)  # doctest: +ELLIPSIS
    <function ...>
    """
    # torch's overloads do not know the last two.
    run: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]
        work, fullgraph=True, dynamic=False, isolate_recompiles=True, recompile_limit=LAYOUTS, **options
    )
    return run
