"""Score transforms in optax's shape: `(scores, state) -> (scores, state)`.

Write your own in ten lines:

    def square_root():
        def update(scores, state):
            return jnp.sqrt(scores), state
        return ScoreTransform(stateless, update)
"""

from typing import NamedTuple, cast

import jax.numpy as jnp

from isjax.base import Array, ScalarOrSchedule, Schedule, ScoreTransform
from isjax.distributions import normalize

__all__ = [
    "chain",
    "clip",
    "exponential_rank",
    "identity",
    "inverse_rank",
    "mix_uniform",
    "percentile",
    "power",
    "prune_below_mean",
    "smooth",
    "smooth_by_mean",
    "warm_up",
]


def stateless() -> tuple[()]:
    """`init` of a transform without state."""
    return ()


def identity() -> ScoreTransform:
    """Leaves scores as they are."""
    return ScoreTransform(stateless, lambda scores, state: (scores, state))


def chain(*transforms: ScoreTransform) -> ScoreTransform:
    """Applies transforms from left to right."""

    def init():
        return tuple(transform.init() for transform in transforms)

    def update(scores, state):
        new_state = []
        for transform, own in zip(transforms, state, strict=True):
            scores, own = transform.update(scores, own)
            new_state.append(own)
        return scores, tuple(new_state)

    return ScoreTransform(init, update)


def smooth(constant: float) -> ScoreTransform:
    """Adds c to each score: a mixture with the uniform distribution, which bounds the weights.

    Args:
        constant: c >= 0, in units of the score.
    """
    _require(constant >= 0, "smooth", "constant", constant, ">= 0")
    return ScoreTransform(stateless, lambda scores, state: (scores + constant, state))


class MeanState(NamedTuple):
    """Exponential moving average of the mean score, zero at the start, and its age in steps."""

    average: Array
    step: Array


def smooth_by_mean(constant: float = 0.5, decay: float = 0.9) -> ScoreTransform:
    """Adds c EMA(mean s): additive smoothing that follows the scale of the scores.

    Args:
        constant: c >= 0, a share of the mean score.
        decay: of the moving average, in [0, 1); its bias towards its start is corrected.
    """
    _require(constant >= 0, "smooth_by_mean", "constant", constant, ">= 0")
    _require(0 <= decay < 1, "smooth_by_mean", "decay", decay, "in [0, 1)")

    def init():
        return MeanState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def update(scores, state):
        average = decay * state.average + (1 - decay) * jnp.sum(scores / scores.shape[0])
        step = state.step + 1
        return scores + constant * average / (1 - decay**step), MeanState(average, step)

    return ScoreTransform(init, update)


def power(exponent: float, floor: float = 1e-6) -> ScoreTransform:
    """Raises scores to a power a: above 1 sharpens, 0 is uniform, below 0 prefers low scores.

    Args:
        exponent: a, of any sign.
        floor: with a < 0, scores are raised to at least this (> 0) first.
    """
    _require(floor > 0, "power", "floor", floor, "> 0")
    floor = floor if exponent < 0 else 0.0
    return ScoreTransform(
        stateless, lambda scores, state: (jnp.power(jnp.maximum(scores, floor), exponent), state)
    )


def mix_uniform(share: float) -> ScoreTransform:
    """(1 - e) p + e / B: last in a chain, bounds the weights by 1 / e at k = 1.

    Args:
        share: e in [0, 1], of draws made uniformly. The bound holds for draws with replacement.
    """
    _require(0 <= share <= 1, "mix_uniform", "share", share, "in [0, 1]")

    def update(scores, state):
        return (1 - share) * normalize(scores) + share / scores.shape[0], state

    return ScoreTransform(stateless, update)


def warm_up(steps: int) -> ScoreTransform:
    """Uniform for the first `steps` draws, then the scores themselves."""
    _require(steps >= 0, "warm_up", "steps", steps, ">= 0")

    def update(scores, step):
        return jnp.where(step < steps, jnp.ones_like(scores), scores), step + 1

    return ScoreTransform(lambda: jnp.zeros((), jnp.int32), update)


def clip(low: float = 0.0, high: float = jnp.inf) -> ScoreTransform:
    """Scores between `low` and `high`, in units of the score."""
    _require(0 <= low <= high, "clip", "(low, high)", (low, high), "0 <= low <= high")
    return ScoreTransform(stateless, lambda scores, state: (jnp.clip(scores, low, high), state))


def percentile() -> ScoreTransform:
    """The share of the pool that scores no higher: from 1/B for the lowest to 1 for the highest.

    Equal scores share the higher value. Scores may be of any sign.
    """

    def update(scores, state):
        return jnp.searchsorted(jnp.sort(scores), scores, side="right") / scores.shape[0], state

    return ScoreTransform(stateless, update)


def inverse_rank() -> ScoreTransform:
    """1 / rank, the highest score having rank 1 (arXiv 1511.05952); equal ones in any order."""
    return ScoreTransform(stateless, lambda scores, state: (1 / _rank(scores), state))


def exponential_rank(pressure: ScalarOrSchedule) -> ScoreTransform:
    """exp(-log(s) rank / B): the highest score is drawn nearly s times as often as the lowest.

    The ranking of online batch selection (arXiv 1511.06343), within the pool.

    Args:
        pressure: s >= 1, a number or a schedule of the draws so far; 1 is uniform.
    """
    if not callable(pressure):
        _require(pressure >= 1, "exponential_rank", "pressure", pressure, ">= 1")
    schedule = cast(Schedule, pressure) if callable(pressure) else lambda step: pressure

    def update(scores, step):
        share = (_rank(scores) - 1) / scores.shape[0]
        return jnp.exp(-jnp.log(schedule(step)) * share), step + 1

    return ScoreTransform(lambda: jnp.zeros((), jnp.int32), update)


def _rank(scores: Array) -> Array:
    """1 for the highest score, to B for the lowest. [B] -> [B] float32."""
    order = jnp.argsort(-scores)
    places = jnp.arange(1, scores.shape[0] + 1, dtype=jnp.float32)
    return jnp.zeros_like(places).at[order].set(places)


def prune_below_mean(rate: float = 0.5) -> ScoreTransform:
    """1 - r for a score below the pool's mean, else 1: what InfoBatch keeps (arXiv 2303.04947).

    Args:
        rate: r in [0, 1), the share left out of those below the mean.
    """
    _require(0 <= rate < 1, "prune_below_mean", "rate", rate, "in [0, 1)")

    def update(scores, state):
        below = scores < jnp.sum(scores / scores.shape[0])
        return jnp.where(below, 1 - rate, jnp.ones_like(scores)), state

    return ScoreTransform(stateless, update)


def _require(holds: bool, function: str, name: str, value: object, limit: str) -> None:
    if not holds:
        raise ValueError(f"transforms.{function}: {name} is {value}; choose {limit}")
