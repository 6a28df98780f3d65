"""Scorers say how important each example is."""

from isjax.scorers._scorers import *  # noqa: F403
from isjax.scorers._scorers import LabelFn, LogitsFn, LossFn  # noqa: F401
