"""The public names: each is where it is said to be, and none is loaded before it is used."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import nestling as nl
from nestling import core, train
from tests.house.sources import ROOT


def python(program: str) -> str:
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", [nl, train], ids=["nestling", "nestling.train"])
def test_every_name_can_be_imported(module) -> None:
    assert len(module.__all__) == len(set(module.__all__))
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("module", [nl, train], ids=["nestling", "nestling.train"])
def test_no_name_is_that_of_a_module_in_the_same_package(module) -> None:
    """Importing the module would take the name's place, sooner or later."""
    inside = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert not inside & {name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)}


def test_the_values_of_the_core_are_public() -> None:
    assert set(core.__all__) <= set(nl.__all__)
    assert nl.Memory is core.Memory


def test_an_unknown_name_is_an_attribute_error() -> None:
    for module in (nl, train):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = module.nothing


def test_importing_the_package_or_a_configuration_loads_no_torch() -> None:
    program = "import sys, nestling, nestling.train.config, nestling.errors; print('torch' in sys.modules)"
    assert python(program) == "False\n"


@pytest.mark.parametrize("before", ["", "import nestling.recipes", "from nestling.recipes import build", "nl.build"])
def test_recipes_are_listed_and_built_whatever_came_first(before: str) -> None:
    program = (
        f"import nestling as nl\n{before}\nprint(nl.recipes() == nl.recipes.recipes(), nl.recipes.build is nl.build)"
    )
    assert python(program) == "True True\n"


def test_a_star_brings_the_names() -> None:
    assert (
        python("from nestling import *; print(build.__name__, Session.__name__, MLP.__name__)") == "build Session MLP\n"
    )
