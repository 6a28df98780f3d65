"""One level of a draw that descends a tree of masses, by inverse CDF.

A level has few items, and each gets uniform numbers of its own: a single float32 has too few
values, and a single cumulative sum too few digits, to reach rare items among thousands, or any item
among millions with the probability it should have.
"""

import jax
import jax.numpy as jnp
import numpy as np

from isjax.base import Array

_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


def descend(key: Array, nodes: Array, masses: Array) -> Array:
    """Draws a child of each node, evenly spaced under a random shift: a systematic draw.

    A node that occurs n times draws a child floor or ceil of n times its share of the masses.

    Args:
        key: typed PRNG key.
        nodes: [num] int32, ascending, repeated for each time that the node is drawn.
        masses: [num, width] float32 of the children of each, or [1, width] if they are the same.

    Returns:
        [num] int32, the child's position in its row, ascending among draws of the same node.
    """
    first = jnp.searchsorted(nodes, nodes, side="left")
    count = jnp.searchsorted(nodes, nodes, side="right") - first
    shift = jax.random.uniform(key, nodes.shape)[first]
    return invert_cdf(masses, (jnp.arange(nodes.shape[0]) - first + shift) / count)


def invert_cdf(masses: Array, points: Array) -> Array:
    """The item in whose share of [0, 1) each point falls; never one of zero mass.

    Args:
        masses: [num or 1, width].
        points: [num].

    Returns:
        [num] int32, positions in the rows.
    """
    # XLA's cumulative sum is not monotone to the last bit: its largest value stands for the end,
    # and the first item of some mass whose sum lies beyond the point is taken.
    massive = masses > 0
    cdf = jnp.cumsum(masses, axis=1)
    end = jnp.max(jnp.where(massive, cdf, 0.0), axis=1)
    points = jnp.minimum(points, _BELOW_ONE) * end
    return jnp.argmax(massive & (cdf > points[:, None]), axis=1).astype(jnp.int32)
