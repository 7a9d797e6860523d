"""Launching kernels: where they can run at all, and the tiles that they work in."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

from nestling.errors import NestlingError

LEAST = math.exp(-30.0)
"""A gate of zero is taken as this, as in ``ops.coefficients``."""
LONGEST = 64
"""Tokens of a chunk, at most: a program holds a table of each with each."""
WIDEST = 128
"""Numbers of a key, at most: a program holds the keys of a chunk."""
MOST = 65_535
"""Memories, at most: a launch has no more programs side by side in its second and third dimension."""


def check(device: torch.device) -> None:
    """Can kernels run on ``device``? On a GPU, or anywhere under Triton's interpreter (``TRITON_INTERPRET=1``), which is slow.

    Raises:
        NestlingError: Triton is missing, or the device is no GPU.
    """
    if find_spec("triton") is None:
        raise NestlingError("kernels need the package triton, which is not installed: use path='auto'.")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise NestlingError(
            f"kernels need a CUDA device, got {device.type!r}: use path='auto', or TRITON_INTERPRET=1 to run them slowly anywhere."
        )


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """The device of ``tensor`` as the one that kernels are launched on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def tile_of(width: int) -> int:
    """The power of two, at least 16, that holds ``width`` numbers: products of smaller tiles do not exist.

    >>> tile_of(5), tile_of(48), tile_of(64)
    (16, 64, 64)
    """
    return max(16, 1 << (width - 1).bit_length())
