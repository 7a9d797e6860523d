"""Training: one loop, checkpoints from which it goes on bit for bit, and a log of what happened.

``TrainConfig`` → ``train`` → ``TrainResult``; ``dry_run`` tries a configuration and writes nothing; ``load_model`` opens
what a run has trained.
"""

from nestling.train.checkpoint import Checkpoint, find, latest, load_model
from nestling.train.config import Intervals, OptimizerConfig, TrainConfig
from nestling.train.dry_run import DryRun, dry_run
from nestling.train.log import Ended, Evaluated, Event, Listener, Saved, Started, Trained, read
from nestling.train.loop import TrainResult, train
from nestling.train.manifest import Manifest
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
