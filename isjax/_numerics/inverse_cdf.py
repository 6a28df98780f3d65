"""One level of a draw that descends a tree of masses, by inverse CDF.

A level has few items, and each gets uniform numbers of its own: a single float32 has too few
values, and a single cumulative sum too few digits, to reach rare items among thousands, or any item
among millions with the probability it should have.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from isjax.base import Array

_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
_NARROW = 64


class Draws(NamedTuple):
    """Draws that have come down to nodes of some level, those of the same node side by side.

    Attributes:
        rank: [num] int32, of each draw among those of its node, from 0.
        times: [num] int32, that its node is drawn.
    """

    rank: Array
    times: Array


def at_root(num: int) -> Draws:
    """`num` draws of one node."""
    return Draws(jnp.arange(num, dtype=jnp.int32), jnp.full((num,), num, jnp.int32))


def descend(points: Array, draws: Draws, masses: Array) -> tuple[Array, Draws]:
    """Draws a child of each node, evenly spaced under a random shift: a systematic draw.

    A node that is drawn n times draws a child floor or ceil of n times its share of the masses.

    Args:
        points: [num] float32, uniform in [0, 1) and independent.
        draws: of the nodes.
        masses: [num, width] float32 of the children of each, or [1, width] if they are the same.

    Returns:
        [num] int32, the child's position in its row, ascending among draws of the same node; and
        the draws of the children.
    """
    rank, times = draws
    shift = points[jnp.arange(rank.shape[0]) - rank]
    # Of the n points (r + shift) / n so many lie below the end of a child's share. Its draws are
    # counted by these whole numbers alone, so that no rounding can tell them apart differently.
    scaled = _shares(masses) * times[:, None]
    whole = jnp.floor(scaled)
    ends = (whole + (scaled - whole > shift[:, None])).astype(jnp.int32)
    child = _first(ends > rank[:, None])
    items = jnp.arange(masses.shape[1], dtype=jnp.int32)[None, :]
    start = jnp.max(jnp.where(items < child[:, None], ends, 0), axis=1)
    end = jnp.take_along_axis(ends, child[:, None], axis=1)[:, 0]
    return child, Draws(rank - start, end - start)


def invert_cdf(masses: Array, points: Array) -> Array:
    """The item in whose share of [0, 1) each point falls; never one of zero mass.

    Args:
        masses: [num or 1, width].
        points: [num].

    Returns:
        [num] int32, positions in the rows.
    """
    return _first(_shares(masses) > jnp.minimum(points, _BELOW_ONE)[:, None])


def _shares(masses: Array) -> Array:
    """Where the share of each item ends, in [0, 1]; 0 of one without mass.

    A cumulative sum is not monotone to the last bit: its largest value stands for the end, and an
    item of some mass begins where the largest before it ends.
    """
    cdf = jnp.where(masses > 0, _cumsum(masses), 0.0)
    whole = jnp.max(cdf, axis=1, keepdims=True)
    # XLA may divide by multiplying with a reciprocal, so that x / x is not 1.
    return jnp.where(cdf < whole, jnp.minimum(cdf / whole, _BELOW_ONE), 1.0)


def _first(true: Array) -> Array:
    """The position of the first true item of each row. [num, width] -> [num] int32."""
    items = jnp.arange(true.shape[1], dtype=jnp.int32)[None, :]
    return jnp.min(jnp.where(true, items, true.shape[1] - 1), axis=1)


def _cumsum(rows: Array) -> Array:
    """Along axis 1. Of narrow rows by a product, which on a CPU is the quicker."""
    width = rows.shape[1]
    if width > _NARROW:
        return jnp.cumsum(rows, axis=1)
    return jnp.matmul(rows, np.triu(np.ones((width, width), np.float32)), precision="highest")
