"""Points drawn from a domain, as a physics-informed network trains on them.

A domain is a pure function `(key, num) -> points [num, d]`, uniform over the domain. Call it at
each step for fresh points or for a pool of them, or once for a fixed set.

- `box`: an interval, a rectangle or a box.
- `boundary`: the faces of a box.
- `time_slab`: times before the points of another domain.
- `cells`: a grid of cells whose numbers are ids, with points drawn within each cell.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from isjax._numerics.limits import violated
from isjax.base import Array, require_int32

__all__ = ["Domain", "boundary", "box", "cells", "time_slab"]

Domain = Callable[[Array, int], Array]


def box(low: Sequence[float], high: Sequence[float]) -> Domain:
    """Draws points uniformly from a box.

    Args:
        low: [d] lower corner.
        high: [d] upper corner; a side may have length zero.

    Returns:
        `(key, num) -> points`, [num, d] of JAX's default float type, in [low, high).

    Raises:
        ValueError: if the corners are not [d] numbers each, finite, with low <= high.
    """
    start, size = _corners("box", low, high)

    def sample(key: Array, num: int) -> Array:
        unit = jax.random.uniform(key, (num, len(start)))
        return _place(start, size, unit)

    return sample


def boundary(low: Sequence[float], high: Sequence[float]) -> Domain:
    """Draws points uniformly from the faces of a box: two points, four edges, six faces.

    A face gets points in proportion to its area.

    Args:
        low: [d] lower corner.
        high: [d] upper corner, above the lower one in each coordinate.

    Returns:
        `(key, num) -> points`, [num, d] of JAX's default float type. One coordinate of each point
        is exactly that of its face.

    Raises:
        ValueError: as `box`, and if a side has no length.
    """
    start, size = _corners("boundary", low, high)
    if np.any(size == 0):
        raise ValueError(
            f"domain.boundary: the box from {list(low)} to {list(high)} is flat; give each side a "
            "length, or take domain.box, which may be flat, as the one face"
        )
    dims, log_area = len(start), np.log(np.prod(size) / size)

    def sample(key: Array, num: int) -> Array:
        keys = jax.random.split(key, 3)
        axis = jax.random.categorical(keys[0], jnp.asarray(log_area), shape=(num, 1))
        upper = jax.random.bernoulli(keys[1], shape=(num, 1))
        across = jnp.arange(dims)[None, :] == axis
        inside = _place(start, size, jax.random.uniform(keys[2], (num, dims)))
        ends = jnp.stack([jnp.asarray(start), jnp.asarray(start + size)]).astype(inside.dtype)
        return jnp.where(across, jnp.where(upper, ends[1:], ends[:1]), inside)

    return sample


def time_slab(start: float, end: float, space: Domain) -> Domain:
    """Draws times uniformly, and points of space beside them.

    With `start` equal to `end` it draws points at that time, such as those of an initial condition.

    Args:
        start: first time.
        end: last time, not before `start`.
        space: domain of the other coordinates, such as `box` or, for boundary conditions,
            `boundary`.

    Returns:
        `(key, num) -> points`, [num, 1 + d]: time first, then the d coordinates of space.

    Raises:
        ValueError: if the times are not finite, or `end` is before `start`.
    """
    times = box([start], [end])

    def sample(key: Array, num: int) -> Array:
        time_key, space_key = jax.random.split(key)
        return jnp.concatenate([times(time_key, num), space(space_key, num)], axis=1)

    return sample


def cells(
    low: Sequence[float], high: Sequence[float], shape: Sequence[int]
) -> Callable[[Array, Array], Array]:
    """Divides a box into cells of equal size, and draws points within given cells.

    The numbers of the cells are the ids of a sampler: it remembers the loss seen last in each cell,
    while the points are new at every visit. Choose cells so coarse that each is visited often, and
    so fine that the residual differs little within one.

    Args:
        low: [d] lower corner of the box.
        high: [d] upper corner.
        shape: [d] number of cells along each side. Cells are numbered from 0 in C order, so that
            `losses.reshape(shape)` is a picture of the box.

    Returns:
        `(key, ids [b]) -> points`, [b, d] of JAX's default float type, one in each cell.

    Raises:
        ValueError: as `box`, and if `shape` is not [d] numbers of 1 or more, or has too many cells
            for int32.
    """
    start, size = _corners("cells", low, high)
    if len(shape) != len(start) or violated(*(number >= 1 for number in shape)):
        raise ValueError(
            f"domain.cells: shape is {tuple(shape)} for a box of {len(start)} coordinates; give "
            "one number of 1 or more for each"
        )
    require_int32(math.prod(shape))
    whole = tuple(shape)

    def sample(key: Array, ids: Array) -> Array:
        corner = jnp.stack(jnp.unravel_index(ids, whole), axis=1)
        jitter = jax.random.uniform(key, corner.shape)
        return _place(start, size / np.asarray(whole), corner + jitter)

    return sample


def _corners(name: str, low: Sequence[float], high: Sequence[float]) -> tuple[np.ndarray, ...]:
    """Lower corner and sides of a box, [d] float64 each, checked."""
    start, end = np.asarray(low, np.float64), np.asarray(high, np.float64)
    sound = start.ndim == 1 and start.shape == end.shape and start.size > 0
    if not sound or not np.all(np.isfinite([start, end])) or np.any(start > end):
        raise ValueError(
            f"domain.{name}: corners are {low} and {high}; give the coordinates of both as two "
            "lists of one length, finite, the lower one first"
        )
    return start, end - start


def _place(start: np.ndarray, size: np.ndarray, unit: Array) -> Array:
    """Maps unit coordinates [n, d] into a box, in their own type."""
    return jnp.asarray(start, unit.dtype)[None, :] + jnp.asarray(size, unit.dtype)[None, :] * unit
