"""Draws a batch from the probabilities of a pool, and draws the pool itself (`presample`).

All resamplers have one signature, so that each can be `resample=` of `isjax.importance_sampler`:

    (key, probs [B], num) -> (index [num] int32, draw_probs [num] float32)

The unbiased weight is w = 1 / (B draw_probs): (1/num) sum_j w_j f(index_j) then has the expectation
(1/B) sum_i f(i), for every resampler here except `top_k`.

- `systematic`: with replacement, of least variance; the default.
- `categorical`: independent draws with replacement, as in the paper.
- `without_replacement`: distinct examples, unbiased.
- `top_k`: the most probable examples; biased.
"""

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isjax.base import MAX_EXAMPLES, Array, require_int32, require_integer

__all__ = ["categorical", "presample", "systematic", "top_k", "without_replacement"]

_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
_NARROW = 64
_ONE_LEVEL = 2**14


def presample(key: Array, num_examples: Array | int, size: int) -> Array:
    """Draws the pool: distinct ids, each example with the same probability B / N.

    Splits the data set into B nearly equal stretches and takes one random id from each, then
    shifts all ids by one random number. Data sorted by class are thus spread evenly over the pool.
    O(B).

    Args:
        key: typed PRNG key.
        num_examples: N, an int; an array [] int32 works too and is not checked.
        size: B, at most N.

    Returns:
        [B] int32 ids into the data set.

    Raises:
        TypeError: if a size is no integer.
        ValueError: if the pool would be empty or larger than the data set, or if int32 cannot
            number the examples.
    """
    _check_pool(num_examples, size)
    shift_key, key = jax.random.split(key)
    length, longer = divmod(num_examples, size)
    stretch = jnp.arange(size, dtype=jnp.int32)
    start = stretch * length + jnp.minimum(stretch, longer)
    lengths = length + (stretch < longer).astype(jnp.int32)
    ids = start + jax.random.randint(key, (size,), 0, lengths, jnp.int32)
    # Stretches differ in length by one; the shift gives every id the same probability all the same.
    shift = jax.random.randint(shift_key, (), 0, num_examples, jnp.int32)
    room = num_examples - shift
    return jnp.where(ids < room, ids + shift, ids - room)


def _check_pool(num_examples: Array | int, size: int) -> None:
    for name, value in (("size", size), ("num_examples", num_examples)):
        if not isinstance(value, numbers.Integral | Array):
            require_integer(f"presample: {name}", value)
    if isinstance(num_examples, numbers.Integral):
        if num_examples > MAX_EXAMPLES:
            require_int32(int(num_examples))
        if not 0 < size <= num_examples:
            raise ValueError(
                f"a pool of {size} cannot be drawn from {num_examples} examples; "
                f"choose a pool size between 1 and {num_examples}"
            )


