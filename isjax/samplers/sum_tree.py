"""A tree of partial sums over the scores of a whole data set: draws in O(num log N).

Level 0 holds the scores in rows of `FANOUT`, level 1 the sums of those rows in rows of `FANOUT`,
and so on up to a level of at most `ROOT` rows, the root, which is drawn from as a whole: few
levels, of rows that fill a TPU's registers. An update recomputes the sums above the scores it sets,
from the scores, and never adds a difference to one: however many updates there were, a sum is off
by the rounding of its own additions alone.

A constant added to every score is not stored: the sum of a node with n examples below it is then
larger by n times the constant, which is added while a draw descends. Examples may be excluded: they
then count neither as scores nor among the n.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isjax._numerics.leading_axis import cut_rows
from isjax.base import Array
from isjax.resampling import at_root, draw_children_by_blocks

# The lanes of a TPU's registers: it would copy levels of narrower rows to read them.
FANOUT = 128
# So that the root is a register of a TPU, and 131,072 examples take two levels.
ROOT = 8
# A CPU, which adds up every entry that it reads, first draws a block of so many.
BLOCK = 32
# Larger scores count as this: no sum of 2^31 of them overflows, nor 2^44 times such a sum.
LARGEST = 2.0**48


class SumTree(NamedTuple):
    """Scores and their partial sums.

    Attributes:
        levels: from the scores to the root, [rows, FANOUT] float32 each, padded with zeros.
        size: [] int32, N.
        excluded: as many levels of [rows, FANOUT] int32, the excluded examples below each entry;
            empty if there are none.
    """

    levels: tuple[Array, ...]
    size: Array
    excluded: tuple[Array, ...] = ()

    def leading_axes(self) -> "SumTree":
        """Devices divide the lowest level, unless it is the root; a row holds `FANOUT` examples."""
        lowest = "examples" if len(self.levels) > 1 else "whole"
        axes = (lowest, *["whole"] * (len(self.levels) - 1))
        return SumTree(axes, "whole", axes if self.excluded else ())  # type: ignore

    def split(self, parts: int, size: int) -> "SumTree":
        """A tree for each part, the last perhaps of fewer examples; see `leading_axis.split`."""

        def cut(levels: tuple[Array, ...]) -> tuple[Array, ...]:
            return jax.vmap(_levels)(cut_rows(levels[0].reshape(-1)[:size], parts))

        rows = -(-size // parts)
        sizes = jnp.minimum(size - jnp.arange(parts, dtype=jnp.int32) * rows, rows)
        return SumTree(cut(self.levels), sizes, cut(self.excluded) if self.excluded else ())

    def extend(self, old: "SumTree", size: int) -> "SumTree":
        """This tree, with what an older one of `size` examples holds; see `leading_axis.extend`."""

        def carried(items: Array, known: Array) -> tuple[Array, ...]:
            return _levels(items.reshape(-1).at[:size].set(known.reshape(-1)[:size]))

        tree = self._replace(levels=carried(self.levels[0], old.levels[0]))
        if not old.excluded:
            return tree
        none = jnp.zeros(self.levels[0].shape, jnp.int32)
        return tree._replace(excluded=carried(none, old.excluded[0]))


def init(scores: Array) -> SumTree:
    """The tree of `scores` [N]; what is not above zero, or NaN, carries no mass."""
    return SumTree(_levels(_mass(scores)), jnp.int32(scores.shape[0]))


def update(tree: SumTree, ids: Array, scores: Array) -> SumTree:
    """Sets the scores of some examples, and the sums above them. O(n FANOUT log N).

    Args:
        tree: of N examples.
        ids: [n] int32. Of an id that occurs several times, the largest score counts. Ids of no
            example change nothing.
        scores: [n]. Those of excluded examples count as zero.
    """
    mass = jnp.where(is_excluded(tree, ids), 0.0, _mass(scores))
    return tree._replace(levels=_changed(tree.levels, _known(tree, ids), mass))


def exclude(tree: SumTree, ids: Array) -> SumTree:
    """Excludes examples from all draws. O(n FANOUT log N), and O(N) at the first call.

    Args:
        tree: of N examples.
        ids: [n] int32, duplicates allowed. Ids of no example change nothing.
    """
    ids = _known(tree, ids)
    none = tuple(jnp.zeros(level.shape, jnp.int32) for level in tree.levels)
    ones = jnp.ones(ids.shape, jnp.int32)
    return tree._replace(
        levels=_changed(tree.levels, ids, jnp.zeros(ids.shape, jnp.float32)),
        excluded=_changed(tree.excluded or none, ids, ones),
    )


def is_excluded(tree: SumTree, ids: Array) -> Array:
    """Whether some examples are excluded: [n] -> [n] bool."""
    if not tree.excluded:
        return jnp.zeros(ids.shape, bool)
    return tree.excluded[0][ids // FANOUT, ids % FANOUT] > 0


def active(tree: SumTree) -> Array:
    """Examples that are not excluded, [] int32; 1 if all are."""
    if not tree.excluded:
        return tree.size
    return jnp.maximum(tree.size - jnp.sum(tree.excluded[-1], dtype=jnp.int32), 1)


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
    times, given n, as in `resampling.systematic`. On a CPU the same holds of a block of children,
    and of a child given its block. O(num FANOUT log N).

    Args:
        key: typed PRNG key.
        tree: of N examples. Where it has no mass, every example is as probable. Of those that are
            excluded none is drawn, unless all are.
        num: draws.
        smoothing: c >= 0, the share of the mean score m that is added to each score: a mixture
            with the uniform distribution.

    Returns:
        ids [num] int32, ascending; their probability per draw, [num] float32; their scores, [num];
        and the mean of s + c m over the tree, [] float32.
    """
    whole, size = total(tree), active(tree).astype(jnp.float32)
    constant = jnp.asarray(smoothing, jnp.float32) * whole / size
    mass = whole / size + constant
    constant = jnp.where(mass > 0, constant, 1.0)
    top = len(tree.levels) - 1
    points = jax.random.uniform(key, (top + 1, 2, num), jnp.float32)
    ids, ranks = jnp.zeros((num,), jnp.int32), at_root(num)
    for height in range(top, -1, -1):
        level = tree.levels[height]
        # Read once: a second read, after the update, would make XLA copy the level.
        sums = level.reshape(1, -1) if height == top else jax.lax.optimization_barrier(level[ids])
        entries = ids[: len(sums), None] * FANOUT + jnp.arange(sums.shape[1])[None, :]
        # Examples below each entry, of which there are fewer below the last.
        full, rest = tree.size // FANOUT**height, tree.size % FANOUT**height
        below = jnp.where(entries < full, FANOUT**height, jnp.where(entries == full, rest, 0))
        if tree.excluded:
            excluded = tree.excluded[height]
            below -= excluded.reshape(1, -1) if height == top else excluded[ids]
        masses = sums + constant * below.astype(jnp.float32)
        child, ranks = draw_children_by_blocks(points[height], ranks, masses, BLOCK)
        ids = ids * FANOUT + child
    items = jnp.arange(sums.shape[1])[None, :]
    scores = jnp.sum(jnp.where(items == child[:, None], sums, 0.0), axis=1)
    return ids, (scores + constant) / (whole + constant * size), scores, mass


