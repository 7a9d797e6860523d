"""A process that is killed, at no particular moment, goes on to the curve of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from nestling.train import TrainConfig, train
from tests.house.sources import ROOT
from tests.train.test_loop import assert_same_run
from tests.train.tiny import config

# The process kills itself: a thread does, some milliseconds after the step, whatever the loop does then. The loop cannot
# escape by being fast: a few steps on it waits for its end.
CHILD = """
import json, os, signal, sys, threading, time
import torch
from nestling.train import TrainConfig, Trained, train

config, step, delay, threads = json.load(sys.stdin)
torch.set_num_threads(threads)

def kill():
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)

killer = threading.Thread(target=kill)

def listen(event):
    if event.step == step and not killer.is_alive():
        killer.start()
    if isinstance(event, Trained) and event.step == step + 9:
        killer.join()

train(TrainConfig.from_json(config), [listen])
"""


def killed(asked: TrainConfig, step: int, delay: float) -> int:
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    given = json.dumps([asked.to_json(), step, delay, torch.get_num_threads()])
    command = [sys.executable, "-c", CHILD]
    return subprocess.run(
        command, input=given, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False
    ).returncode


def test_kill_9_leaves_no_mark_on_the_curve(tmp_path: Path) -> None:
    whole = config(tmp_path, recipe="hope", steps=40, out=str(tmp_path / "whole"))
    train(whole)
    broken = replace(whole, out=str(tmp_path / "broken"))
    for step in (0, 6, 19):
        assert killed(broken, step, delay=random.SystemRandom().uniform(0.0, 0.05)) == -signal.SIGKILL
    assert train(broken).step == 40
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
