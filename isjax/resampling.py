"""Draws from a pool, with one contract for all, so that they can be exchanged.

    (key, probs [B], num) -> (index [num] int32, draw_probs [num] float32)

`1 / (B * draw_probs)` is the unbiased weight: (1/num) sum w_j f(index_j) then has the expectation
(1/B) sum f(i), for every resampler here but `top_k`. Items of zero mass are never drawn by
inverse CDF.
"""

import math
import numbers

import jax
import jax.numpy as jnp

from isjax._numerics.inverse_cdf import at_root, descend, invert_cdf
from isjax.base import Array

__all__ = ["categorical", "presample", "systematic", "top_k", "without_replacement"]


def presample(key: Array, num_examples: Array | int, size: int) -> Array:
    """The pool: `size` distinct ids, each example with the same probability.

    One id from each of `size` nearly equal stretches of the data set, at a common random shift, so
    that data sorted by class is spread evenly over the pool. O(size).

    Args:
        key: typed PRNG key.
        num_examples: N; an array, [] int32, is not checked.
        size: B.

    Returns:
        [size] int32.

    Raises:
        ValueError: if the pool is empty or larger than the data set.
    """
    if isinstance(num_examples, numbers.Integral) and not 0 < size <= num_examples:
        raise ValueError(
            f"a pool of {size} cannot be drawn from {num_examples} examples; "
            f"choose a pool size between 1 and {num_examples}"
        )
    shift_key, key = jax.random.split(key)
    length, longer = divmod(num_examples, size)
    stretch = jnp.arange(size, dtype=jnp.int32)
    start = stretch * length + jnp.minimum(stretch, longer)
    ids = start + jax.random.randint(key, (size,), 0, length + (stretch < longer), jnp.int32)
    # Stretches differ in length by one; the shift gives every id the same probability all the same.
    shift = jax.random.randint(shift_key, (), 0, num_examples, jnp.int32)
    room = num_examples - shift
    return jnp.where(ids < room, ids + shift, ids - room)


def systematic(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """Evenly spaced points under a random shift: a categorical draw of less variance.

    Item i is drawn num p_i times on average, and seldom more than one time more or less. In two
    levels: a block of about sqrt(B) items is drawn floor or ceil of its expected number of times,
    n, and so is each item within it, given n. O(B + num sqrt(B)).
    """
    blocks, points = _blocks(probs), jax.random.uniform(key, (2, num))
    block, draws = descend(points[0], at_root(num), jnp.sum(blocks, axis=1)[None])
    item, _ = descend(points[1], draws, blocks[block])
    index = block * blocks.shape[1] + item
    return index, probs[index]


def categorical(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """Independent draws with replacement, as in arXiv 1706.00043; O(B + num sqrt(B))."""
    block_key, key = jax.random.split(key)
    blocks = _blocks(probs)
    block = invert_cdf(jnp.sum(blocks, axis=1)[None], jax.random.uniform(block_key, (num,)))
    points = jax.random.uniform(key, (num,))
    index = block * blocks.shape[1] + invert_cdf(blocks[block], points)
    return index, probs[index]


def without_replacement(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """Distinct items by Gumbel top-k.

    `draw_probs` is pi / num, with pi the probability that the item's key exceeds the
    (num+1)-th largest one: then (1/num) sum w_j f(index_j) is unbiased, which 1 / (B p) is not.
    Where fewer than `num` items have mass, others complete the batch with pi = 1.

    Raises:
        ValueError: if `num` exceeds the pool.
    """
    _check_distinct(num, probs.shape[0], "without_replacement")
    log_probs = jnp.log(probs)
    keys = log_probs + jax.random.gumbel(key, probs.shape, probs.dtype, mode="high")
    if num == probs.shape[0]:
        return jnp.arange(num, dtype=jnp.int32), jnp.full((num,), 1 / num, jnp.float32)
    largest, index = jax.lax.top_k(keys, num + 1)
    threshold, index = largest[num], index[:num]
    inclusion = -jnp.expm1(-jnp.exp(log_probs[index] - threshold))
    return index, jnp.where(jnp.isneginf(threshold), 1.0, inclusion) / num


def top_k(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """The `num` most probable items. Deterministic, and biased: each weighs one, to rounding.

    Raises:
        ValueError: if `num` exceeds the pool.
    """
    del key
    _check_distinct(num, probs.shape[0], "top_k")
    _, index = jax.lax.top_k(probs, num)
    return index, jnp.full((num,), 1 / probs.shape[0], jnp.float32)


def _check_distinct(num: int, size: int, name: str) -> None:
    if num > size:
        raise ValueError(
            f"{name} cannot draw {num} distinct items from {size}; "
            f"draw at most {size}, or use resampling.systematic, which may repeat items"
        )


def _blocks(probs: Array) -> Array:
    """Rows of about sqrt(B) items, the last padded with zero mass: two levels, see `descent`."""
    width = math.isqrt(probs.shape[0] - 1) + 1
    return jnp.pad(probs, (0, -probs.shape[0] % width)).reshape(-1, width)
