"""Weights that undo a biased draw, wholly or in part.

Those known when a batch is drawn are `Draw.weights`: `importance_weights`, then perhaps a function
`(draw) -> weights` that rescales them (`rescale` of `importance_sampler`). Those that depend on the
losses of the batch are policies `(draw, losses) -> weights`, for `combinators.reweight`: all four
of the authors' library (github.com/idiap/importance-sampling, `reweighting.py`).
"""

import math
from collections.abc import Callable
from typing import cast

import jax
import jax.core
import jax.numpy as jnp

from isjax._numerics.duplicates import times
from isjax.base import Array, Draw, ScalarOrSchedule, Schedule

__all__ = ["adjusted", "biased", "correcting", "none"]

Policy = Callable[[Draw, Array], Array]


def importance_weights(draw_probs: Array, pool_size: Array | int, k: Array | float = 1.0) -> Array:
    """w_i = (1 / (B p_i))^k, the weights of arXiv 1706.00043.

    1 corrects fully: the weighted batch gradient is unbiased for the pool's mean gradient. 0 is no
    correction, and smaller is harder: with scores s = L the expected gradient is proportional to
    that of sum L^(2-k) / (2-k), which tends to the max-loss as k -> -inf.

    Args:
        draw_probs: [b] probability per draw.
        pool_size: B, the examples drawn from.
        k: in (-inf, 1].

    Returns:
        [b] float32; exactly one at k = 0.
    """
    return jnp.power(pool_size * draw_probs.astype(jnp.float32), -jnp.asarray(k, jnp.float32))


def exponent_schedule(k: ScalarOrSchedule) -> Schedule:
    """`k` as a schedule of which values above 1 count as 1.

    One that is traced, for studies of many k at once, is not checked.

    Raises:
        TypeError: if it is neither a number nor a schedule.
        ValueError: if its first value is above 1, or not finite.
    """
    schedule = cast(Schedule, k) if callable(k) else lambda step: k
    with jax.ensure_compile_time_eval():
        first = schedule(jnp.zeros((), jnp.int32))
    if isinstance(first, str | list | tuple | None) or jnp.ndim(first):
        raise TypeError(f"k is {k!r}; choose a number, or a schedule, `(step) -> number`")
    if not isinstance(first, jax.core.Tracer) and not -math.inf < float(first) <= 1:
        raise ValueError(
            f"k is {float(first)}; choose k <= 1, and finite: 1 corrects the bias fully, less "
            "prefers harder examples"
        )
    return lambda step: jnp.minimum(schedule(step), 1.0)


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


def preserve_mean_score(draw: Draw) -> Array:
    """`preserve_mean` by the scores as predicted: a `rescale` of `importance_sampler`."""
    unbiased = importance_weights(draw.draw_probs, draw.pool_size)
    return preserve_mean(draw.weights, unbiased, draw.scores)


def divide_by_largest(draw: Draw) -> Array:
    """The largest weight of the batch becomes one: updates only shrink (arXiv 1511.05952)."""
    return draw.weights / jnp.max(draw.weights)


def none() -> Policy:
    """No correction: each weighs one."""
    return lambda draw, losses: jnp.ones_like(draw.weights)


def biased(k: float = 0.5) -> Policy:
    """(1 / (B p))^k, rescaled by `preserve_mean_score`, as the authors' library has it."""
    _require_exponent("biased", k)

    def policy(draw: Draw, losses: Array) -> Array:
        weights = importance_weights(draw.draw_probs, draw.pool_size, k)
        return preserve_mean_score(draw._replace(weights=weights))

    return policy


def adjusted(k: float = 0.5) -> Policy:
    """(1 / (B q))^k, with q what p would have been, had the true losses of the batch been known.

    q_i = p_i r_i / (1 - sum_batch p + sum_batch p r), r = loss / score, each drawn example counted
    once. Without transforms p = s / S, so that the denominator is (S1 + S2) / S with S1 the scores
    outside of the batch and S2 the losses inside it, the authors' formula; with additive smoothing
    p is scaled all the same. Then rescaled by `preserve_mean`, by the losses; one that is not
    finite is taken to be as predicted.
    """
    _require_exponent("adjusted", k)

    def policy(draw: Draw, losses: Array) -> Array:
        losses = jnp.maximum(jnp.where(jnp.isfinite(losses), losses, draw.scores), 1e-6)
        ratio = losses / jnp.maximum(draw.scores, 1e-6)
        once = 1 / times(draw.index)
        outside = jnp.maximum(1 - jnp.sum(once * draw.draw_probs), 0.0)
        inside = jnp.sum(once * draw.draw_probs * ratio)
        probs = draw.draw_probs * ratio / (outside + inside)
        unbiased = importance_weights(probs, draw.pool_size)
        weights = importance_weights(probs, draw.pool_size, k)
        return preserve_mean(weights, unbiased, losses)

    return policy


def correcting(low: float = 0.0, high: float = 2.0) -> Policy:
    """The draw's weights, times the ratio of predicted to true loss between `low` and `high`.

    An example drawn because its loss was thought larger than it is then weighs more, and one that
    surprises by a large loss weighs less.
    """
    if not 0 <= low <= high:
        raise ValueError(
            f"weights.correcting: (low, high) is {(low, high)}; choose 0 <= low <= high"
        )
    return lambda draw, losses: (
        draw.weights * jnp.clip(draw.scores / jnp.maximum(losses, 1e-6), low, high)
    )


def _require_exponent(function: str, k: float) -> None:
    if not -jnp.inf < k <= 1:
        raise ValueError(
            f"weights.{function}: k is {k}; choose k <= 1, and finite: 1 corrects fully, less "
            "prefers harder examples"
        )
