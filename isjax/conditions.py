"""When is sampling by importance worth it? Conditions for `combinators.gate`.

The authors' library (github.com/idiap/importance-sampling, `samplers.py`) computes them from the
scores of the pool. Here they are estimated from the losses of the batch just trained, each weighted
by 1 / draw_probs and the weights normalised, so that a closed gate need score nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from isjax.base import Array, PyTree

__all__ = ["after", "mean_loss", "tau", "total_variation", "until"]


class Condition(NamedTuple):
    """Says whether a gate is open.

    Attributes:
        init: `() -> state`.
        update: `(state, losses, share) -> state`, losses [b] >= 0 and finite, and what share of the
            pool each stands for, [b], summing to one.
        is_open: `(state, step) -> [] bool`, after `step` draws.
    """

    init: Callable[[], PyTree]
    update: Callable[[PyTree, Array, Array], PyTree]
    is_open: Callable[[PyTree, Array], Array]


def after(steps: int) -> Condition:
    """Open from draw `steps` on, the first being 0."""
    return _by_step(lambda step: step >= steps)


def until(steps: int) -> Condition:
    """Open for the first `steps` draws."""
    return _by_step(lambda step: step < steps)


def mean_loss(threshold: float, decay: float = 0.9) -> Condition:
    """Open while the mean loss is below `threshold`: once part of the data is mastered.

    With exponentially distributed losses, of rate 1 / mean, as the authors' library thinks of it.
    """
    return _by_average(
        lambda losses, share: jnp.sum(share * losses),
        start=jnp.inf,
        is_open=lambda average: average < threshold,
        decay=decay,
    )


def total_variation(threshold: float = 0.5, decay: float = 0.9) -> Condition:
    """Open while the total variation between losses, normalised, and uniform exceeds `threshold`.

    `(1/2) sum |L_i / sum L - 1/B|` over the pool: the share of draws that importance would move.
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
    """Open while tau exceeds `threshold` (arXiv 1803.00942); see `combinators.break_even`.

    tau^2 = E[g^2] / E[g]^2 >= 1 is by how much sampling by g would cut the gradient's second
    moment.

    Args:
        threshold: 1 opens as soon as anything can be gained.
        decay: of the moving average of tau, which starts at 1.
        importance: g as a function of the losses, [b] -> [b]; None = the losses themselves.
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
    """By a moving average of a statistic of the batch; an infinite `start` has no part in it."""
    if not 0 <= decay < 1:
        raise ValueError(f"conditions: decay is {decay}; choose one in [0, 1)")

    def update(average: Array, losses: Array, share: Array) -> Array:
        now = statistic(losses, share)
        return jnp.where(jnp.isfinite(average), decay * average + (1 - decay) * now, now)

    return Condition(
        init=lambda: jnp.float32(start),
        update=update,
        is_open=lambda average, step: is_open(average),
    )
