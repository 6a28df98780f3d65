"""Inverse-CDF draws from one level of a hierarchy of masses.

A large pool is drawn from in levels: first a block, then an item in the block. Every level has few
items and uniform numbers of its own. A single float32 has too few values, and a single cumulative
sum too few digits, to draw rare items of a large pool with the right probability.

The draws of a level are sorted, so that those of one node lie side by side; `Ranks` counts them.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from isjax.base import Array

_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
_NARROW = 64


class Ranks(NamedTuple):
    """Position of each draw among the draws of its node.

    Attributes:
        rank: [num] int32, from 0 to `count` - 1.
        count: [num] int32, how often the node is drawn.
    """

    rank: Array
    count: Array


def at_root(num: int) -> Ranks:
    """Starts at the root: ranks of draws that are all of one node.

    Args:
        num: number of draws.
    """
    return Ranks(jnp.arange(num, dtype=jnp.int32), jnp.full((num,), num, jnp.int32))


def draw_children(points: Array, ranks: Ranks, masses: Array) -> tuple[Array, Ranks]:
    """Draws a child for each draw of a node, by systematic sampling within each node.

    The points of a node that is drawn n times are evenly spaced under a random shift, so that each
    child is drawn floor or ceil of n times its share of the masses.

    Args:
        points: [num] float32, independent and uniform in [0, 1).
        ranks: ranks of the draws among those of their nodes.
        masses: [num, width] float32, of the children of each node; [1, width] if all nodes have the
            same.

    Returns:
        The position of each child among its siblings, [num] int32, ascending within a node; and the
        ranks of the draws among those of their children.
    """
    rank, count = ranks
    shift = points[jnp.arange(rank.shape[0]) - rank]
    # Of the n points (r + shift) / n, ends[i] lie below the end of child i's share. All else
    # follows from these integers, so that rounding cannot make two results disagree.
    scaled = _shares(masses) * count[:, None]
    whole = jnp.floor(scaled)
    ends = (whole + (scaled - whole > shift[:, None])).astype(jnp.int32)
    child = _first(ends > rank[:, None])
    items = jnp.arange(masses.shape[1], dtype=jnp.int32)[None, :]
    start = jnp.max(jnp.where(items < child[:, None], ends, 0), axis=1)
    end = jnp.take_along_axis(ends, child[:, None], axis=1)[:, 0]
    return child, Ranks(rank - start, end - start)


descend = draw_children  # the name that samplers.sum_tree imports


def invert_cdf(masses: Array, points: Array) -> Array:
    """Finds the item whose share of [0, 1) contains each point; never one of zero mass.

    Args:
        masses: [num, width] float32, or [1, width] for all points.
        points: [num] float32 in [0, 1].

    Returns:
        [num] int32, positions along the width.
    """
    return _first(_shares(masses) > jnp.minimum(points, _BELOW_ONE)[:, None])


def _shares(masses: Array) -> Array:
    """Upper ends of the items' shares of [0, 1]; 0 for an item without mass.

    A float32 cumulative sum is not exactly monotone. Its largest value therefore counts as the end,
    and an item's share begins at the largest end before it.
    """
    cdf = jnp.where(masses > 0, _cumsum(masses), 0.0)
    whole = jnp.max(cdf, axis=1, keepdims=True)
    # XLA may divide by multiplying with a reciprocal, and x / x is then not 1.
    return jnp.where(cdf < whole, jnp.minimum(cdf / whole, _BELOW_ONE), 1.0)


def _first(true: Array) -> Array:
    """Position of the first true item of each row: [num, width] -> [num] int32."""
    items = jnp.arange(true.shape[1], dtype=jnp.int32)[None, :]
    return jnp.min(jnp.where(true, items, true.shape[1] - 1), axis=1)


def _cumsum(rows: Array) -> Array:
    """Cumulative sum along axis 1; of narrow rows by a product, which is faster on a CPU."""
    width = rows.shape[1]
    if width > _NARROW:
        return jnp.cumsum(rows, axis=1)
    return jnp.matmul(rows, np.triu(np.ones((width, width), np.float32)), precision="highest")
