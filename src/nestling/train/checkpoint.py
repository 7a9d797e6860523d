"""Checkpoints: a folder that appears whole or not at all, from which a run goes on bit for bit.

``run/step_00001234/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``random.safetensors``,
``tokenizer.json`` and ``manifest.json``. It is written under a hidden name and renamed when every byte is on the disk.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nestling import tree
from nestling.atomic import flush
from nestling.data import Tokenizer, load_tokenizer
from nestling.errors import NestlingError
from nestling.models import LM
from nestling.recipes import from_spec
from nestling.train.config import difference
from nestling.train.manifest import File, Manifest, complete, folder_name, older, step_of

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
RANDOM = "random.safetensors"
TOKENIZER = "tokenizer.json"

_HIDDEN = ".step_"  # what is being written or removed


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a run needs to go on, apart from its data: the live objects, and what they are."""

    model: LM
    """The model whose weights are trained."""
    optimizer: torch.optim.Optimizer
    """The optimizer over the model's parameters."""
    tokenizer: Tokenizer
    """The tokenizer of the run."""
    config: dict[str, Any]
    """The run's configuration, as JSON values."""
    data: str
    """Hash of the training text and the tokenizer."""

    def save(self, run: str | Path, step: int) -> Path:
        """Write ``run/step_…`` atomically: at a crash there is the whole checkpoint or none.

        Raises:
            NestlingError: the folder cannot be written.
        """
        run = Path(run)
        final = run / folder_name(step)
        try:
            run.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=run, prefix=f"{_HIDDEN}{step:08d}."))
            try:
                self._write(temporary, step)
                temporary.chmod(run.stat().st_mode & 0o777)  # mkdtemp lets nobody else read
                _remove(final)  # a folder without a manifest, or the run would have gone on from it
                temporary.rename(final)
                flush(run)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            raise NestlingError(
                f"cannot write the checkpoint {final} ({error}): free space, or choose another folder."
            ) from error
        return final

    def load(self, folder: str | Path) -> int:
        """Restore weights, optimizer and random state in place from a checkpoint, and return its step.

        Raises:
            NestlingError: the checkpoint is damaged, or of another model, tokenizer or data.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        _check_model(folder, manifest, self.model)
        if manifest.tokenizer != self.tokenizer.fingerprint:
            raise NestlingError(f"{folder} was made with another tokenizer: use its {TOKENIZER}.")
        if manifest.data != self.data:
            raise NestlingError(
                f"{folder} was made with other training text: give the same files, unchanged, "
                "or train anew in another folder."
            )
        manifest.verify(folder)
        _restore_weights(folder, self.model)
        _restore_optimizer(folder, self.model, self.optimizer)
        _restore_random(folder)
        return manifest.step

    def _write(self, folder: Path, step: int) -> None:
        tree.save(folder / MODEL, weights(self.model))
        kind = type(self.optimizer).__name__
        tree.save(folder / OPTIMIZER, optimizer_state(self.model, self.optimizer), {"optimizer": kind})
        tree.save(folder / RANDOM, random_state())
        self.tokenizer.save(folder / TOKENIZER)
        names = (MODEL, OPTIMIZER, RANDOM, TOKENIZER)
        Manifest(
            step=step,
            model=self.model.spec,
            fingerprint=self.model.fingerprint,
            config=self.config,
            tokenizer=self.tokenizer.fingerprint,
            data=self.data,
            versions=versions(),
            files={name: File.of(folder / name) for name in names},
        ).write(folder)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[LM, Tokenizer, Manifest]:
    """The trained model of a run's folder (its newest checkpoint) or of a checkpoint's folder, with its tokenizer.

    Raises:
        NestlingError: there is no checkpoint, or it is damaged.
    """
    folder = find(path)
    manifest = Manifest.read(folder)
    manifest.verify(folder)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and then replaced
        model = from_spec(manifest.model)
    _check_model(folder, manifest, model)
    _restore_weights(folder, model)
    return model.to(device).eval(), load_tokenizer(folder / TOKENIZER), manifest


def find(path: str | Path) -> Path:
    """The checkpoint that ``path`` means: itself, or the newest complete one of a run's folder.

    Raises:
        NestlingError: there is none.
    """
    path = Path(path)
    if step_of(path) is not None and path.is_dir():
        return path
    if found := latest(path):
        return found
    missing = "no such folder" if not path.is_dir() else "no checkpoint in"
    raise NestlingError(f"{missing}: {path}. Pass the folder of a run, or one of its step_* folders.")


def latest(run: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = complete(Path(run))
    return found[-1] if found else None


def prune(run: str | Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints; each disappears at once, so that none is left half removed."""
    for folder in complete(Path(run))[:-keep]:
        _remove(folder)


