"""The schedule of a continuum memory system in ``nestling train``: a fast FFN at every step, a slow one every k steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nestling.train import OptimizerConfig, train
from nestling.train.optimizer import adamw, learning_rate
from nestling.train.run import Run
from nestling.train.step import backward
from tests.train.tiny import MODEL, config, curve

CHANGES = {**MODEL, "wiring": "Nested(0.5)"}


@pytest.mark.equation("Nested Learning", 71)
def test_a_slow_ffn_moves_at_its_own_period(tmp_path: Path) -> None:
    """A literal loop: AdamW of its own for each period, on the sum of the clipped gradients since its last step (NL eq. 71)."""
    given = config(
        tmp_path,
        recipe="hope_attention",
        changes={**CHANGES, "levels": "(Level('fast', 1), Level('slow', 3))", "wiring": "InSequence()"},
    )
    run, mirror = Run.build(given), Run.build(given)
    slow = [(name, p) for name, p in mirror.model.named_parameters() if ".chain.1." in name]
    rest = [(name, p) for name, p in mirror.model.named_parameters() if ".chain.1." not in name]
    every, third = adamw(rest, given.optimizer), adamw(slow, given.optimizer)
    sums = [torch.zeros_like(p) for _, p in slow]
    for step in range(1, 8):
        run.update(step)
        batches = [mirror.source.train.batch(2 * (step - 1) + i) for i in range(2)]
        mirror.model.zero_grad()
        backward(mirror.model, batches)
        torch.nn.utils.clip_grad_norm_(mirror.model.parameters(), given.optimizer.clip)
        for optimizer in (every, third):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(given.optimizer, step, given.steps)
        every.step()
        sums = [a + p.grad for a, (_, p) in zip(sums, slow, strict=True)]
        if step % 3 == 0:
            for a, (_, p) in zip(sums, slow, strict=True):
                p.grad = a
            third.step()
            sums = [torch.zeros_like(a) for a in sums]
        for (name, a), b in zip(run.model.named_parameters(), mirror.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("name", ["adamw", "m3"])
def test_a_run_goes_on_inside_a_period_bit_for_bit(tmp_path: Path, name: str) -> None:
    """Nested levels with periods of 3 and 6, from a checkpoint at step 8."""
    chosen = OptimizerConfig(name=name, lr=1e-2, warmup=0.25)  # type: ignore[arg-type]
    levels = "(Level('fast', 1), Level('middle', 3), Level('slow', 6))"
    whole = config(
        tmp_path,
        recipe="hope_attention",
        changes={**CHANGES, "levels": levels},
        optimizer=chosen,
        steps=9,
        out=str(tmp_path / "whole"),
    )
    assert train(whole).exit_code == 0
    broken = replace(whole, out=str(tmp_path / "broken"))
    assert train(broken).exit_code == 0
    for newest in sorted((tmp_path / "broken").glob("step_*"))[-1:]:
        for file in newest.iterdir():
            file.unlink()
        newest.rmdir()
    assert train(broken).exit_code == 0  # from step 8
    assert curve(tmp_path / "broken")[-1] == curve(tmp_path / "whole")[-1]
    last = [max((tmp_path / run).glob("step_*")) for run in ("whole", "broken")]
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (last[0] / file).read_bytes() == (last[1] / file).read_bytes(), file
    state = (last[0] / "optimizer.safetensors").read_bytes()
    assert b"level_gathered" in state and b"level_initial" in state
