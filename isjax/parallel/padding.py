"""Arrays with more rows than there are examples, so that devices divide them evenly.

The rows added are no examples. A sampler draws ids below N alone, and they count in no mean.
"""

import jax

from isjax._numerics.leading_axis import leading_axes, pad
from isjax.base import PyTree

__all__ = ["has_rows", "pad", "pad_state"]


def pad_state(state: PyTree, multiple: int) -> PyTree:
    """Pads the arrays of a state that have a row for each example.

    Args:
        state: of a sampler or of training. Its `Span` still says how many examples there are.
        multiple: of which the number of rows is to be.
    """
    return jax.tree.map(lambda x, rows: pad(x, multiple) if rows else x, state, has_rows(state))


def has_rows(state: PyTree) -> PyTree:
    """For each array of a state, whether its rows are examples: the same structure of bool.

    Args:
        state: of a sampler or of training.
    """
    return jax.tree.map(lambda axis: axis == "examples", leading_axes(state))