def sweep(run: str | Path) -> None:
    """Remove what a killed process left half written or half removed."""
    for folder in Path(run).glob(f"{_HIDDEN}*"):
        shutil.rmtree(folder, ignore_errors=True)


def weights(model: LM) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor that is used under two names is kept under the first."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def optimizer_state(model: LM, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as ``parameter name:quantity``, such as ``head.weight:exp_avg``."""
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {order[number]: kept for number, kept in optimizer.state_dict()["state"].items()}
    return {
        f"{name}:{quantity}": tensor
        for name, parameter in model.named_parameters()
        if parameter in state
        for quantity, tensor in state[parameter].items()
    }


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators: the CPU's, and each GPU's when there is one."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda.{index}": state for index, state in enumerate(gpus)}}


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    try:
        own = version("nestling")
    except PackageNotFoundError:
        own = "unknown"
    return {"nestling": own, "python": platform.python_version(), "torch": torch.__version__}


def _check_model(folder: Path, manifest: Manifest, model: LM) -> None:
    if manifest.fingerprint == model.fingerprint:
        return
    with torch.device("meta"):
        saved = from_spec(manifest.model).config
    match difference(vars(saved), vars(model.config)):
        case (name, there, here):
            reason = f"first difference: {name} is {there!r} there and {here!r} here"
        case None:
            reason = _first_weight(folder, model)
    raise NestlingError(
        f"{folder} is the state of another model; {reason}. Load it with load_model, or build the same model."
    )


def _first_weight(folder: Path, model: LM) -> str:
    """Equal settings but other weights: the recipe has changed since the checkpoint was written."""
    try:
        tree.load(folder / MODEL, weights(model))
    except NestlingError as error:
        return str(error).rstrip(".")
    return "its parameters have other names or types"


def _restore_weights(folder: Path, model: LM) -> None:
    ours = weights(model)
    saved, _ = tree.load(folder / MODEL, ours)
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(saved[name])


def _restore_optimizer(folder: Path, model: LM, optimizer: torch.optim.Optimizer) -> None:
    kind, ours = tree.read_metadata(folder / OPTIMIZER).get("optimizer"), type(optimizer).__name__
    if kind != ours:
        raise NestlingError(f"{folder} was made with the optimizer {kind}, not {ours}: use {kind} to go on from it.")
    saved = load_file(folder / OPTIMIZER)
    named = dict(model.named_parameters())
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        name, _, quantity = key.rpartition(":")
        if name not in named:
            raise NestlingError(f"{folder / OPTIMIZER} is of another model: it has {key}.{older(folder)}")
        # Copied, so that it lies in memory as what it was saved from: see ``tree.load``.
        state.setdefault(named[name], {})[quantity] = tensor.clone()
    content = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    content["state"] = {index: state[parameter] for index, parameter in enumerate(order) if parameter in state}
    optimizer.load_state_dict(content)


def _restore_random(folder: Path) -> None:
    saved = load_file(folder / RANDOM)
    torch.set_rng_state(saved["cpu"])
    for index in range(torch.cuda.device_count()):
        if (name := f"cuda.{index}") in saved:
            torch.cuda.set_rng_state(saved[name], index)


def _remove(folder: Path) -> None:
    """Rename to a hidden name first: a folder that still has its name is whole."""
    if folder.exists():
        hidden = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{_HIDDEN}removed."))
        folder.rename(hidden / folder.name)
        shutil.rmtree(hidden, ignore_errors=True)
