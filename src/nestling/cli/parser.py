"""Options of a command from the fields of a dataclass: one line of help for each, from the docstring below it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import TypeVar

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from nestling.errors import NestlingError

T = TypeVar("T")

_OPTION = re.compile(r"(?<![\w-])--[a-z][\w.]*")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """The options of one command. ``--max-tokens`` and ``--max_tokens`` are the same; names in files have underscores."""

    def __init__(self, command: str, usage: str, description: str) -> None:
        """``usage``: the arguments as the first line of help shows them."""
        prog = f"nestling {command}"
        super().__init__(prog=prog, usage=f"{prog} {usage}", description=description, exit_on_error=False)
        self.add_argument("--config", action="config", help="read options from this YAML or JSON file")

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The help, its options spelled with dashes."""
        return _OPTION.sub(lambda option: _dashed(option.group()), super().format_help(formatter))

    def read(self, arguments: Sequence[str], lists: Collection[str] = ()) -> Namespace:
        """The values of ``arguments``; options named in ``lists`` take all the words up to the next option.

        Raises:
            NestlingError: an option or a value is not what it should be.
        """
        try:
            return self.parse_args(_gathered([_underscored(word) for word in arguments], lists))
        except argparse.ArgumentError as error:
            raise NestlingError(f"{self._plain(str(error))} See {self.prog} --help.") from error

    def build(self, kind: type[T], values: Namespace) -> T:
        """The dataclass ``kind`` from parsed ``values``."""
        built = self.instantiate(values)
        return kind(**{field.name: built[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]

    def _plain(self, message: str) -> str:
        """An error of jsonargparse as one sentence in words that a user knows."""
        if unknown := re.match(r"[Uu]nrecognized arguments: (\S+)", message):
            return self._unknown(unknown[1])
        message = re.sub(r'Parser key "([\w.]+)":\s*', lambda key: f"{_dashed('--' + key[1])}: ", message, count=1)
        message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
        message = re.sub(r"typing\.Literal\[(.*?)\]", lambda choices: f"one of {choices[1]}".replace("'", ""), message)
        message = message.replace("Expected a ", "expected ").replace(". Got value: ", ", got ")
        return " ".join(message.split()).rstrip(".") + "."

    def _unknown(self, word: str) -> str:
        known = [_dashed(option) for action in self._actions for option in action.option_strings]
        near = get_close_matches(_dashed(word.partition("=")[0]), known, 1)
        hint = f": did you mean {near[0]}?" if near else "."
        return f"unknown {'option' if word.startswith('-') else 'argument'} {_dashed(word)}{hint}"


def _underscored(word: str) -> str:
    """An option as the parser knows it; other words, and the values of options, as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _dashed(option: str) -> str:
    return option.replace("_", "-") if option.startswith("--") else option


def _gathered(words: Sequence[str], lists: Collection[str]) -> list[str]:
    """``--data a b`` as ``--data=["a", "b"]``; a list that is given as one already stays.

    >>> _gathered(["--data", "a", "b", "--steps", "3"], {"data"})
    ['--data=["a", "b"]', '--steps', '3']
    """
    found: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word.removeprefix("--") not in lists or not word.startswith("--"):
            found.append(word)
            continue
        end = position
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        items = list(words[position:end])
        whole = len(items) == 1 and items[0].startswith("[")
        found.append(f"{word}={items[0] if whole else json.dumps(items)}")
        position = end
    return found
