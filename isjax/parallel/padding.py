"""Arrays with more rows than there are examples, so that devices divide them evenly.

The rows added have no mass: no draw from a pool or a tree ever comes to them, no loss is written
there, and they count in no mean.
"""

import jax
import jax.numpy as jnp

from isjax.base import Array, Batch, PyTree, leading_axes

__all__ = ["has_rows", "pad", "pad_state"]


def pad(data: Batch, parts: int) -> Batch:
    """Data whose leading axis is the next multiple of `parts`; the rows added are zeros."""

    def extend(x: Array) -> Array:
        more = -x.shape[0] % parts
        return jnp.pad(x, ((0, more), *((0, 0) for _ in x.shape[1:]))) if more else x

    return jax.tree.map(extend, data)


def pad_state(state: PyTree, parts: int) -> PyTree:
    """A state of sampler or training in which what `has_rows` divides into `parts`.

    A `Tree` still knows how many examples there are.
    """
    return jax.tree.map(lambda x, rows: pad(x, parts) if rows else x, state, has_rows(state))


def has_rows(state: PyTree) -> PyTree:
    """For each array of a state, whether its rows are examples: a tree of bool."""
    return jax.tree.map(lambda axis: axis == "examples", leading_axes(state))