def systematic(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """Draws with replacement at evenly spaced points of the CDF, under a random shift.

    Example i is drawn num p_i times on average, and rarely more than one time more or less: a
    `categorical` draw of less variance. The draw has two levels, so that float32 suffices for
    large pools. A block of about sqrt(B) examples is drawn floor or ceil of its expected number of
    times, and so is each example within it, given that number. Examples of zero probability are
    never drawn. O(B + num sqrt(B)).

    Args:
        key: typed PRNG key.
        probs: [B] float32, summing to one.
        num: b, the number of draws; it may exceed B.

    Returns:
        `index` [num] int32 into the pool, ascending, and `draw_probs` [num] float32, p_index.
    """
    blocks, points = _blocks(probs), jax.random.uniform(key, (2, num), jnp.float32)
    block, ranks = draw_children(points[0], at_root(num), jnp.sum(blocks, axis=1)[None])
    item, _ = draw_children(points[1], ranks, blocks[block])
    index = block * blocks.shape[1] + item
    return index, probs[index]


def categorical(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """Draws independently with replacement, as in arXiv 1706.00043.

    Use it where draws must be independent of each other; otherwise `systematic` has less variance.
    Examples of zero probability are never drawn. O(B + num sqrt(B)), where
    `jax.random.categorical` takes O(B num).

    Args:
        key: typed PRNG key.
        probs: [B] float32, summing to one.
        num: b, the number of draws; it may exceed B.

    Returns:
        `index` [num] int32 into the pool, and `draw_probs` [num] float32, p_index.
    """
    block_key, key = jax.random.split(key)
    blocks = _blocks(probs)
    block = invert_cdf(
        jnp.sum(blocks, axis=1)[None], jax.random.uniform(block_key, (num,), jnp.float32)
    )
    points = jax.random.uniform(key, (num,), jnp.float32)
    index = block * blocks.shape[1] + invert_cdf(blocks[block], points)
    return index, probs[index]


def without_replacement(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """Draws distinct examples by Gumbel top-k.

    Use it where no example may come twice in a batch. `draw_probs` is pi / num, where pi is the
    probability that the example's Gumbel key exceeds the (num + 1)-th largest key. The weight
    1 / (B draw_probs) is then unbiased; 1 / (B p) is not. Where fewer than `num` examples have
    positive probability, others complete the batch, and pi = 1 for all. O(B log B) at most.

    Args:
        key: typed PRNG key.
        probs: [B] float32, summing to one.
        num: b, the number of distinct examples, at most B.

    Returns:
        `index` [num] int32 into the pool, and `draw_probs` [num] float32.

    Raises:
        ValueError: if `num` exceeds B.
    """
    _check_distinct(num, probs.shape[0], "without_replacement")
    log_probs = jnp.log(probs)
    keys = log_probs + jax.random.gumbel(key, probs.shape, probs.dtype, mode="high")
    if num == probs.shape[0]:
        return jnp.arange(num, dtype=jnp.int32), jnp.full((num,), 1 / num, jnp.float32)
    largest, index = jax.lax.top_k(keys, num + 1)
    threshold, index = largest[num], index[:num]
    everyone = jnp.isneginf(threshold)  # fewer than num have mass; -inf less -inf would be NaN
    distance = log_probs[index] - jnp.where(everyone, 0.0, threshold)
    return index, jnp.where(everyone, 1.0, -jnp.expm1(-jnp.exp(distance))) / num


def top_k(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """Takes the most probable examples: deterministic, and biased.

    Args:
        key: unused.
        probs: [B] float32.
        num: b, the number of examples, at most B.

    Returns:
        `index` [num] int32 into the pool, and `draw_probs` [num] float32, all 1 / B: every weight
        is one, up to rounding.

    Raises:
        ValueError: if `num` exceeds B.
    """
    del key
    _check_distinct(num, probs.shape[0], "top_k")
    _, index = jax.lax.top_k(probs, num)
    return index, jnp.full((num,), 1 / probs.shape[0], jnp.float32)


def _check_distinct(num: int, size: int, name: str) -> None:
    if num > size:
        raise ValueError(
            f"resampling.{name} cannot draw {num} distinct examples from a pool of {size}; "
            f"draw at most {size}, or use resampling.systematic, which may repeat examples"
        )


def _blocks(probs: Array) -> Array:
    """Splits probabilities into blocks of about sqrt(B), the last padded with zeros."""
    width = math.isqrt(probs.shape[0] - 1) + 1
    return jnp.pad(probs, (0, -probs.shape[0] % width)).reshape(-1, width)


# Inverse-CDF draws from one level of a hierarchy of masses. A large pool is drawn from in levels:
# first a block, then an item in the block. Every level has few items and uniform numbers of its
# own. A single float32 has too few values, and a single cumulative sum too few digits, to draw rare
# items of a large pool with the right probability. The draws of a level are sorted, so that those
# of one node lie side by side; `Ranks` counts them.


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
    ends = _points_below(_shares(masses) * count[:, None].astype(jnp.float32), shift)
    above = ends > rank[:, None]
    start = jnp.max(jnp.where(above, 0, ends), axis=1)
    end = jnp.min(jnp.where(above, ends, count[:, None]), axis=1)
    return _first(above), Ranks(rank - start, end - start)


def draw_children_by_blocks(
    points: Array, ranks: Ranks, masses: Array, block: int
) -> tuple[Array, Ranks]:
    """`draw_children`; on a CPU, where that is faster, a block of siblings first.

    Args:
        points: [2, num] float32, independent and uniform in [0, 1).
        ranks: ranks of the draws among those of their nodes.
        masses: [num, width] or [1, width] float32, of the children of each node.
        block: siblings in a block, which divides the width.

    Returns:
        As `draw_children`. On a CPU a block is drawn floor or ceil of its expected number of times
        given its node, and a child given its block.
    """

    def by_blocks(points: Array, ranks: Ranks, masses: Array) -> tuple[Array, Ranks]:
        blocks = masses.reshape(masses.shape[0], -1, block)
        chosen, ranks = draw_children(points[0], ranks, jnp.sum(blocks, axis=2))
        rows = jnp.arange(chosen.shape[0]) if blocks.shape[0] > 1 else 0
        child, ranks = draw_children(points[1], ranks, blocks[rows, chosen])
        return chosen * block + child, ranks

    def at_once(points: Array, ranks: Ranks, masses: Array) -> tuple[Array, Ranks]:
        return draw_children(points[0], ranks, masses)

    return jax.lax.platform_dependent(points, ranks, masses, cpu=by_blocks, default=at_once)


def count_draws(key: Array, probs: Array, num: Array) -> Array:
    """Counts how often systematic draws take each item; the number of draws may be traced.

    Two levels beyond 2^14 items, as in `systematic`, but all blocks at once: O(B), whatever the
    number.

    Args:
        key: typed PRNG key.
        probs: [B] float32 >= 0, of which only ratios matter.
        num: [] int32, the number of draws.

    Returns:
        [B] int32, which sum to `num`; an item of zero probability has none, unless all have.
    """
    blocks = _blocks(probs) if probs.shape[0] > _ONE_LEVEL else probs[None]
    points = jax.random.uniform(key, (blocks.shape[0] + 1,), jnp.float32)
    of_block = num[None]
    if blocks.shape[0] > 1:
        of_block = _counts(points[:1], of_block, jnp.sum(blocks, axis=1)[None])[0]
    return _counts(points[1:], of_block, blocks).ravel()[: probs.shape[0]]


def _counts(shift: Array, count: Array, masses: Array) -> Array:
    """Divides the draws of each node, `count` [nodes], among its children, [nodes, width] int32.

    Masses are rounded to integers, 2^-30 of the node: their cumulative sum is exact, so that it
    never falls and an item without mass adds nothing.
    """
    total = jnp.sum(masses, axis=1, keepdims=True)
    shares = masses / jnp.where(total > 0, total, 1.0)
    ends = jnp.cumsum(jnp.round(shares * 2.0**30).astype(jnp.int32), axis=1)
    last, number = ends[:, -1:], count[:, None].astype(jnp.float32)
    scaled = jnp.minimum(ends.astype(jnp.float32) / last.astype(jnp.float32) * number, number)
    scaled = jnp.where(ends < last, scaled, number)  # x / x need not be 1
    return jnp.diff(_points_below(scaled, shift), axis=1, prepend=0)


def _points_below(scaled: Array, shift: Array) -> Array:
    """Of the points 0 + shift, 1 + shift, ... [nodes], those below each number, [nodes, width]."""
    whole = jnp.floor(scaled)
    return whole.astype(jnp.int32) + (scaled - whole > shift[:, None]).astype(jnp.int32)


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
