"""The one function that makes a `Draw`."""

import jax.numpy as jnp

from isjax.base import Array, Draw, DrawInfo
from isjax.weights import importance_weights

__all__ = ["make_draw"]


def make_draw(
    ids: Array,
    index: Array,
    draw_probs: Array,
    *,
    scores: Array,
    pool_size: Array | int,
    k: Array | float,
    ess: Array | float,
    mass: Array | float,
    last_loss: Array | None = None,
    nonfinite: Array | int = 0,
    passes: Array | float = 0.0,
) -> Draw:
    """Makes a draw of b examples, weighted by (1 / (B p))^k.

    Args:
        ids: [b] int32 into the data set.
        index: [b] int32 into the pool.
        draw_probs: [b] float32, as a resampler returns them.
        scores: [b] float32 before transforms.
        pool_size: B.
        k: exponent of the weights, at most 1.
        ess: effective sample size of the pool, as a share of B.
        mass: mean unnormalised score of the pool; 0 if the draw fell back to uniform.
        last_loss: [b] float32 losses last observed, if the sampler keeps them.
        nonfinite: scores of the pool that were NaN or infinite.
        passes: forward passes of the main model that scoring took.
    """
    info = DrawInfo(
        pool_size=jnp.asarray(pool_size, jnp.int32),
        ess=jnp.asarray(ess, jnp.float32),
        nonfinite=jnp.asarray(nonfinite, jnp.int32),
        passes=jnp.asarray(passes, jnp.float32),
        mass=jnp.asarray(mass, jnp.float32),
        k=jnp.asarray(k, jnp.float32),
    )
    weights = importance_weights(draw_probs, pool_size, k)
    return Draw(ids, index, weights, draw_probs, scores, last_loss, info)
