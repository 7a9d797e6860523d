"""Files that are the old one or the new one, whole, whatever happens while they are written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nestling.atomic import replacing, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_there_in_folders_that_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "größer")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "größer".encode()
    write_bytes(str(tmp_path / "a" / "b" / "c.txt"), b"\0new")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"\0new"
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "state"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as temporary:
            temporary.write_text("new, but")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert target.read_text() == "old" and names(tmp_path) == ["state"]


def test_the_old_file_stays_readable_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "state"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent, "a rename within one folder is atomic"
        assert target.read_text() == "old"
        handle = target.open()
    assert target.read_text() == "new"
    with handle:
        assert handle.read() == "old", "who reads the old file goes on reading the old file"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "x")
        (tmp_path / "b").write_text("x")
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    finally:
        os.umask(before)


def test_writers_at_the_same_time_do_not_mix(tmp_path):
    target = tmp_path / "state"
    with replacing(target) as one, replacing(target) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one" and names(tmp_path) == ["state"]


KILLED = """
import os, signal, sys
from nestling.atomic import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("new, but")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "state"
    target.write_text("old")
    source = Path(sys.modules["nestling.atomic"].__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    died = subprocess.run([sys.executable, "-c", KILLED, str(target)], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    write_text(target, "after")
    assert target.read_text() == "after"


def test_the_bytes_are_on_disk_before_they_have_the_name(tmp_path, monkeypatch):
    """After a power cut the new name must not stand for an empty file: flush, rename, flush the folder."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("flush"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    write_text(tmp_path / "state", "x")
    assert done == ["flush", "rename", "flush"]
