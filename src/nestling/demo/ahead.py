"""A training in a process of its own, beside this one: a machine has more cores than a model this small can use.

``python -m nestling.demo.ahead CONFIG`` trains by a configuration given as JSON, in silence, until its standard input ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch

from nestling.train import TrainConfig, train


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def ahead(config: TrainConfig) -> Iterator[None]:
    """Train by ``config`` while the body runs, and to the end of that training; a body that fails stops it, saved.

    Only a head start: whatever becomes of that process, ``train`` by the same configuration goes on where it has come to, and
    says what is wrong if something is.
    """
    command = [sys.executable, "-m", "nestling.demo.ahead", json.dumps(config.to_json())]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing)
    try:
        yield
        process.wait()
    finally:
        # The end of its input stops it, and so does the end of this process, however it comes.
        process.communicate()


def main(text: str) -> int:
    """Train by the configuration in ``text``; the end of standard input saves and stops."""

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    torch.set_num_threads(1)
    threading.Thread(target=watch, daemon=True).start()
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        return train(TrainConfig.from_json(json.loads(text))).exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
