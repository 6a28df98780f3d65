"""Conditions for `isjax.gate`: when to sample by importance, and when uniformly.

Use `after` and `until` to switch at a given draw, `mean_loss`, `total_variation` or `tau` to start
by the losses, and `error_rate` to end by them. The authors' library
(github.com/idiap/importance-sampling, `samplers.py`) computes `mean_loss`, `total_variation` and
`tau` from the scores of the pool. Here all are estimated from the losses of the last batch, each
with a share proportional to 1 / draw_probs, so that a closed gate scores nothing. Each costs O(b)
per draw.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from isjax._numerics.limits import violated
from isjax.base import Array, PyTree

__all__ = ["after", "error_rate", "mean_loss", "tau", "total_variation", "until"]

_LOG_2 = math.log(2)


class Condition(NamedTuple):
    """Decides whether a gate is open, as pure functions.

    Attributes:
        init: `() -> state`.
        update: `(state, losses, share) -> state`. `losses` [b] float32 are finite and >= 0;
            `share` [b] float32 is the share of the pool that each stands for, summing to one.
        is_open: `(state, step) -> [] bool`, where `step` [] int32 counts the draws so far.
    """

    init: Callable[[], PyTree]
    update: Callable[[PyTree, Array, Array], PyTree]
    is_open: Callable[[PyTree, Array], Array]


def after(steps: float | Array) -> Condition:
    """Opens the gate after a number of draws.

    Args:
        steps: the first draws, which are uniform.

    Returns:
        A condition for `isjax.gate`.
    """
    return _by_step(lambda step: step >= steps)


def until(steps: float | Array) -> Condition:
    """Closes the gate after a number of draws.

    Args:
        steps: the first draws, which are by importance.

    Returns:
        A condition for `isjax.gate`.
    """
    return _by_step(lambda step: step < steps)


def error_rate(
    threshold: float = 0.1, decay: float = 0.9, level: float | Array = _LOG_2
) -> Condition:
    """Opens the gate while many examples have a high loss, and closes it once few have.

    Use it to end importance sampling where what is left would be learned by heart. A classifier
    that is wrong gives the true class a probability of at most one half, a cross-entropy of at
    least log 2. The share of losses above that is therefore close to the train error, and hardly
    ever below it. The gate opens again if the share rises again. The first batch sets the average.

    Args:
        threshold: least share of high losses, in [0, 1].
        decay: decay of the moving average of the share per draw, in [0, 1). With the
            default and uniform batches of 128 its standard error is 0.006 near a share of 0.1.
        level: losses above it are high, in units of the loss; log 2 by default.

    Returns:
        A condition for `isjax.gate`.

    Raises:
        ValueError: if the decay lies outside [0, 1).
    """
    return _by_average(
        lambda losses, share: jnp.sum(jnp.where(losses > level, share, 0.0)),
        start=jnp.inf,
        is_open=lambda average: average > threshold,
        decay=decay,
    )


def mean_loss(threshold: float, decay: float = 0.9) -> Condition:
    """Opens the gate while the mean loss of the pool is below a threshold.

    Use it to start once part of the data is learned. The authors' library has it for losses that
    are exponentially distributed, with rate 1 / mean. The first batch sets the average.

    Args:
        threshold: in units of the loss.
        decay: decay of the moving average of the mean loss per draw, in [0, 1).

    Returns:
        A condition for `isjax.gate`.

    Raises:
        ValueError: if the decay lies outside [0, 1).
    """
    return _by_average(
        lambda losses, share: jnp.sum(share * losses),
        start=jnp.inf,
        is_open=lambda average: average < threshold,
        decay=decay,
    )


def total_variation(threshold: float = 0.5, decay: float = 0.9) -> Condition:
    """Opens the gate while normalised losses are far from uniform, in total variation.

    The distance is `(1/2) sum_i |L_i / sum L - 1/B|` over the pool, between 0 and 1: the share of
    draws that sampling by the loss moves from one example to another.

    Args:
        threshold: least distance, in [0, 1].
        decay: decay of the moving average of the distance per draw, in [0, 1). It starts at 0.

    Returns:
        A condition for `isjax.gate`.

    Raises:
        ValueError: if the decay lies outside [0, 1).
    """

    def statistic(losses: Array, share: Array) -> Array:
        mean = jnp.sum(share * losses)
        relative = losses / jnp.where(mean > 0, mean, 1.0)
        return jnp.where(mean > 0, 0.5 * jnp.sum(share * jnp.abs(relative - 1)), 0.0)

    return _by_average(statistic, 0.0, lambda average: average > threshold, decay)


def tau(
    threshold: float,
    decay: float = 0.9,
    importance: Callable[[Array], Array] | None = None,
) -> Condition:
    """Opens the gate while tau exceeds a threshold (arXiv 1803.00942).

    tau^2 = E[g^2] / E[g]^2 >= 1 over the pool is the factor by which sampling proportional to g
    reduces the second moment of the gradient, if g is the norm of an example's gradient.
    `isjax.break_even` gives the threshold from which scoring a pool pays.

    Args:
        threshold: least tau; 1 opens the gate as soon as anything can be gained.
        decay: decay of the moving average of tau per draw, in [0, 1). It starts at 1.
        importance: g as a function of the losses, [b] -> [b]; None = the losses themselves.

    Returns:
        A condition for `isjax.gate`.

    Raises:
        ValueError: if the decay lies outside [0, 1).
    """

    def statistic(losses: Array, share: Array) -> Array:
        g = losses if importance is None else importance(losses)
        g = g / jnp.maximum(jnp.max(g), jnp.finfo(jnp.float32).tiny)
        mean, square = jnp.sum(share * g), jnp.sum(share * jnp.square(g))
        return jnp.where(mean > 0, jnp.sqrt(square) / jnp.where(mean > 0, mean, 1.0), 1.0)

    return _by_average(statistic, 1.0, lambda average: average > threshold, decay)


def _by_step(is_open: Callable[[Array], Array]) -> Condition:
    return Condition(
        init=lambda: (),
        update=lambda state, losses, share: state,
        is_open=lambda state, step: is_open(step),
    )


def _by_average(
    statistic: Callable[[Array, Array], Array],
    start: float,
    is_open: Callable[[Array], Array],
    decay: float,
) -> Condition:
    """Condition on a moving average of a statistic; an infinite start is replaced by the first."""
    if violated(decay >= 0, decay < 1):
        raise ValueError(f"conditions: decay is {decay}; choose one in [0, 1)")

    def update(average: Array, losses: Array, share: Array) -> Array:
        now = statistic(losses, share)
        return jnp.where(jnp.isfinite(average), decay * average + (1 - decay) * now, now)

    return Condition(
        init=lambda: jnp.float32(start),
        update=update,
        is_open=lambda average, step: is_open(average),
    )
