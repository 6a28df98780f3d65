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
        state: of a sampler or of training. Its `Span` says how many examples and rows there are.
        multiple: of which the number of rows is to be.
    """

    def of_type(part: PyTree) -> PyTree:
        if hasattr(part, "pad"):
            return part.pad(multiple)
        return jax.tree.map(lambda x, rows: pad(x, multiple) if rows else x, part, has_rows(part))

    own = lambda part: hasattr(part, "pad") or hasattr(part, "leading_axes")  # noqa: E731
    return jax.tree.map(of_type, state, is_leaf=own)


def has_rows(state: PyTree) -> PyTree:
    """For each array of a state, whether its rows are examples: the same structure of bool.

    Args:
        state: of a sampler or of training.
    """
    return jax.tree.map(lambda axis: axis == "examples", leading_axes(state))
