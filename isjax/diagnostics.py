"""What a draw and a scorer are worth, from numbers that the step has at hand anyway."""

import jax.numpy as jnp

from isjax.base import Array, Draw

__all__ = ["correlation", "draw_metrics", "mean_absolute_error", "mean_loss", "unique_share"]


def draw_metrics(
    draw: Draw, losses: Array, pool_size: int, last_seen: Array | None = None
) -> dict[str, Array]:
    """Diagnostics of one step, each a scalar; losses that are not finite are counted, not used.

    Args:
        draw: of b examples.
        losses: [b] just observed.
        pool_size: B.
        last_seen: [b] the losses last observed before, where the sampler keeps them.

    Returns:
        `loss`: unbiased estimate of the data set's mean loss, at any k;
        `batch_loss`: mean loss of the batch as drawn;
        `ess`: effective sample size of the pool, as a share of it;
        `max_weight`: largest weight of the batch;
        `unique`: share of the batch that unique ids make up;
        `score_correlation`: between scores and losses (0 where either is constant);
        `score_error`: mean |score - loss|, which means something for scores that predict losses;
        `last_loss_error`: the same for the naive prediction, `last_seen` (if given);
        `nonfinite`: losses and pool scores that were NaN or infinite.
    """
    losses = losses.astype(jnp.float32)
    finite = jnp.isfinite(losses)
    metrics = {
        "loss": mean_loss(draw, losses, pool_size),
        "batch_loss": _mean(losses, finite),
        "ess": draw.ess,
        "max_weight": jnp.max(draw.weights),
        "unique": unique_share(draw.ids),
        "score_correlation": correlation(draw.scores, losses),
        "score_error": mean_absolute_error(draw.scores, losses),
        "nonfinite": jnp.sum(~finite) + draw.nonfinite,
    }
    if last_seen is not None:
        metrics["last_loss_error"] = mean_absolute_error(last_seen, losses)
    return metrics


def mean_loss(draw: Draw, losses: Array, pool_size: int) -> Array:
    """(1/b) sum L / (B draw_probs): unbiased for the pool's mean loss, whatever k is."""
    finite = jnp.isfinite(losses)
    return _mean(jnp.where(finite, losses, 0.0) / (pool_size * draw.draw_probs), finite)


def unique_share(ids: Array) -> Array:
    """Share of distinct ids among the b drawn. [b] -> []."""
    ids = jnp.sort(ids)
    return (1 + jnp.sum(ids[1:] != ids[:-1])) / ids.shape[0]


def correlation(x: Array, y: Array) -> Array:
    """Pearson's r over the pairs that are finite; 0 where either is constant. [b], [b] -> []."""
    finite = jnp.isfinite(x) & jnp.isfinite(y)
    x, y = _centred(x, finite), _centred(y, finite)
    spread = jnp.sqrt(jnp.sum(jnp.square(x)) * jnp.sum(jnp.square(y)))
    return jnp.sum(x * y) / jnp.where(spread > 0, spread, 1.0)


def mean_absolute_error(predicted: Array, losses: Array) -> Array:
    """Mean |predicted - loss| over the pairs that are finite. [b], [b] -> []."""
    error = jnp.abs(predicted - losses)
    return _mean(error, jnp.isfinite(error))


def _mean(values: Array, where: Array) -> Array:
    """Mean over `where`; 0 where that is empty."""
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)


def _centred(values: Array, where: Array) -> Array:
    """Deviations from the mean, the largest scaled to 1; exactly 0 where all are equal."""
    values = values - values[jnp.argmax(where)]  # a constant leaves no rounding error
    deviations = jnp.where(where, values - _mean(values, where), 0.0)
    largest = jnp.max(jnp.abs(deviations))
    return deviations / jnp.where(largest > 0, largest, 1.0)
