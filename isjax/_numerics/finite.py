"""Protection from NaN: an update that is not finite is not taken."""

import jax
import jax.numpy as jnp

from isjax.base import Array, PyTree


def all_finite(tree: PyTree) -> Array:
    """Whether no floating point array in `tree` holds NaN or infinity: [] bool."""
    leaves = jax.tree.leaves(tree)
    leaves = [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    # 0 * x is NaN where x is not finite: a sum is all that the backend has to reduce.
    return sum((jnp.sum(0 * leaf) for leaf in leaves), jnp.zeros(())) == 0


def if_finite(new: PyTree, old: PyTree) -> PyTree:
    """`new` where all of it is finite, else `old`."""
    finite = all_finite(new)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
