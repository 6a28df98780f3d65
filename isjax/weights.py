"""Weights that correct the gradient for a draw that is not uniform, fully or in part.

There are three kinds:

- `importance_weights` depends on the draw alone. Every sampler uses it, with its exponent `k`.
- A rescaling, `(draw) -> weights`, changes those weights afterwards: pass `preserve_mean_score` or
  `divide_by_largest` as `rescale=` to `isjax.importance_sampler`.
- A policy, `(draw, losses) -> weights`, also sees the losses of the batch: pass `none()`,
  `biased()`, `adjusted()` or `correcting()` to `isjax.reweight`. These are the four policies of the
  authors' library (github.com/idiap/importance-sampling, `reweighting.py`).

All are [b] float32 and cost O(b), or O(b log b) for `adjusted`. `select_tokens` weighs the tokens
within sequences, [b, T].
"""

import math
from collections.abc import Callable
from typing import cast

import jax
import jax.core
import jax.numpy as jnp

from isjax._numerics.limits import violated
from isjax.base import Array, Draw, ScalarOrSchedule, Schedule
from isjax.buffer import counts
from isjax.resampling import count_draws

__all__ = ["adjusted", "biased", "correcting", "none"]

Policy = Callable[[Draw, Array], Array]


def importance_weights(draw_probs: Array, pool_size: Array | int, k: Array | float = 1.0) -> Array:
    """Importance weights of arXiv 1706.00043: w_i = (1 / (B p_i))^k.

    k = 1 corrects fully: the weighted mean gradient of the batch is an unbiased estimate of the
    pool's mean gradient. k = 0 does not correct. Smaller k prefers harder examples: with scores
    s = L the expected gradient is proportional to the gradient of sum L^(2-k) / (2-k), which tends
    to the largest loss as k -> -inf. `isjax.weighted_value_and_grad` applies the weights.

    Args:
        draw_probs: [b] float, probability per draw of each drawn example; `Draw.draw_probs`.
        pool_size: B, the number of examples drawn from; an int or [] int32.
        k: exponent in (-inf, 1], a number or [] float32; not checked.

    Returns:
        [b] float32; exactly one at k = 0.
    """
    inverse = jnp.asarray(pool_size, jnp.float32) * draw_probs.astype(jnp.float32)
    return jnp.power(inverse, -jnp.asarray(k, jnp.float32))


def exponent_schedule(k: ScalarOrSchedule) -> Schedule:
    """Turns an exponent into a schedule, with values above 1 replaced by 1.

    Args:
        k: a number, or a schedule `(step) -> number`. A traced number is not checked, so that
            `jax.vmap` can run many exponents at once.

    Returns:
        The schedule.

    Raises:
        TypeError: if k is neither a number nor a schedule.
        ValueError: if the first value is above 1, or not finite.
    """
    schedule = cast(Schedule, k) if callable(k) else lambda step: k
    with jax.ensure_compile_time_eval():
        first = schedule(jnp.zeros((), jnp.int32))
    if isinstance(first, str | list | tuple | None) or jnp.ndim(first):
        raise TypeError(f"k is {k!r}; choose a number, or a schedule, `(step) -> number`")
    if not isinstance(first, jax.core.Tracer) and not -math.inf < float(first) <= 1:
        raise ValueError(
            f"k is {float(first)}; choose k <= 1, and finite: 1 corrects the bias fully, smaller "
            "values prefer harder examples"
        )
    return lambda step: jnp.minimum(schedule(step), 1.0)


def preserve_mean(weights: Array, unbiased: Array, scores: Array) -> Array:
    """Rescales weights so that the batch keeps its unbiased weighted mean score.

    Multiplies every w by sum(u s) / sum(w s), where u are the unbiased weights, as the authors'
    code has done from its first commit (July 2017). The direction of the gradient stays; its
    length, and so the effective step size, follows the mean score instead of growing with the
    bias.

    Args:
        weights: [b] float32, the weights to rescale.
        unbiased: [b] float32, the weights at k = 1.
        scores: [b] float32 >= 0, the scores of the drawn examples.

    Returns:
        [b] float32; `weights` themselves where every weighted score is zero.
    """
    kept, wanted = jnp.sum(weights * scores), jnp.sum(unbiased * scores)
    return weights * jnp.where(kept > 0, wanted / jnp.where(kept > 0, kept, 1.0), 1.0)


