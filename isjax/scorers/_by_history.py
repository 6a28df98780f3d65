"""Scorers that remember the past losses of each example."""

from collections.abc import Callable

import jax.numpy as jnp

from isjax._numerics.limits import violated
from isjax.base import Array, Rows, Scorer

__all__ = [
    "cached",
    "difficulty",
    "last_loss",
    "loss_change",
    "second_moment",
    "uncertainty",
]


def last_loss(unseen_first: bool = False) -> Scorer:
    """The last loss observed, or `initial_loss` before the first; negative losses score zero.

    Use it first: it costs nothing, and is as stale as the last visit.

    Args:
        unseen_first: whether an example never seen scores as the highest of the pool, if that is
            above `initial_loss`.

    Returns:
        A `Scorer` that keeps one number for each example.
    """

    def score(rows: Rows) -> Array:
        losses = jnp.maximum(rows.history[:, 0], 0.0)
        return jnp.where((rows.count == 0) & unseen_first, jnp.max(losses), losses)

    return stateless(score, history=1)


def cached(staleness: int = 3, smoothing: float = 0.2) -> Scorer:
    """The loss + c for examples seen in the last `staleness` + 1 draws, zero for all others.

    The authors' `CacheSampler` (github.com/idiap/importance-sampling) is this scorer over the whole
    data set, followed by `mix_uniform`. It costs nothing.

    Args:
        staleness: a loss is in the cache for the next `staleness + 1` draws.
        smoothing: c, in units of the loss.

    Returns:
        A `Scorer` that keeps one number for each example.
    """

    def score(rows: Rows) -> Array:
        if rows.age is None:
            raise ValueError("scorers.cached needs rows.age, to know which losses are stale")
        fresh = (rows.count > 0) & (rows.age <= staleness + 1)
        return jnp.where(fresh, smoothing + jnp.maximum(rows.history[:, 0], 0.0), 0.0)

    return stateless(score, history=1)


def difficulty() -> Scorer:
    """The mean of 1 - p over all visits, with p = exp(-loss) the probability of the true class.

    Use it with cross-entropy. It is by Chang et al. 2017 (arXiv 1704.07433), as in the code of
    Arazo et al. 2021 (arXiv 2110.14283). It costs nothing. An example never seen scores as the most
    difficult of the pool.

    Returns:
        A `Scorer` that keeps one number for each example.
    """
    return _of_mean_error(lambda error: error)


def uncertainty() -> Scorer:
    """The product m (1 - m), m the mean of `difficulty`: largest near the decision threshold.

    Use it with cross-entropy. It costs nothing. An example never seen has the largest m of the
    pool.

    Returns:
        A `Scorer` that keeps one number for each example.
    """
    return _of_mean_error(lambda error: error * (1 - error))


def _of_mean_error(score: Callable[[Array], Array]) -> Scorer:
    def of_rows(rows: Rows) -> Array:
        seen = rows.count > 0
        error = jnp.where(seen, rows.history[:, 0], 0.0)
        return score(jnp.where(seen, error, jnp.max(error)))

    return stateless(of_rows, history=1, remember=_mean_error)


def _mean_error(history: Array, count: Array, losses: Array) -> Array:
    """The mean of 1 - exp(-loss) over all visits; the first replaces the initial value."""
    error = -jnp.expm1(-jnp.maximum(losses, 0.0))
    return history + (error[:, None] - history) / (count[:, None] + 1).astype(jnp.float32)


def loss_change(change: float = 0.7, decay: float = 0.9) -> Scorer:
    """The sum s + c d of a moving average s of the losses and their change d.

    s <- a s + (1 - a) loss, starting at the first loss. d = loss - s, with the s before that
    update, is a sum of all changes of the loss, each older one discounted by a. It costs nothing.

    Args:
        change: c, the weight of the changes, in [0, a], so that no score is negative.
        decay: a, in [0, 1).

    Returns:
        A `Scorer` that keeps two numbers for each example.

    Raises:
        ValueError: if `change` or `decay` is outside its range.
    """
    if violated(change >= 0, change <= decay, decay < 1):
        raise ValueError(
            f"scorers.loss_change: (change, decay) is {(change, decay)}; choose "
            "0 <= change <= decay < 1"
        )

    def remember(history: Array, count: Array, losses: Array) -> Array:
        before = jnp.where(count > 0, history[:, 1], losses)
        average = decay * before + (1 - decay) * losses
        return jnp.stack([average + change * (losses - before), average], axis=1)

    return stateless(lambda rows: jnp.maximum(rows.history[:, 0], 0.0), 2, remember=remember)


def second_moment(history: int = 10) -> Scorer:
    """The root of the mean square of the last losses, as in improved diffusion (arXiv 2102.09672).

    Use it where the loss of an id is random at each visit, as that of a timestep of a diffusion
    model: if gradients are as large as losses, no other draw by id has less variance. It costs
    nothing. An id seen fewer than H times scores as the highest of the pool, so that one low loss
    does not keep it from being drawn. Improved diffusion waits until all ids are seen H times.

    Args:
        history: H, the last losses that it remembers, at least 1. Where an id repeats in a batch,
            the mean of its losses counts once.

    Returns:
        A `Scorer` that keeps H numbers for each id.

    Raises:
        ValueError: if `history` is not positive.
    """
    if history < 1:
        raise ValueError(f"scorers.second_moment: history is {history}; choose 1 or more losses")

    def score(rows: Rows) -> Array:
        number = jnp.clip(rows.count, 1, history)
        observed = jnp.arange(history)[None, :] < number[:, None]
        squares = jnp.where(observed, jnp.square(rows.history), 0.0)
        root = jnp.sqrt(jnp.sum(squares, axis=1) / number)
        return jnp.where(rows.count < history, jnp.max(root), root)

    return stateless(score, history)


def stateless(
    score: Callable[[Rows], Array],
    history: int,
    *,
    passes: float = 0.0,
    remember: Callable[[Array, Array, Array], Array] | None = None,
) -> Scorer:
    """A scorer without state, which learns nothing.

    Args:
        score: `(rows) -> scores [B]`.
        history: see `Scorer.history`.
        passes: see `Scorer.passes`.
        remember: see `Scorer.remember`.

    Returns:
        A `Scorer` with an empty state.
    """
    return Scorer(
        init=lambda key: (),
        score=lambda state, rows: score(rows),
        update=lambda state, rows, losses: state,
        history=history,
        remember=remember,
        passes=passes,
    )
