"""Score transforms: they reshape the scores of a pool before the draw.

A transform is a pair of pure functions, as in optax: `init() -> state` and
`update(scores, state) -> (scores, state)`, with `scores` [B] float32. The sampler normalises the
result, p_i = s_i / sum s, so only ratios of scores matter. Each transform costs O(B), those by rank
O(B log B). Combine them with `chain`:

    transform = chain(smooth_by_mean(0.5), mix_uniform(0.1))

- Bound the weights: `smooth`, `smooth_by_mean`, `mix_uniform`, `clip`.
- Sharpen or flatten: `power`.
- Use ranks instead of values: `percentile`, `inverse_rank`, `exponential_rank`.
- Draw uniformly at first: `warm_up`.

A transform of your own takes a few lines:

    def square_root():
        def update(scores, state):
            return jnp.sqrt(scores), state
        return ScoreTransform(stateless, update)
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from isjax._numerics.limits import violated
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
    """Returns the state of a transform that needs none: use it as `init`."""
    return ()


def identity() -> ScoreTransform:
    """Leaves scores as they are: the default of `importance_sampler`."""
    return ScoreTransform(stateless, lambda scores, state: (scores, state))


def chain(*transforms: ScoreTransform) -> ScoreTransform:
    """Applies transforms from left to right.

    Args:
        *transforms: any number of them, chains included; none at all is the identity.

    Returns:
        One transform. Its state is the tuple of their states.
    """

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
    """Adds a constant to each score: s_i + c.

    This mixes the distribution with the uniform one, so that no example is drawn too rarely and
    the weights stay bounded. Use it when the scale of the scores is known and stays the same;
    otherwise use `smooth_by_mean`.

    Args:
        constant: c >= 0, in units of the score.

    Raises:
        ValueError: if c is negative.
    """
    _require("smooth", "constant", constant, ">= 0", constant >= 0)
    return ScoreTransform(stateless, lambda scores, state: (scores + constant, state))


class MeanState(NamedTuple):
    """State of `smooth_by_mean`.

    Attributes:
        average: [] float32, moving average of the mean score; zero at the start, not corrected.
        step: [] int32, updates so far.
    """

    average: Array
    step: Array


def smooth_by_mean(constant: float = 0.5, decay: float = 0.9) -> ScoreTransform:
    """Adds a share of the moving average of the mean score: s_i + c EMA(mean s).

    This is `smooth` with a constant that follows the scores, such as losses that fall in training.
    Where the average equals the pool's mean, a weight at k = 1 is at most (1 + c) / c. A mean above
    ten times the average counts as ten times the average, so that one huge score does no lasting
    harm.

    Args:
        constant: c >= 0, relative to the mean score; 0.5 is a good start.
        decay: decay of the moving average per draw, in [0, 1). Its bias towards its start is
            corrected, so that the first draw uses the pool's own mean.

    Raises:
        ValueError: if c is negative, or the decay lies outside [0, 1).
    """
    _require("smooth_by_mean", "constant", constant, ">= 0", constant >= 0)
    _require("smooth_by_mean", "decay", decay, "in [0, 1)", decay >= 0, decay < 1)

    def init():
        return MeanState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def update(scores, state):
        # Under jit a Python number to an int32 power is float64 if jax_enable_x64 is set.
        correction = lambda step: 1 - jax.lax.pow(jnp.float32(decay), step)  # noqa: E731
        mean, step = jnp.sum(scores / scores.shape[0]), state.step + 1
        highest = 10 * state.average / correction(jnp.maximum(state.step, 1))
        mean = jnp.where(highest > 0, jnp.minimum(mean, highest), mean)
        average = decay * state.average + (1 - decay) * mean
        return scores + constant * average / correction(step), MeanState(average, step)

    return ScoreTransform(init, update)


def power(exponent: float, floor: float = 1e-6) -> ScoreTransform:
    """Raises scores to a power: s_i^a.

    a > 1 sharpens the distribution, 0 < a < 1 flattens it and a = 0 is uniform. a < 0 prefers low
    scores, for example to avoid wrong labels.

    Args:
        exponent: a, of any sign.
        floor: smallest score, > 0, where a < 0: lower scores are replaced by it. Unused where
            a >= 0.

    Raises:
        ValueError: if the floor is not above 0.
    """
    _require("power", "floor", floor, "> 0", floor > 0)

    def update(scores, state):
        least = jnp.where(exponent < 0, floor, 0.0)
        return jnp.power(jnp.maximum(scores, least), exponent), state

    return ScoreTransform(stateless, update)


def mix_uniform(share: float) -> ScoreTransform:
    """Mixes the normalised scores with the uniform distribution: (1 - e) p_i + e / B.

    Put it last in a chain: it then bounds the weights by 1 / e at k = 1, for draws with
    replacement.

    Args:
        share: e in [0, 1], the share of draws that are uniform.

    Raises:
        ValueError: if the share lies outside [0, 1].
    """
    _require("mix_uniform", "share", share, "in [0, 1]", share >= 0, share <= 1)

    def update(scores, state):
        return (1 - share) * normalize(scores) + share / scores.shape[0], state

    return ScoreTransform(stateless, update)


def warm_up(steps: int) -> ScoreTransform:
    """Makes the first draws uniform, then leaves scores as they are.

    Use it while a learned scorer, or stored losses, say nothing yet. The scorer runs all the same;
    `isjax.gate` with `conditions.after` saves its cost, too.

    Args:
        steps: number of uniform draws, >= 0.

    Raises:
        ValueError: if the number is negative.
    """
    _require("warm_up", "steps", steps, ">= 0", steps >= 0)

    def update(scores, step):
        return jnp.where(step < steps, jnp.ones_like(scores), scores), step + 1

    return ScoreTransform(lambda: jnp.zeros((), jnp.int32), update)


def clip(low: float = 0.0, high: float = jnp.inf) -> ScoreTransform:
    """Clips scores to [low, high].

    Args:
        low: lower limit, >= 0, in units of the score.
        high: upper limit, >= `low`; by default there is none.

    Raises:
        ValueError: unless 0 <= low <= high.
    """
    _require("clip", "(low, high)", (low, high), "0 <= low <= high", low >= 0, low <= high)
    return ScoreTransform(stateless, lambda scores, state: (jnp.clip(scores, low, high), state))


def percentile() -> ScoreTransform:
    """Replaces each score by the share of the pool that scores no higher.

    The lowest score becomes 1 / B and the highest 1. Equal scores get the same, higher value.
    Scores may have any sign. Use it where the order of scores is reliable and their scale is not.
    O(B log B).
    """

    def update(scores, state):
        return jnp.searchsorted(jnp.sort(scores), scores, side="right") / scores.shape[0], state

    return ScoreTransform(stateless, update)


def inverse_rank() -> ScoreTransform:
    """Replaces each score by 1 / rank, where the highest score has rank 1 (arXiv 1511.05952).

    Equal scores get consecutive ranks, in any order. Scores may have any sign. O(B log B).
    """
    return ScoreTransform(stateless, lambda scores, state: (1 / _rank(scores), state))


def exponential_rank(pressure: ScalarOrSchedule) -> ScoreTransform:
    """Makes scores fall exponentially with rank: exp(-log(s) rank / B).

    The highest score is drawn nearly s times as often as the lowest. This is the ranking of online
    batch selection (arXiv 1511.06343), applied within the pool. O(B log B).

    Args:
        pressure: s >= 1, a number or a schedule of the draws so far; 1 is uniform. Values of a
            schedule are not checked.

    Raises:
        ValueError: if a number below 1 is given.
    """
    if not callable(pressure):
        _require("exponential_rank", "pressure", pressure, ">= 1", pressure >= 1)
    schedule = cast(Schedule, pressure) if callable(pressure) else lambda step: pressure

    def update(scores, step):
        share = (_rank(scores) - 1) / scores.shape[0]
        return jnp.exp(-jnp.log(schedule(step)) * share), step + 1

    return ScoreTransform(lambda: jnp.zeros((), jnp.int32), update)


def _rank(scores: Array) -> Array:
    """Ranks from 1 for the highest score to B for the lowest: [B] -> [B] float32."""
    order = jnp.argsort(-scores)
    places = jnp.arange(1, scores.shape[0] + 1, dtype=jnp.float32)
    return jnp.zeros_like(places).at[order].set(places)


def prune_below_mean(rate: float = 0.5) -> ScoreTransform:
    """Replaces scores below the pool's mean by 1 - r and the others by 1.

    Those are the probabilities by which InfoBatch (arXiv 2303.04947) keeps examples.

    Args:
        rate: r in [0, 1), the share of examples below the mean that is left out.

    Raises:
        ValueError: if the rate lies outside [0, 1).
    """
    _require("prune_below_mean", "rate", rate, "in [0, 1)", rate >= 0, rate < 1)

    def update(scores, state):
        below = scores < jnp.sum(scores / scores.shape[0])
        return jnp.where(below, 1 - rate, jnp.ones_like(scores)), state

    return ScoreTransform(stateless, update)


def _require(function: str, name: str, value: object, limit: str, *conditions: object) -> None:
    if violated(*conditions):
        raise ValueError(f"transforms.{function}: {name} is {value}; choose {limit}")
