"""Commands are found, errors are one line, and exit codes say what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nestling.cli import COMMANDS, dispatch, main
from nestling.errors import NestlingError
from tests.cli.conftest import Call
from tests.house.sources import ROOT

HELP = """
import sys
from nestling.cli import main
status = main(sys.argv[1:])
heavy = {"torch", "numpy", "matplotlib", "tensorboard", "tokenizers", "rich"} & set(sys.modules)
sys.exit(f"loaded {sorted(heavy)}" if heavy else status)
"""


def process(*arguments: str, **options) -> subprocess.Popen[str]:
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": paths}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, *arguments], env=env, text=True, **pipes)


def raising(error: BaseException):
    def run(arguments: list[str]) -> int:
        raise error

    return lambda name: SimpleNamespace(run=run)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=["nestling", *COMMANDS])
def test_help_is_text_and_loads_nothing_heavy(command: list[str]) -> None:
    asked = process("-c", HELP, *command, "--help")
    out, err = asked.communicate()
    assert asked.returncode == 0, err
    assert out.startswith(" ".join(["usage: nestling", *command]))


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version").out.startswith("nestling ")
    assert call("--version").status == 0


def test_no_command_is_an_error_with_help(call: Call) -> None:
    said = call()
    assert (said.status, said.out) == (2, "")
    assert "usage: nestling <command>" in said.err


@pytest.mark.parametrize(
    ("name", "hint"),
    [("trian", "did you mean train?"), ("fly", f"use one of {', '.join(COMMANDS)}.")],
)
def test_an_unknown_command_is_one_line(call: Call, name: str, hint: str) -> None:
    said = call(name)
    assert (said.status, said.out) == (2, "")
    assert said.err == f"nestling: error: unknown command {name!r}: {hint}\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (NestlingError("that is wrong: do this."), 2, "nestling: error: that is wrong: do this."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            KeyError("a\nb"),
            1,
            "nestling: error: unexpected KeyError: 'a\\nb' (set NESTLING_TRACEBACK=1 to see where)",
        ),
        (
            RuntimeError("two\nlines"),
            1,
            "nestling: error: unexpected RuntimeError: two lines (set NESTLING_TRACEBACK=1 to see where)",
        ),
    ],
)
def test_every_error_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch, error, status: int, line: str) -> None:
    monkeypatch.setattr(dispatch, "import_module", raising(error))
    said = call("train")
    assert (said.status, said.err) == (status, line + "\n")


@pytest.mark.parametrize("error", [NestlingError("wrong"), RuntimeError("broken")])
def test_a_traceback_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch, capsys, error) -> None:
    monkeypatch.setenv("NESTLING_TRACEBACK", "1")
    monkeypatch.setattr(dispatch, "import_module", raising(error))
    assert main(["train"]) in (1, 2)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    writing = process("-c", "from nestling.cli import main; import sys; sys.exit(main(['describe', 'hope', '--json']))")
    assert writing.stdout is not None
    writing.stdout.close()
    assert writing.stderr is not None
    assert writing.stderr.read() == ""
    assert writing.wait() == 141


def test_an_interrupt_ends_quietly() -> None:
    program = (
        "import sys, time; from types import SimpleNamespace; import nestling.cli.dispatch as m\n"
        "def run(arguments):\n    print('ready', flush=True); time.sleep(60)\n"
        "m.import_module = lambda name: SimpleNamespace(run=run)\n"
        "sys.exit(m.main(['train']))"
    )
    waiting = process("-c", program)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "ready\n"
    waiting.send_signal(signal.SIGINT)
    assert waiting.communicate()[1] == "interrupted\n"
    assert waiting.returncode == 130


def test_the_package_is_a_program() -> None:
    asked = process("-m", "nestling", "--version")
    assert asked.communicate()[0].startswith("nestling ")
    assert asked.returncode == 0
