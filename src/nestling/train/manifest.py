"""The manifest of a checkpoint: what it holds, of which model, and the hash of every file, written last."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nestling.atomic import write_text
from nestling.errors import NestlingError

NAME = "manifest.json"
_FORMAT = "nestling.checkpoint"
_VERSION = 1
_FOLDER = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class File:
    """A file of a checkpoint: its size in bytes and the SHA-256 of its content."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        """Measure a file."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of. ``step`` is the number of updates made, and so the position in the data, too."""

    step: int
    """Updates made."""
    model: dict[str, Any]
    """The model's ``spec``: what ``from_spec`` builds it from."""
    fingerprint: str
    """The model's fingerprint."""
    config: dict[str, Any]
    """The run's configuration, as JSON values."""
    tokenizer: str
    """The tokenizer's fingerprint."""
    data: str
    """Hash of the training text and the tokenizer."""
    versions: dict[str, str]
    """Of Python, torch and Nestling, when it was written."""
    files: dict[str, File]
    """Every other file of the folder."""

    def write(self, folder: Path) -> None:
        """Write the manifest, which makes the checkpoint complete."""
        files = {name: vars(file) for name, file in self.files.items()}
        content = {"format": _FORMAT, "version": _VERSION, **vars(self), "files": files}
        write_text(folder / NAME, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a checkpoint folder.

        Raises:
            NestlingError: there is none, or it is damaged, or from another version of the format.
        """
        path = folder / NAME
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise NestlingError(f"{folder} is no whole checkpoint: cannot read {path} ({error.strerror}).") from error
        except ValueError as error:
            raise NestlingError(f"{path} is damaged: it is not whole JSON ({error}).{older(folder)}") from error
        match content:
            case {"format": "nestling.checkpoint", "version": 1}:
                return cls._parse(content, path)
            case {"format": "nestling.checkpoint", "version": version}:
                raise NestlingError(
                    f"{path} has version {version!r} of the format, this Nestling reads {_VERSION}: update nestling."
                )
            case _:
                raise NestlingError(f"{path} is no checkpoint's manifest: pass a run's folder or one of its step_*.")

    @classmethod
    def _parse(cls, content: dict[str, Any], path: Path) -> Manifest:
        try:
            files = {name: File(**values) for name, values in content["files"].items()}
            values = {field.name: content[field.name] for field in fields(cls)}
        except (KeyError, TypeError, AttributeError) as error:
            raise NestlingError(f"{path} is damaged: {error!r}.{older(path.parent)}") from error
        return cls(**{**values, "files": files})

    def verify(self, folder: Path) -> None:
        """Check that every file is there, whole and unchanged.

        Raises:
            NestlingError: a file is missing, truncated or corrupt; it is named, with an older checkpoint to use.
        """
        for name, wanted in self.files.items():
            path = folder / name
            if not path.is_file():
                raise NestlingError(f"{path} is missing: the checkpoint is not whole.{older(folder)}")
            size = path.stat().st_size
            if size != wanted.bytes:
                kind = "truncated" if size < wanted.bytes else "corrupt"
                raise NestlingError(f"{path} is {kind}: {size:,} bytes, not {wanted.bytes:,}.{older(folder)}")
            if File.of(path) != wanted:
                raise NestlingError(f"{path} is corrupt: its content does not match its hash.{older(folder)}")


def folder_name(step: int) -> str:
    """The name of a checkpoint's folder.

    >>> folder_name(1234)
    'step_00001234'
    """
    return f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint's folder by its name, or None when it is not named like one."""
    match = _FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def complete(run: Path) -> list[Path]:
    """The checkpoints of a run's folder that have a manifest, oldest first."""
    if not run.is_dir():
        return []
    found = [(step, path) for path in run.iterdir() if (step := step_of(path)) is not None and (path / NAME).is_file()]
    return [path for _, path in sorted(found)]


def older(folder: Path) -> str:
    """Advice for a bad checkpoint: the newest complete one that is older, as a sentence that begins with a space."""
    step = step_of(folder)
    before = [path for path in complete(folder.parent) if step is not None and (step_of(path) or 0) < step]
    if before:
        return f" Delete {folder} to go on from {before[-1]}, which is complete."
    return f" There is no older checkpoint in {folder.parent}: restore a copy, or train anew in another folder."
