"""Weights that undo a biased draw, wholly or in part."""

import jax.numpy as jnp

from isjax.base import Array


def importance_weights(draw_probs: Array, pool_size: int, k: Array | float = 1.0) -> Array:
    """w_i = (1 / (B p_i))^k, the weights of arXiv 1706.00043.

    1 corrects fully: the weighted batch gradient is unbiased for the pool's mean gradient. 0 is no
    correction, and smaller is harder: with scores s = L the expected gradient is proportional to
    that of sum L^(2-k) / (2-k), which tends to the max-loss as k -> -inf.

    Args:
        draw_probs: [b] probability per draw.
        pool_size: B.
        k: in (-inf, 1].

    Returns:
        [b] float32; exactly one at k = 0.
    """
    return jnp.power(pool_size * draw_probs.astype(jnp.float32), -jnp.asarray(k, jnp.float32))


def preserve_mean(weights: Array, unbiased: Array, scores: Array) -> Array:
    """Rescales biased weights so that the batch's weighted mean score is the unbiased one.

    Multiplies w by sum(u s) / sum(w s), u being the unbiased weights, as the authors' later code
    does. The direction of the gradient stays; the effective step size changes, from shrinking with
    the bias to following the mean score.

    Args:
        weights: [b] to rescale.
        unbiased: [b] weights at k = 1.
        scores: [b] scores of the drawn examples.
    """
    kept, wanted = jnp.sum(weights * scores), jnp.sum(unbiased * scores)
    return weights * jnp.where(kept > 0, wanted / jnp.where(kept > 0, kept, 1.0), 1.0)
