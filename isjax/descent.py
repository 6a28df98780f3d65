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
_NARROW = 64


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
    # A cumulative sum is not monotone to the last bit: its largest value stands for the end, and
    # the first item of some mass whose sum lies beyond the point is taken.
    width = masses.shape[1]
    cdf = jnp.where(masses > 0, _cumsum(masses), 0.0)
    points = jnp.minimum(points, _BELOW_ONE) * jnp.max(cdf, axis=1)
    items = jnp.arange(width, dtype=jnp.int32)[None, :]
    return jnp.min(jnp.where(cdf > points[:, None], items, width - 1), axis=1)


def _cumsum(rows: Array) -> Array:
    """Along axis 1. Of narrow rows by a product, which is the quicker on all devices."""
    width = rows.shape[1]
    if width > _NARROW:
        return jnp.cumsum(rows, axis=1)
    return jnp.matmul(rows, jnp.triu(jnp.ones((width, width), rows.dtype)), precision="highest")
