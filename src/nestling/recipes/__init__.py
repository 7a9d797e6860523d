"""One system per function, each on a screen."""

from nestling.recipes.build import build, configure, from_config, from_spec, recipes
from nestling.recipes.sizes import SIZES, Size

__all__ = ["SIZES", "Size", "build", "configure", "from_config", "from_spec", "recipes"]
