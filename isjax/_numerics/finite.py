"""Non-finite values: find them, and keep them out of a state."""

import jax
import jax.numpy as jnp

from isjax.base import Array, PyTree


def all_finite(tree: PyTree) -> Array:
    """Tells whether no floating point array holds NaN or infinity.

    Args:
        tree: pytree of arrays; integers and keys are ignored.

    Returns:
        [] bool.
    """
    leaves = jax.tree.leaves(tree)
    leaves = [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    # 0 * x is NaN where x is not finite, so that one sum per array is enough.
    return sum((jnp.sum(0 * leaf) for leaf in leaves), jnp.zeros(())) == 0


def if_finite(new: PyTree, old: PyTree) -> PyTree:
    """Returns `new` if all of it is finite, else `old`.

    Args:
        new: pytree of arrays.
        old: pytree of the same structure and shapes.
    """
    finite = all_finite(new)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
