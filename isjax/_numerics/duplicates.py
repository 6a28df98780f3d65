"""Ids that occur several times in a batch.

A CPU finds them by a sort. An accelerator compares all pairs of a batch of at most `PAIRS_UP_TO`:
a sort takes many small kernels there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from isjax.base import Array

PAIRS_UP_TO = 2048

Total = Callable[[Array], Array]  # sums [b] over equal ids, for each position


def counts(ids: Array) -> Array:
    """Counts how often each id occurs in the batch.

    Args:
        ids: [b] int32.

    Returns:
        [b] int32, at least 1.
    """
    return _with_total(ids, lambda total: total(jnp.ones(ids.shape, jnp.int32)))


def mean_finite(ids: Array, values: Array) -> tuple[Array, Array]:
    """Averages the finite values of each id.

    Args:
        ids: [b] int32.
        values: [b] float32.

    Returns:
        For each position the mean of its id, [b] float32, and whether there was a finite value,
        [b] bool.
    """

    def mean(total: Total) -> tuple[Array, Array]:
        finite = jnp.isfinite(values)
        number = total(finite.astype(jnp.int32))
        # Divided before they are added: the sum of large values may overflow.
        share = jnp.where(finite, values, 0.0) / jnp.maximum(number, 1).astype(jnp.float32)
        return total(share), number > 0

    return _with_total(ids, mean)


def distinct(ids: Array) -> Array:
    """Counts the distinct ids. [b] -> [] int32."""
    return _by_platform(ids, distinct_by_sort, distinct_by_pairs)


def distinct_by_sort(ids: Array) -> Array:
    """See `distinct`."""
    ids = jnp.sort(ids)
    return 1 + jnp.sum(ids[1:] != ids[:-1], dtype=jnp.int32)


def distinct_by_pairs(ids: Array) -> Array:
    """See `distinct`."""
    position = jnp.arange(ids.shape[0])
    first = jnp.min(jnp.where(_same(ids), position[None, :], ids.shape[0]), axis=1)
    return jnp.sum(first == position, dtype=jnp.int32)


def total_by_sort(ids: Array) -> Total:
    """Sums over equal ids, in O(b log b)."""
    # Unrolled: the binary search has few steps, and a loop over them is slower.
    slot = jnp.searchsorted(jnp.sort(ids), ids, method="scan_unrolled")
    return lambda x: jnp.zeros_like(x).at[slot].add(x)[slot]


def total_by_pairs(ids: Array) -> Total:
    """Sums over equal ids, in O(b^2)."""
    same = _same(ids)
    return lambda x: jnp.sum(jnp.where(same, x[None, :], 0), axis=1, dtype=x.dtype)


def _with_total(ids: Array, function: Callable[[Total], Any]) -> Any:
    return _by_platform(
        ids, lambda ids: function(total_by_sort(ids)), lambda ids: function(total_by_pairs(ids))
    )


def _same(ids: Array) -> Array:
    return ids[:, None] == ids[None, :]


def _by_platform(ids: Array, by_sort: Callable, by_pairs: Callable) -> Any:
    if ids.shape[0] > PAIRS_UP_TO:
        return by_sort(ids)
    return jax.lax.platform_dependent(ids, cpu=by_sort, default=by_pairs)