def preserve_mean_score(draw: Draw) -> Array:
    """Rescales the weights of a draw by `preserve_mean`, with the scores that were predicted.

    Pass it as `rescale=` to `isjax.importance_sampler`: biased draws (k < 1) then take steps of the
    same scale as unbiased ones.

    Args:
        draw: a draw with its weights.

    Returns:
        [b] float32.
    """
    unbiased = importance_weights(draw.draw_probs, draw.pool_size)
    return preserve_mean(draw.weights, unbiased, draw.scores)


def divide_by_largest(draw: Draw) -> Array:
    """Divides the weights of a batch by the largest, so that updates only shrink (1511.05952).

    Pass it as `rescale=` to `isjax.importance_sampler` where large weights make training unstable.

    Args:
        draw: a draw with its weights.

    Returns:
        [b] float32, at most one.
    """
    return draw.weights / jnp.max(draw.weights)


def select_tokens(
    losses: Array,
    reference: Array | float,
    keep: float,
    *,
    mask: Array | None = None,
    key: Array | None = None,
    k: float = 1.0,
    smoothing: float = 0.0,
) -> Array:
    """Weights of the tokens of a batch, by excess loss over a reference model (arXiv 2404.07965).

    The excess is the loss minus that of the reference. It is large where something is left to
    learn: noise costs the reference as much as the model. Of the M tokens that are not masked, the
    n = round(keep M), at least one, with the highest excess get the weight M / n, as in Rho-1; the
    others get zero. With a `key` they are drawn instead, n times, with the probability p that is
    proportional to max(excess, 0) + smoothing mean(max(excess, 0)). A draw adds (M / n) (1 / (M
    p))^k to the weight of its token: 1 / (n p) at k = 1.

    The weights of the top share sum to M, so the loss has the scale of the mean over tokens: of
    losses [b, T], sum(weights losses) / M is the mean over those kept. Drawn at k = 1 it estimates
    without bias the sum of the losses whose p is positive, over M: the mean over all tokens if
    smoothing > 0. At k = 0 the weights sum to M again. Pass no gradient through the weights:
    `losses` here are those of the training batch, under `jax.lax.stop_gradient`.

    Do not select by the raw loss, that is, with a reference of zero: the highest losses are those
    of noise. benchmarks/noisy_text.py has figures. The cost is a sort of b T numbers, or cumulative
    sums with a `key`; the reference comes on top.

    Args:
        losses: [b, T] float, of the tokens of the batch.
        reference: [b, T] float, of the same tokens by the reference model, of any precision.
        keep: share of the tokens, in (0, 1].
        mask: [b, T] bool, False for tokens that must not count, such as padding; None = all count.
        key: typed PRNG key, to draw; None = take the top share.
        k: exponent of the weights of a draw, at most 1.
        smoothing: of the probabilities of a draw, >= 0. Without it a token whose excess is not
            positive is never drawn.

    Returns:
        [b, T] float32. Masked tokens, and those whose excess is not finite, get zero. If no token
        has a positive p, draws are uniform.

    Raises:
        ValueError: if `keep`, `k` or `smoothing` is outside its range, or a shape is another than
            that of the losses.
    """
    if violated(keep > 0, keep <= 1):
        raise ValueError(f"select_tokens: keep is {keep}; choose a share above 0, at most 1")
    _require_exponent("select_tokens", k)
    if violated(smoothing >= 0):
        raise ValueError(f"select_tokens: smoothing is {smoothing}; choose at least 0")
    for name, other in (("reference", reference), ("mask", mask)):
        if other is not None and jnp.ndim(other) and jnp.shape(other) != losses.shape:
            raise ValueError(
                f"select_tokens: {name} has shape {jnp.shape(other)}, but the losses have "
                f"{losses.shape}; give one number for each token"
            )
    excess = losses.astype(jnp.float32) - jnp.asarray(reference).astype(jnp.float32)
    counted = jnp.isfinite(excess) if mask is None else jnp.isfinite(excess) & mask
    total = jnp.sum(counted.astype(jnp.float32))
    number = jnp.maximum(jnp.round(keep * total), 1.0)
    if key is None:
        order = jnp.argsort(jnp.where(counted, -excess, jnp.inf), axis=None)
        first = (jnp.arange(losses.size) < number).astype(jnp.float32)
        kept = jnp.zeros(losses.size).at[order].set(first, unique_indices=True)
        return jnp.where(counted, kept.reshape(losses.shape) * total / number, 0.0)
    scores = jnp.where(counted, jnp.maximum(excess, 0.0), 0.0)
    scores = jnp.where(counted, scores + smoothing * jnp.sum(scores) / total, 0.0)
    scores = jnp.where(jnp.sum(scores) > 0, scores, counted.astype(jnp.float32))
    probs = scores / jnp.sum(scores)
    number = number.astype(jnp.int32)
    draws = count_draws(key, scores.ravel(), number).reshape(losses.shape) / number
    drawable = counted & (probs > 0)
    inverse = 1 / jnp.where(drawable, total * probs, 1.0)
    return jnp.where(drawable, draws * total * jnp.power(inverse, k), 0.0)


