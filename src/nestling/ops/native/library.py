"""The C program, compiled for this processor at its first use and kept for the next."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

from nestling.atomic import replacing
from nestling.errors import NestlingError
from nestling.ops.periods import LONGEST

DEEPEST = 8
"""Weights of a chain, at most"""

REALS = {torch.float32: "float", torch.float64: "double"}

FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fPIC", "-shared"),
    # Sums in any order; what is not a number stays so. Not -ffast-math, which would make other programs of the process flush small numbers.
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
    *(f"-DDEEPEST={DEEPEST}", f"-DLONGEST={LONGEST}"),
)


class Chain(ctypes.Structure):
    """See ``chain.h``."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("queries", "keys", "depth")),
        ("widths", ctypes.c_long * (DEEPEST + 1)),
        *((name, ctypes.c_long) for name in ("activation", "residual", "normed")),
        ("eps", ctypes.c_double),
    )


class Weight(ctypes.Structure):
    """See ``periods.c``."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("weight", "trace", "after", "moved", "anchor", "kept", "kept_trace"),
            *("start", "writes", "blend", "carry", "carried", "by", "by_trace", "by_anchor"),
            *("by_start", "by_writes", "by_blend", "by_carry", "by_carried"),
        )
    )


class Job(ctypes.Structure):
    """See ``periods.c``."""

    _fields_ = (
        ("chain", Chain),
        *((name, ctypes.c_long) for name in ("memories", "periods", "stride")),
        *((name, ctypes.c_void_p) for name in ("inputs", "values", "y", "records", "by_y", "by_inputs", "by_values")),
        ("weights", Weight * DEEPEST),
    )


@lru_cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The program for numbers of a ``dtype``.

    Raises:
        NestlingError: there is no C compiler, or it fails; or what it makes can be kept nowhere.
    """
    try:
        found = ctypes.CDLL(str(_compiled(REALS[dtype])))
    except OSError as error:
        raise NestlingError(
            f"the program of Chunk(native=True) cannot be kept or loaded ({error}): name a folder that can be written to, and "
            "from which programs run, by the environment variable XDG_CACHE_HOME."
        ) from error
    job = ctypes.POINTER(Job)
    for name, arguments in {
        "lanes": (),
        "job_size": (),
        "record_size": (job,),
        "scratch_size": (job, ctypes.c_long),
    }.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, ctypes.c_long
    for function in (found.forward, found.backward):
        function.argtypes, function.restype = (job, ctypes.c_long, ctypes.c_long, ctypes.c_void_p), None
    return found


def compiler() -> str | None:
    """The C compiler's command: what the environment variable CC says, or one that is there."""
    return os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def _compiled(real: str) -> Path:
    """Where the program for ``real`` numbers is; it is compiled if it is not there."""
    sources = sorted(Path(__file__).parent.glob("*.[ch]"))
    found = compiler()
    if found is None:
        raise NestlingError(
            "Chunk(native=True) compiles a C program, and no C compiler was found: install gcc or clang, or name one by "
            "the environment variable CC; or leave native=True away, which gives the same answers."
        )
    told = "\0".join((*(source.read_text() for source in sources), *FLAGS, real, found, _processor()))
    name = f"periods-{real}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nestling" / name
    if not path.exists():
        with replacing(path) as temporary:
            source = Path(__file__).parent / "periods.c"
            command = [*found.split(), *FLAGS, f"-DREAL={real}", str(source), "-o", str(temporary), "-lm"]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise NestlingError(
                    f"{' '.join(command)} failed, so Chunk(native=True) cannot be had here; without it answers are the "
                    f"same.\n{ran.stderr.strip()}"
                )
    return path


def _processor() -> str:
    """What a program that is compiled for this processor may not be run without."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"
