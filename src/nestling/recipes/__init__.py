"""One system per function, each on a screen."""

import sys
from types import ModuleType

from nestling.recipes.build import build, configure, from_config, from_spec, recipes
from nestling.recipes.sizes import SIZES, Size

__all__ = ["SIZES", "Size", "build", "configure", "from_config", "from_spec", "recipes"]


class _Recipes(ModuleType):
    """``nestling.recipes`` is this package and the function of that name: whichever was imported, calling it lists the recipes."""

    def __call__(self) -> list[str]:
        return recipes()


sys.modules[__name__].__class__ = _Recipes
