"""Adaptive collocation points of physics-informed networks: rules that replace a set of points.

Pure functions of points and their residuals, to call between steps, on points of
`isjax.data.domain`. The samplers of isjax instead draw a batch from points that stay, or from a
pool, and weigh it.
"""

import jax.numpy as jnp

from isjax import resampling
from isjax._numerics.limits import violated
from isjax.base import Array
from isjax.distributions import normalize

__all__ = ["rad", "retain_resample"]


def rad(
    key: Array, candidates: Array, residuals: Array, num: int, k: float = 1.0, c: float = 1.0
) -> Array:
    """Draws a new set of points by RAD, residual-based adaptive distribution (arXiv 2207.10289).

    p_i is proportional to `|r_i|^k / mean(|r|^k) + c` over dense candidates, drawn without
    replacement. Use it every few hundred or thousand steps, with fresh candidates. A call costs the
    residuals of the candidates. Train on the new points with equal weights: their density is part
    of the method.

    Args:
        key: of the draw.
        candidates: [B, d] points, drawn uniformly from the domain.
        residuals: [B] of these points, of any sign. One that is not finite counts as zero.
        num: size of the set, at most B.
        k: power of the residual, at least 0; further from 0 concentrates the points.
        c: share of the uniform distribution, at least 0, relative to that of the residuals.

    Returns:
        [num, d] of the candidates.

    Raises:
        ValueError: if `num` exceeds the candidates, there is not one residual for each candidate,
            or k or c is negative.
    """
    _require_one_each("rad", candidates, residuals)
    if num > candidates.shape[0]:
        raise ValueError(
            f"collocation.rad: num is {num}, but there are {candidates.shape[0]} candidates; draw "
            "more candidates, some ten times as many as points"
        )
    if violated(k >= 0, c >= 0):
        raise ValueError(f"collocation.rad: (k, c) is {(k, c)}; choose numbers of 0 or more")
    size = jnp.abs(jnp.where(jnp.isfinite(residuals), residuals, 0.0))
    largest = jnp.max(size)
    # Of ratios to the largest, so that no power overflows.
    power = jnp.power(size / jnp.where(largest > 0, largest, 1.0), k)
    index, _ = resampling.without_replacement(key, normalize(power + c * jnp.mean(power)), num)
    return candidates[index]


def retain_resample(points: Array, residuals: Array, fresh: Array) -> Array:
    """Retains points of high residual and replaces the others: R3 (arXiv 2207.02338).

    A point stays while `|r|` is above the mean of the set; the others give way to fresh ones.
    Points gather where the residual is high, and leave once it has fallen. Call it after each step
    on the whole set, whose residuals are then known, so that it costs nothing.

    Args:
        points: [n, d] trained on.
        residuals: [n] of these points, of any sign. A point whose residual is not finite is
            replaced.
        fresh: [n, d] points drawn uniformly from the domain.

    Returns:
        [n, d], each row of `points` or of `fresh`.

    Raises:
        ValueError: if there is not one residual for each point, or not as many fresh points.
    """
    _require_one_each("retain_resample", points, residuals)
    if fresh.shape != points.shape:
        raise ValueError(
            f"collocation.retain_resample: fresh has shape {fresh.shape}, but points have shape "
            f"{points.shape}; draw a fresh point for each"
        )
    finite = jnp.isfinite(residuals)
    size = jnp.abs(jnp.where(finite, residuals, 0.0))
    mean = jnp.sum(size) / jnp.maximum(jnp.sum(finite), 1)
    return jnp.where((size > mean)[:, None], points, fresh)


def _require_one_each(name: str, points: Array, residuals: Array) -> None:
    if jnp.ndim(points) != 2 or jnp.shape(residuals) != jnp.shape(points)[:1]:
        raise ValueError(
            f"collocation.{name}: residuals have shape {jnp.shape(residuals)}, but points have "
            f"shape {jnp.shape(points)}; pass points [n, d] and one residual for each, [n]"
        )
