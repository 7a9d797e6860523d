from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nestling import atomic
from nestling.data import ByteTokenizer
from nestling.errors import NestlingError
from nestling.models import LM
from nestling.recipes import build
from nestling.train import checkpoint
from nestling.train.checkpoint import Checkpoint, find, latest, load_model, prune, sweep
from nestling.train.config import OptimizerConfig, TrainConfig
from nestling.train.manifest import Manifest, complete
from nestling.train.optimizer import adamw

FILES = [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.RANDOM, checkpoint.TOKENIZER]


def begun(recipe: str = "titans_lmm", seed: int = 0, **changes: Any) -> Checkpoint:
    torch.manual_seed(seed)
    model = build(recipe, **{"dim": 16, "layers": 1, "heads": 2, **changes})
    optimizer = adamw(model.named_parameters(), OptimizerConfig(lr=0.01))
    return Checkpoint(model, optimizer, ByteTokenizer(), TrainConfig(recipe=recipe).to_json(), data="text")


def learn(live: Checkpoint, steps: int = 1) -> None:
    """Updates that depend on weights, optimizer and random state alike."""
    for _ in range(steps):
        live.optimizer.zero_grad()
        logits, _ = live.model(torch.randint(256, (2, 8)))
        logits.square().mean().backward()
        live.optimizer.step()


