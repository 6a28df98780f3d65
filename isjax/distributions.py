"""Probabilities over a pool, and measures of how far they are from uniform."""

import jax.numpy as jnp

from isjax.base import Array


def normalize(scores: Array) -> Array:
    """Computes probabilities proportional to scores: p_i = s_i / sum s.

    Negative and NaN scores get probability zero. Infinite ones count as the largest float32. If no
    score is positive the distribution is uniform.

    Args:
        scores: [B], of any real type.

    Returns:
        [B] float32, summing to one.
    """
    largest = jnp.finfo(jnp.float32).max
    scores = jnp.nan_to_num(scores.astype(jnp.float32), nan=0.0, posinf=largest, neginf=0.0)
    scores = jnp.maximum(scores, 0.0)
    # Scaled towards 1 first, so that neither the sum nor a reciprocal overflows or underflows.
    scores = scores * jnp.where(jnp.max(scores) > 1, 2.0**-64, 2.0**64)
    peak = jnp.max(scores)
    scores = jnp.where(peak > 0, scores / jnp.where(peak > 0, peak, 1.0), 1.0)
    return scores / jnp.sum(scores)


def mean_mass(scores: Array) -> Array:
    """Computes the mean of the scores as `normalize` counts them.

    Zero means that `normalize` falls back to uniform. Scores above 2^64 count as 2^64, so that no
    sum of them overflows.

    Args:
        scores: [B], of any real type.

    Returns:
        [] float32.
    """
    scores = jnp.nan_to_num(scores.astype(jnp.float32), nan=0.0)
    return jnp.mean(jnp.clip(scores, 0.0, 2.0**64))


def effective_sample_size(probs: Array) -> Array:
    """Computes the effective sample size 1 / sum p^2.

    Args:
        probs: [B] float32, summing to one.

    Returns:
        [] float32, from 1 (one example has all the mass) to B (uniform).
    """
    return 1.0 / jnp.sum(jnp.square(probs))


def variance_reduction(probs: Array) -> Array:
    """Computes tau^2 = B sum p^2 = B / ESS, for p proportional to gradient norms (1803.00942).

    It is the second moment of a uniform draw's gradient divided by that of an importance-sampled
    one.

    Args:
        probs: [B] float32, summing to one.

    Returns:
        [] float32, from 1 (nothing can be gained) to B.
    """
    return probs.shape[0] * jnp.sum(jnp.square(probs))
