"""Protection from NaN: an update that is not finite is not taken."""

import jax
import jax.numpy as jnp

from isjax.base import Array, PyTree


def all_finite(tree: PyTree) -> Array:
    """Whether no floating point array in `tree` holds NaN or infinity: [] bool."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves], bool))


def select(take: Array, new: PyTree, old: PyTree) -> PyTree:
    """The tree `new` where `take`, [] bool, holds, else `old`."""
    return jax.tree.map(lambda new, old: jnp.where(take, new, old), new, old)