def content(live: Checkpoint) -> dict[str, torch.Tensor]:
    found = checkpoint.optimizer_state(live.model, live.optimizer)
    return {name: t.clone() for name, t in {**checkpoint.weights(live.model), **found}.items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize(("recipe", "changes"), [("titans_lmm", {}), ("hope", {}), ("transformer", {"tied": False})])
def test_what_is_loaded_goes_on_bit_for_bit(tmp_path: Path, recipe: str, changes: dict[str, Any]) -> None:
    live = begun(recipe, **changes)
    learn(live, 2)
    folder = live.save(tmp_path, 2)
    saved = content(live)
    learn(live, 3)

    other = begun(recipe, seed=1, **changes)
    learn(other, 1)
    assert other.load(folder) == 2
    assert_same(content(other), saved)
    learn(other, 3)
    assert_same(content(other), content(live))


def test_a_run_that_has_not_begun_can_be_saved(tmp_path: Path) -> None:
    folder = begun().save(tmp_path, 0)
    other = begun(seed=1)
    learn(other)
    assert other.load(folder) == 0
    assert checkpoint.optimizer_state(other.model, other.optimizer) == {}


def test_the_model_can_be_opened_alone(tmp_path: Path) -> None:
    live = begun()
    learn(live)
    live.save(tmp_path, 7)
    random = torch.get_rng_state()
    for path in (tmp_path, tmp_path / "step_00000007"):
        model, tokenizer, manifest = load_model(path)
        assert isinstance(model, LM)
        assert not model.training
        assert_same(checkpoint.weights(model), checkpoint.weights(live.model))
        assert tokenizer == ByteTokenizer()
        assert (manifest.step, manifest.model, manifest.data) == (7, live.model.spec, "text")
        assert manifest.versions["torch"] == torch.__version__
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_and_an_older_checkpoint_offered(tmp_path: Path, name: str) -> None:
    live = begun()
    old, new = live.save(tmp_path, 1), live.save(tmp_path, 2)
    os.truncate(new / name, (new / name).stat().st_size // 2)
    message = rf"step_00000002/{name} is truncated: [\d,]+ bytes, not [\d,]+\. Delete .* to go on from .*step_00000001"
    with pytest.raises(NestlingError, match=message):
        live.load(new)
    with pytest.raises(NestlingError, match=message):
        load_model(tmp_path)
    assert live.load(old) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_seen(tmp_path: Path, name: str) -> None:
    live = begun()
    folder = live.save(tmp_path, 1)
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(NestlingError, match=f"{name} is corrupt.*There is no older checkpoint"):
        live.load(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    live = begun()
    folder = live.save(tmp_path, 1)
    (folder / checkpoint.OPTIMIZER).unlink()
    with pytest.raises(NestlingError, match=r"optimizer.safetensors is missing: the checkpoint is not whole"):
        live.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: it is not whole JSON"),
        ("{}", "is no checkpoint's manifest"),
        ("[1]", "is no checkpoint's manifest"),
        ('{"format": "nestling.checkpoint", "version": 2}', "has version 2 of the format, this Nestling reads 1"),
        ('{"format": "nestling.checkpoint", "version": 1, "files": {}}', "is damaged: KeyError"),
        ('{"format": "nestling.checkpoint", "version": 1, "files": 3}', "is damaged: AttributeError"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    live = begun()
    folder = live.save(tmp_path, 1)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(NestlingError, match=message):
        live.load(folder)


def test_the_first_difference_to_another_model_is_named(tmp_path: Path) -> None:
    folder = begun().save(tmp_path, 1)
    with pytest.raises(NestlingError, match="another model; first difference: dim is 16 there and 32 here"):
        begun(dim=32).load(folder)
    with pytest.raises(NestlingError, match="another model; first difference: recipe is 'titans_lmm' there and 'hope'"):
        begun("hope").load(folder)


def test_a_recipe_that_has_changed_since_is_named_by_its_first_weight(tmp_path: Path) -> None:
    live = begun()
    folder = live.save(tmp_path, 1)
    live.model.extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(NestlingError, match=r"state of another model.*it has no extra"):
        live.load(folder)


def test_another_tokenizer_text_or_optimizer_is_refused(tmp_path: Path) -> None:
    live = begun()
    folder = live.save(tmp_path, 1)
    with pytest.raises(NestlingError, match="made with other training text"):
        replace(live, data="other text").load(folder)
    sgd = torch.optim.SGD(live.model.parameters(), lr=0.1)
    with pytest.raises(NestlingError, match="made with the optimizer AdamW, not SGD"):
        replace(live, optimizer=sgd).load(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "tokenizer": "another"}))
    with pytest.raises(NestlingError, match="made with another tokenizer"):
        live.load(folder)


@pytest.mark.parametrize("moment", ["weights", "manifest", "rename"])
def test_a_crash_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The process ends here, so nothing after the moment runs: no clean-up either."""
    live = begun()
    old = live.save(tmp_path, 1)

    def crash(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: None)
        match moment:
            case "weights":
                patch.setattr(checkpoint, "random_state", crash)
            case "manifest":
                patch.setattr(Manifest, "write", crash)
            case "rename":
                patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            live.save(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 2
    assert complete(tmp_path) == [old]
    assert latest(tmp_path) == old
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [old]
    assert live.load(old) == 1


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    live = begun()
    old = live.save(tmp_path, 1)
    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(NestlingError, match=r"cannot write the checkpoint .*No space left on device.*free space"):
        live.save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [old]


def test_saving_again_replaces_what_is_not_whole(tmp_path: Path) -> None:
    live = begun()
    folder = live.save(tmp_path, 1)
    (folder / "manifest.json").unlink()
    assert latest(tmp_path) is None
    assert live.save(tmp_path, 1) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert live.load(folder) == 1


def test_the_newest_are_kept(tmp_path: Path) -> None:
    live = begun()
    for step in (1, 20, 3, 100_000_000):
        live.save(tmp_path, step)
    assert latest(tmp_path) == tmp_path / "step_100000000"
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000020", "step_100000000"]


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NestlingError, match=r"no such folder: .*nowhere\. Pass the folder of a run"):
        find(tmp_path / "nowhere")
    with pytest.raises(NestlingError, match="no checkpoint in"):
        load_model(tmp_path)
    (tmp_path / "step_00000001").mkdir()
    with pytest.raises(NestlingError, match=r"is no whole checkpoint: cannot read .*manifest"):
        load_model(tmp_path / "step_00000001")
