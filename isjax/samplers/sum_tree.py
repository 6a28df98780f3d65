"""A tree of partial sums over the scores of a whole data set: draws in O(num log N).

Level 0 holds the scores in rows of `FANOUT`, level 1 the sums of those rows in rows of `FANOUT`,
and so on up to a single row, the root: few levels, of rows that fill a cache line. An update
recomputes the sums above the scores it sets, from the scores, and never adds a difference to one:
however many updates there were, a sum is off by the rounding of its own additions alone.

A constant added to every score is not stored: the sum of a node with n examples below it is then
larger by n times the constant, which is added while a draw descends.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax._numerics.leading_axis import pad, split_rows
from isjax.base import Array
from isjax.resampling import at_root, draw_children

# On a CPU 64 take 1.6 times as long at 10^6 examples, 16 about as long (benchmarks/draw.py).
FANOUT = 32
# Larger scores count as this: no sum of 2^31 of them overflows, nor 2^44 times such a sum.
LARGEST = 2.0**48


class SumTree(NamedTuple):
    """Scores and their partial sums.

    Attributes:
        levels: from the scores to the root, [rows, FANOUT] float32 each, padded with zeros.
        size: [] int32, N.
    """

    levels: tuple[Array, ...]
    size: Array

    def leading_axes(self) -> "SumTree":
        """Devices divide the lowest level, unless it is the root; a row holds `FANOUT` examples."""
        lowest = "examples" if len(self.levels) > 1 else "whole"
        return SumTree((lowest, *["whole"] * (len(self.levels) - 1)), "whole")  # type: ignore

    def split(self, parts: int, size: int) -> "SumTree":
        """A tree for each part, the last perhaps of fewer examples; see `leading_axis.split`."""
        rows = -(-size // parts)
        scores = split_rows(pad(self.levels[0].reshape(-1)[:size], parts), parts)
        sizes = jnp.minimum(size - jnp.arange(parts, dtype=jnp.int32) * rows, rows)
        return jax.vmap(init)(scores)._replace(size=sizes)


def init(scores: Array) -> SumTree:
    """The tree of `scores` [N]; what is not above zero, or NaN, carries no mass."""
    levels, sums = [], _mass(scores)
    while not levels or levels[-1].shape[0] > 1:
        levels.append(jnp.pad(sums, (0, -sums.shape[0] % FANOUT)).reshape(-1, FANOUT))
        sums = jnp.sum(levels[-1], axis=1)
    return SumTree(tuple(levels), jnp.int32(scores.shape[0]))


def update(tree: SumTree, ids: Array, scores: Array) -> SumTree:
    """Sets the scores of some examples, and the sums above them. O(n FANOUT log N).

    Args:
        tree: of N examples.
        ids: [n] int32. Of an id that occurs several times, the largest score counts.
        scores: [n].
    """
    # Zeros, then the largest, then equal sums: the order of a scatter does not matter.
    row, column = ids // FANOUT, ids % FANOUT
    levels = [tree.levels[0].at[row, column].set(0.0).at[row, column].max(_mass(scores))]
    for level in tree.levels[1:]:
        sums = jnp.sum(levels[-1][row], axis=1)
        row, column = row // FANOUT, row % FANOUT
        levels.append(level.at[row, column].set(sums))
    return tree._replace(levels=tuple(levels))


def scores_of(tree: SumTree, ids: Array) -> Array:
    """Scores of some examples, [n] float32.

    Args:
        tree: of N examples.
        ids: [n] int32.
    """
    return tree.levels[0][ids // FANOUT, ids % FANOUT]


def total(tree: SumTree) -> Array:
    """The sum of all scores, [] float32."""
    return jnp.sum(tree.levels[-1])


def sample(
    key: Array, tree: SumTree, num: int, smoothing: Array | float = 0.0
) -> tuple[Array, Array, Array, Array]:
    """Draws from the whole tree by systematic draws, p_i = (s_i + c m) / sum (s + c m).

    A child of a node that is drawn n times is itself drawn floor or ceil of its expected number of
    times, given n, as in `resampling.systematic`. O(num FANOUT log N).

    Args:
        key: typed PRNG key.
        tree: of N examples. Where it has no mass, every example is as probable.
        num: draws.
        smoothing: c >= 0, the share of the mean score m that is added to each score: a mixture
            with the uniform distribution.

    Returns:
        ids [num] int32, ascending; their probability per draw, [num] float32; their scores, [num];
        and the mean of s + c m over the tree, [] float32.
    """
    whole, size = total(tree), tree.size
    constant = jnp.asarray(smoothing, jnp.float32) * whole / size
    mass = whole / size + constant
    constant = jnp.where(mass > 0, constant, 1.0)
    top = len(tree.levels) - 1
    points = jax.random.uniform(key, (top + 1, num), jnp.float32)
    ids, ranks = jnp.zeros((num,), jnp.int32), at_root(num)
    for height in range(top, -1, -1):
        sums = tree.levels[height] if height == top else tree.levels[height][ids]
        entries = ids[: len(sums), None] * FANOUT + jnp.arange(FANOUT)[None, :]
        # Examples below each entry, of which there are fewer below the last.
        full, rest = size // FANOUT**height, size % FANOUT**height
        below = jnp.where(entries < full, FANOUT**height, jnp.where(entries == full, rest, 0))
        child, ranks = draw_children(points[height], ranks, sums + constant * below)
        ids = ids * FANOUT + child
    scores = jnp.take_along_axis(sums, child[:, None], axis=1)[:, 0]
    return ids, (scores + constant) / (whole + constant * size), scores, mass


def _mass(scores: Array) -> Array:
    return jnp.clip(jnp.nan_to_num(scores.astype(jnp.float32), posinf=LARGEST), 0.0, LARGEST)
