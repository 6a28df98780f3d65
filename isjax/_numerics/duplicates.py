"""Duplicate ids in a batch, found in O(b log b)."""

import jax.numpy as jnp

from isjax.base import Array


def slots(ids: Array) -> Array:
    """Numbers each id such that equal ids share a number and others do not.

    Args:
        ids: [b] int32.

    Returns:
        [b] int32 in [0, b).
    """
    # Unrolled: the binary search has few steps, and a loop over them is slower.
    return jnp.searchsorted(jnp.sort(ids), ids, method="scan_unrolled")


def counts(ids: Array) -> Array:
    """Counts how often each id occurs in the batch.

    Args:
        ids: [b] int32.

    Returns:
        [b] int32, at least 1.
    """
    slot = slots(ids)
    return jnp.zeros(ids.shape, jnp.int32).at[slot].add(1)[slot]
