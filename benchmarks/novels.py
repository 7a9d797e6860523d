"""Novels as bytes, from a folder or from the archive of the project's data."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from nestling.errors import NestlingError

PLACES = (Path("data/novels"), Path("../shared/data/novels"), Path("../shared/data/nestling-data.tar.xz"))
"""Where the novels are looked for; ``NESTLING_NOVELS`` names another folder or archive"""


def text(name: str) -> bytes:
    """A novel as bytes, from a folder or from the archive of the project's data."""
    named = os.environ.get("NESTLING_NOVELS")
    for place in (Path(named),) if named else PLACES:
        if place.is_dir() and (place / f"{name}.txt").is_file():
            return (place / f"{name}.txt").read_bytes()
        if place.is_file():
            with tarfile.open(place) as archive:
                found = archive.extractfile(f"data/novels/{name}.txt")
                assert found is not None
                return found.read()
    raise NestlingError(
        f"no novel {name}.txt in {named or ', '.join(map(str, PLACES))}: set NESTLING_NOVELS to the folder that has it."
    )