def _levels(items: Array) -> tuple[Array, ...]:
    """The items [N] and their partial sums, from the lowest level to the root."""
    levels, sums = [], items
    while not levels or levels[-1].shape[0] > ROOT:
        levels.append(jnp.pad(sums, (0, -sums.shape[0] % FANOUT)).reshape(-1, FANOUT))
        sums = jnp.sum(levels[-1], axis=1, dtype=items.dtype)
    return tuple(levels)


def _known(tree: SumTree, ids: Array) -> Array:
    """The ids; those of no example, which may be in the padding of a row, become -1."""
    return jnp.where((ids >= 0) & (ids < tree.size), ids, -1)


def _changed(levels: tuple[Array, ...], ids: Array, items: Array) -> tuple[Array, ...]:
    """Sets items >= 0 [n] and the sums above them; of an id's several, the largest counts.

    An id of -1 is left out.
    """

    def place(level: Array, row: Array, column: Array) -> Any:
        return level.at[jnp.where(ids >= 0, row, level.shape[0]), column]  # beyond: not written

    # Zeros, then the largest, then equal sums: the order of a scatter does not matter.
    row, column = ids // FANOUT, ids % FANOUT
    changed = [place(place(levels[0], row, column).set(0), row, column).max(items)]
    for level in levels[1:]:
        sums = jnp.sum(changed[-1][row], axis=1, dtype=level.dtype)
        row, column = row // FANOUT, row % FANOUT
        changed.append(place(level, row, column).set(sums))
    return tuple(changed)


def _mass(scores: Array) -> Array:
    return jnp.clip(jnp.nan_to_num(scores.astype(jnp.float32), posinf=LARGEST), 0.0, LARGEST)