def none() -> Policy:
    """Weighs every example by one: no correction.

    Returns:
        A policy for `isjax.reweight`.
    """
    return lambda draw, losses: jnp.ones_like(draw.weights)


def biased(k: float = 0.5) -> Policy:
    """Weighs by (1 / (B p_i))^k, rescaled by `preserve_mean_score`, as the authors' library does.

    Args:
        k: exponent in (-inf, 1].

    Returns:
        A policy for `isjax.reweight`. It ignores the losses and the weights of the draw.

    Raises:
        ValueError: if k is above 1, or not finite.
    """
    _require_exponent("biased", k)

    def policy(draw: Draw, losses: Array) -> Array:
        weights = importance_weights(draw.draw_probs, draw.pool_size, k)
        return preserve_mean_score(draw._replace(weights=weights))

    return policy


def adjusted(k: float = 0.5) -> Policy:
    """Weighs by (1 / (B q_i))^k, with q the probabilities that the true losses would have given.

    q_i = p_i r_i / (1 - sum_batch p + sum_batch p r) with r = loss / score. The sums count each
    drawn example once. Without transforms p = s / S, and the denominator is the authors'
    (S1 + S2) / S: S1 is the sum of the scores outside the batch, S2 that of the losses inside it.
    With additive smoothing p is scaled in the same way. The weights are then rescaled by
    `preserve_mean`, with the losses as scores. A loss that is not finite is replaced by its score.

    Use it where predicted losses are far from the true ones.

    Args:
        k: exponent in (-inf, 1].

    Returns:
        A policy for `isjax.reweight`.

    Raises:
        ValueError: if k is above 1, or not finite.
    """
    _require_exponent("adjusted", k)

    def policy(draw: Draw, losses: Array) -> Array:
        losses = jnp.maximum(jnp.where(jnp.isfinite(losses), losses, draw.scores), 1e-6)
        ratio = losses / jnp.maximum(draw.scores, 1e-6)
        once = 1 / counts(draw.index)
        outside = jnp.maximum(1 - jnp.sum(once * draw.draw_probs), 0.0)
        inside = jnp.sum(once * draw.draw_probs * ratio)
        probs = draw.draw_probs * ratio / (outside + inside)
        unbiased = importance_weights(probs, draw.pool_size)
        weights = importance_weights(probs, draw.pool_size, k)
        return preserve_mean(weights, unbiased, losses)

    return policy


def correcting(low: float = 0.0, high: float = 2.0) -> Policy:
    """Multiplies the draw's weights by score / loss, clipped to [low, high].

    An example whose loss is smaller than predicted then weighs more, one whose loss is larger
    weighs less.

    Args:
        low: least factor, >= 0.
        high: largest factor, >= `low`.

    Returns:
        A policy for `isjax.reweight`.

    Raises:
        ValueError: unless 0 <= low <= high.
    """
    if violated(low >= 0, low <= high):
        raise ValueError(
            f"weights.correcting: (low, high) is {(low, high)}; choose 0 <= low <= high"
        )
    return lambda draw, losses: (
        draw.weights * jnp.clip(draw.scores / jnp.maximum(losses, 1e-6), low, high)
    )


def _require_exponent(function: str, k: float) -> None:
    if violated(-jnp.inf < k, k <= 1):
        raise ValueError(
            f"weights.{function}: k is {k}; choose k <= 1, and finite: 1 corrects the bias fully, "
            "smaller values prefer harder examples"
        )
