"""Probabilities over a pool, and what they are worth."""

import jax.numpy as jnp

from isjax.base import Array


def normalize(scores: Array) -> Array:
    """Probabilities proportional to scores: p_i = s_i / sum s.

    Args:
        scores: [B]. NaN and negative scores carry no mass, infinite ones count as the largest
            float; where no score is positive the distribution is uniform.

    Returns:
        [B] float32, summing to one.
    """
    largest = jnp.finfo(jnp.float32).max
    scores = jnp.nan_to_num(scores.astype(jnp.float32), nan=0.0, posinf=largest, neginf=0.0)
    scores = jnp.maximum(scores, 0.0)
    # Brought near 1 first, the sum neither overflows nor vanishes, nor does a reciprocal.
    scores = scores * jnp.where(jnp.max(scores) > 1, 2.0**-64, 2.0**64)
    peak = jnp.max(scores)
    scores = jnp.where(peak > 0, scores / jnp.where(peak > 0, peak, 1.0), 1.0)
    return scores / jnp.sum(scores)


def mean_mass(scores: Array) -> Array:
    """The mean of what `normalize` goes by, 0 where it is uniform for want of any. [B] -> [].

    Scores above 2^64 count as that, so that no sum of them overflows.
    """
    scores = jnp.nan_to_num(scores.astype(jnp.float32), nan=0.0)
    return jnp.mean(jnp.clip(scores, 0.0, 2.0**64))


def effective_sample_size(probs: Array) -> Array:
    """1 / sum p^2: between 1 (one item has all the mass) and B (uniform). [B] -> []."""
    return 1.0 / jnp.sum(jnp.square(probs))


def variance_reduction(probs: Array) -> Array:
    """tau^2 = B sum p^2 = B / ESS, for p proportional to gradient norms. [B] -> [].

    By how much the second moment of a uniform draw's gradient exceeds that of importance sampling
    by `probs` (arXiv 1803.00942); 1 means that nothing can be gained.
    """
    return probs.shape[0] * jnp.sum(jnp.square(probs))
