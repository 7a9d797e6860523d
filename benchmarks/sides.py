"""Sides of a comparison, each in a process of its own, perhaps of another environment."""

from __future__ import annotations

import json
import subprocess
from typing import Any


def told(python: str, script: str, *arguments: str) -> Any:
    """What ``script`` says in its last line, as JSON, where the interpreter ``python`` runs it; its own folder is not in its path.

    Raises:
        SystemExit: it failed; with the end of what it complained of.
    """
    command = [python, "-P", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
