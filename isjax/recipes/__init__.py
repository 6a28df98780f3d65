"""Published methods by name. A recipe returns a `Sampler`."""

from isjax.recipes.by_model import *  # noqa: F403
from isjax.recipes.by_model import __all__  # noqa: F401
