"""Draws from a pool, with one contract for all, so that they can be exchanged.

    (key, probs [B], num) -> (index [num] int32, draw_probs [num] float32)

`1 / (B * draw_probs)` is the unbiased weight: (1/num) sum w_j f(index_j) then has the expectation
(1/B) sum f(i), for every resampler here but `top_k`. Items of zero mass are never drawn by
inverse CDF.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from isjax.base import Array

__all__ = ["categorical", "presample", "systematic", "top_k", "without_replacement"]

# A float32 cumulative sum resolves shares of about 1e-7. Larger pools are drawn in two levels.
_FLAT_POOL = 1 << 16
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


def presample(key: Array, num_examples: int, size: int) -> Array:
    """The pool: `size` distinct ids, each example with the same probability.

    One id from each of `size` nearly equal stretches of the data set, at a common random shift, so
    that data sorted by class is spread evenly over the pool. O(size).

    Returns:
        [size] int32.

    Raises:
        ValueError: if the pool is empty or larger than the data set.
    """
    if not 0 < size <= num_examples:
        raise ValueError(
            f"a pool of {size} cannot be drawn from {num_examples} examples; "
            f"choose a pool size between 1 and {num_examples}"
        )
    shift_key, key = jax.random.split(key)
    length, longer = divmod(num_examples, size)
    stretch = jnp.arange(size, dtype=jnp.int32)
    start = stretch * length + jnp.minimum(stretch, longer)
    ids = start + jax.random.randint(key, (size,), 0, length + (stretch < longer))
    # Stretches differ in length by one; the shift gives every id the same probability all the same.
    shift = jax.random.randint(shift_key, (), 0, num_examples)
    room = num_examples - shift
    return jnp.where(ids < room, ids + shift, ids - room)


def systematic(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """Evenly spaced points under one random shift: a categorical draw of less variance.

    Item i is drawn floor(num p_i) or ceil(num p_i) times (pools above 65,536: a block of about
    sqrt(B) items is; within it draws are independent), and num p_i times on average.
    """
    shift_key, key = jax.random.split(key)
    points = (jnp.arange(num) + jax.random.uniform(shift_key)) / num
    index = _invert_cdf(key, probs, points)
    return index, probs[index]


def categorical(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """Independent draws with replacement, as in arXiv 1706.00043; O(B + num log B)."""
    point_key, key = jax.random.split(key)
    index = _invert_cdf(key, probs, jax.random.uniform(point_key, (num,)))
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
    keys = log_probs + jax.random.gumbel(key, probs.shape, mode="high")
    if num == probs.shape[0]:
        return jnp.arange(num, dtype=jnp.int32), jnp.full((num,), 1 / num, jnp.float32)
    largest, index = jax.lax.top_k(keys, num + 1)
    threshold, index = largest[num], index[:num]
    inclusion = -jnp.expm1(-jnp.exp(log_probs[index] - threshold))
    return index, jnp.where(jnp.isneginf(threshold), 1.0, inclusion) / num


def top_k(key: Array, probs: Array, num: int) -> tuple[Array, Array]:
    """The `num` most probable items. Deterministic, and biased: every weight is one.

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


def _invert_cdf(key: Array, probs: Array, points: Array) -> Array:
    """The item in whose share of [0, 1) each point falls; large pools in two levels.

    First the block of about sqrt(B) items, by the point; then the item, by a fresh uniform number:
    a float32 point has too few values to tell 10^7 items apart.
    """
    size = probs.shape[0]
    if size <= _FLAT_POOL:
        return _search(probs, points)
    width = math.isqrt(size - 1) + 1
    blocks = jnp.pad(probs, (0, -size % width)).reshape(-1, width)
    block = _search(jnp.sum(blocks, axis=1), points)
    within = jax.vmap(_search)(blocks[block], jax.random.uniform(key, points.shape))
    return block * width + within


def _search(masses: Array, points: Array) -> Array:
    # XLA's cumulative sum is not monotone to the last bit. Made so here, with items of zero mass
    # given exactly their predecessor's sum, no point can fall on them, nor past the end.
    cdf = jax.lax.cummax(jnp.where(masses > 0, jnp.cumsum(masses), 0.0))
    points = jnp.minimum(points, _BELOW_ONE) * cdf[-1]
    return jnp.searchsorted(cdf, points, side="right").astype(jnp.int32)
