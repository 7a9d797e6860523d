"""Training: one loop, checkpoints from which it goes on bit for bit, and a log of what happened.

``TrainConfig`` → ``train`` → ``TrainResult``; ``dry_run`` tries a configuration and writes nothing; ``load_model`` opens
what a run has trained.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestling.train.checkpoint import Checkpoint, find, latest, load_model
    from nestling.train.config import Intervals, OptimizerConfig, TrainConfig
    from nestling.train.log import Ended, Evaluated, Event, Listener, Saved, Started, Trained, read
    from nestling.train.loop import TrainResult, train
    from nestling.train.manifest import Manifest
    from nestling.train.rehearsal import DryRun, dry_run
    from nestling.train.step import Score

__all__ = [
    "TrainConfig",
    "OptimizerConfig",
    "Intervals",
    "train",
    "TrainResult",
    "dry_run",
    "DryRun",
    "load_model",
    "find",
    "latest",
    "Checkpoint",
    "Manifest",
    "Score",
    "read",
    "Event",
    "Listener",
    "Started",
    "Trained",
    "Evaluated",
    "Saved",
    "Ended",
]

# The configuration is read by a command line that answers before torch is loaded.
_HOMES = {
    **dict.fromkeys(("Checkpoint", "find", "latest", "load_model"), "checkpoint"),
    **dict.fromkeys(("Intervals", "OptimizerConfig", "TrainConfig"), "config"),
    **dict.fromkeys(("DryRun", "dry_run"), "rehearsal"),
    **dict.fromkeys(("Ended", "Evaluated", "Event", "Listener", "Saved", "Started", "Trained", "read"), "log"),
    **dict.fromkeys(("TrainResult", "train"), "loop"),
    "Manifest": "manifest",
    "Score": "step",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nestling.train' has no attribute {name!r}")
    value = vars(import_module(f"nestling.train.{_HOMES[name]}"))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
