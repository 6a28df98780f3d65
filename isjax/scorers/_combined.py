"""Scorers made of other scorers, and scores by the source of an example."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from isjax._numerics.limits import violated
from isjax.base import Array, PyTree, Rows, Schedule, Scorer

__all__ = ["learned_sources", "mixture", "power", "product", "sources"]


def product(*scorers: Scorer) -> Scorer:
    """Multiplies the scores of several scorers.

    Use it to weigh a score by what is known beforehand:
    `product(given(weight_of_source), last_loss())`. It costs what its scorers cost.

    Args:
        *scorers: one or more, which remember losses in the same way, or nothing.

    Returns:
        A `Scorer` whose state is the tuple of their states. It keeps as many losses as the scorer
        that reads most.

    Raises:
        ValueError: if there is none, or two remember different numbers of an example.
    """
    return _combined("product", scorers, lambda scores: functools.reduce(jnp.multiply, scores))


def mixture(shares: Sequence[float] | Array, *scorers: Scorer) -> Scorer:
    """Adds the scores of several scorers, each times its share: sum_j a_j s_j.

    Draws then mix the distributions of the scorers, the j-th in proportion to a_j mean(s_j). It
    costs what its scorers cost.

    Args:
        shares: [J] numbers a_j >= 0.
        *scorers: J of them, which remember losses in the same way, or nothing.

    Returns:
        A `Scorer`, as of `product`.

    Raises:
        ValueError: if there are not as many shares as scorers or one is negative, or two scorers
            remember different numbers of an example.
    """
    shares = list(shares)
    if len(shares) != len(scorers) or violated(*(share >= 0 for share in shares)):
        raise ValueError(
            f"scorers.mixture: shares are {shares} for {len(scorers)} scorers; give each one "
            "number of 0 or more"
        )

    def combine(scores: list[Array]) -> Array:
        return sum(
            (share * scored for share, scored in zip(shares, scores, strict=True)),
            jnp.zeros_like(scores[0]),
        )

    return _combined("mixture", scorers, combine)


def power(scorer: Scorer, exponent: float) -> Scorer:
    """Raises the scores of a scorer to a power: s^a.

    Use `power(last_loss(), 0.5)` for squared losses: the root of the loss, `|r|`, is the norm of
    the error, and the gradient 2 r grad(r) of r^2 grows with `|r|`, not with r^2. In an
    `importance_sampler` it does the same as `transforms.power`; a `tree_sampler` takes no
    transforms. It costs what its scorer costs.

    Args:
        scorer: any, of scores >= 0; negative scores count as zero.
        exponent: a >= 0; 0.5 is the root, 0 is uniform.

    Returns:
        A `Scorer` with the state of that scorer. A `tree_sampler` gives examples never seen the
        score `initial_loss` itself, whatever the power.

    Raises:
        ValueError: if the exponent is negative.
    """
    if violated(exponent >= 0):
        raise ValueError(
            f"scorers.power: exponent is {exponent}; choose 0 or more, or transforms.power to "
            "prefer low scores"
        )

    def score(state: PyTree, rows: Rows) -> Array:
        return jnp.power(jnp.maximum(scorer.score(state, rows), 0.0), exponent)

    return scorer._replace(score=score)


class SourceState(NamedTuple):
    """State of `sources`.

    Attributes:
        source: [N] int32 source of each example.
        step: [] int32 updates so far.
    """

    source: Array
    step: Array


def sources(source: Array, shares: Array | Schedule) -> Scorer:
    """Scores examples so that each source gets its share of the draws.

    An example of source s, of which there are n_s, scores share_s N / n_s. Use it alone, or within
    `product`, for data from several sources. It costs a lookup.

    Args:
        source: [N] int, the source of each example, numbered from 0.
        shares: [S] numbers >= 0, of which only ratios matter, or a schedule `(step) -> [S]` of the
            updates so far. In a `tree_sampler` an example follows a schedule when it is visited.

    Returns:
        A `Scorer` without a buffer.

    Raises:
        ValueError: if a source is negative, or has no share; or if a share is negative.
    """
    known = _checked("sources", source)
    schedule = cast(Schedule, shares) if callable(shares) else lambda step: shares
    first = jax.eval_shape(lambda: jnp.asarray(schedule(jnp.zeros((), jnp.int32))))
    highest = known.max(initial=0)
    if len(first.shape) != 1 or first.shape[0] <= highest:
        raise ValueError(
            f"scorers.sources: shares have shape {first.shape}, but sources go up to {highest}; "
            "give one share to each"
        )
    if not callable(shares) and violated(*(share >= 0 for share in shares)):
        raise ValueError(f"scorers.sources: shares are {shares}; choose numbers of 0 or more")

    def init(key: Array) -> SourceState:
        return SourceState(jnp.array(known, jnp.int32), jnp.zeros((), jnp.int32))

    def score(state: SourceState, rows: Rows) -> Array:
        share = jnp.asarray(schedule(state.step), jnp.float32)
        share = share / jnp.maximum(jnp.sum(share), jnp.finfo(jnp.float32).tiny)
        return _of_source(share, known)[state.source[rows.ids]]

    def update(state: SourceState, rows: Rows, losses: Array) -> SourceState:
        return state._replace(step=state.step + 1)

    return Scorer(init, score, update, history=0, by_id=True)


class LearnedSourceState(NamedTuple):
    """State of `learned_sources`.

    Attributes:
        source: [N] int32 source of each example.
        reward: [S] float32 moving average of each source's loss; 0 if not yet observed.
    """

    source: Array
    reward: Array


def learned_sources(
    source: Array, *, rate: float = 1.0, floor: float = 0.1, decay: float = 0.9
) -> Scorer:
    """Scores examples so that sources of higher loss get more of the draws, as a bandit does.

    The reward of a source is a moving average of the mean loss of its examples, over the batches
    that have some. Its share is (1 - floor) softmax(rate reward) + floor / S. Online data mixing
    (arXiv 2312.02406) takes the loss of a source as the reward of a bandit, too; the paper's
    formulas were not seen, and these are ours.

    Use it with a pool and k = 0, so that the weights do not undo the shares, and compare it with
    equal or given shares, which are often as good. It costs a lookup.

    Args:
        source: [N] int, the source of each example, numbered from 0 to S - 1.
        rate: by which rewards count, >= 0, per nat; 0 = equal shares.
        floor: share of the draws that all sources divide equally, in [0, 1].
        decay: of the moving average, per batch, in [0, 1).

    Returns:
        A `Scorer` without a buffer.

    Raises:
        ValueError: if a source is negative, or a number is outside its range.
    """
    known = _checked("learned_sources", source)
    if violated(rate >= 0, floor >= 0, floor <= 1, decay >= 0, decay < 1):
        raise ValueError(
            f"scorers.learned_sources: (rate, floor, decay) is {(rate, floor, decay)}; choose "
            "rate >= 0, floor in [0, 1] and decay in [0, 1)"
        )
    size = int(known.max(initial=0)) + 1

    def init(key: Array) -> LearnedSourceState:
        return LearnedSourceState(jnp.array(known, jnp.int32), jnp.zeros((size,), jnp.float32))

    def score(state: LearnedSourceState, rows: Rows) -> Array:
        share = (1 - floor) * jax.nn.softmax(rate * state.reward) + floor / size
        return _of_source(share, known)[state.source[rows.ids]]

    def update(state: LearnedSourceState, rows: Rows, losses: Array) -> LearnedSourceState:
        finite = jnp.isfinite(losses)
        total, number = (
            jax.ops.segment_sum(x.astype(jnp.float32), state.source[rows.ids], size)
            for x in (jnp.where(finite, losses, 0.0), finite)
        )
        mean = total / jnp.maximum(number, 1.0)
        kept = jnp.where(state.reward == 0, 0.0, decay)  # the first mean counts in full
        reward = jnp.where(number > 0, kept * state.reward + (1 - kept) * mean, state.reward)
        return state._replace(reward=reward)

    return Scorer(init, score, update, history=0, by_id=True)


def _checked(name: str, source: Array) -> np.ndarray:
    """The source of each example, one integer of 0 or more."""
    known = np.asarray(source)
    if known.ndim != 1 or not np.issubdtype(known.dtype, np.integer) or known.min(initial=0) < 0:
        raise ValueError(
            f"scorers.{name}: source is of type {known.dtype} and shape {known.shape}, from "
            f"{known.min(initial=0)}; give one integer of 0 or more per example"
        )
    return known


def _of_source(share: Array, known: np.ndarray) -> Array:
    """Score of an example of each source: share_s N / n_s, [S]."""
    number = np.maximum(np.bincount(known, minlength=share.shape[0]), 1)
    return share * jnp.asarray(len(known) / number, jnp.float32)


def _combined(
    name: str, scorers: tuple[Scorer, ...], combine: Callable[[list[Array]], Array]
) -> Scorer:
    """A scorer that runs several, and combines their scores."""
    if not scorers:
        raise ValueError(f"scorers.{name}: got no scorer; give one or more")
    remembering = [scorer for scorer in scorers if scorer.history]
    ways = {scorer.remember for scorer in remembering}
    history = max((scorer.history for scorer in remembering), default=0)
    if len(ways) > 1 or (ways != {None} and len({each.history for each in remembering}) > 1):
        raise ValueError(
            f"scorers.{name}: these scorers remember different numbers of an example, and a buffer "
            "keeps one kind; combine one of them with scorers that remember nothing"
        )

    def of_each(rows: Rows) -> list[Rows]:
        return [rows._replace(history=rows.history[:, : each.history]) for each in scorers]

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, len(scorers))
        return tuple(each.init(own) for each, own in zip(scorers, keys, strict=True))

    def score(state: PyTree, rows: Rows) -> Array:
        each = zip(scorers, state, of_each(rows), strict=True)
        return combine([scorer.score(own, read).astype(jnp.float32) for scorer, own, read in each])

    def update(state: PyTree, rows: Rows, losses: Array) -> PyTree:
        each = zip(scorers, state, of_each(rows), strict=True)
        return tuple(scorer.update(own, read, losses) for scorer, own, read in each)

    return Scorer(
        init,
        score,
        update,
        history,
        remember=ways.pop() if ways else None,
        passes=sum(scorer.passes for scorer in scorers),
        by_id=any(scorer.by_id for scorer in scorers),
    )
