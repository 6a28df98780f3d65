"""`importance_sampler`: scorer, transform, resampler and weights composed into one `Sampler`."""

import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from isjax import buffer, resampling, transforms
from isjax.base import (
    Array,
    Batch,
    Draw,
    Params,
    PyTree,
    Resampler,
    Rows,
    Sampler,
    SamplerState,
    ScalarOrSchedule,
    Schedule,
    Scorer,
    ScoreTransform,
)
from isjax.distributions import effective_sample_size, normalize
from isjax.finite import all_finite
from isjax.gradients import check_losses
from isjax.weights import importance_weights, preserve_mean

__all__ = ["break_even", "gate", "importance_sampler"]


def importance_sampler(
    scorer: Scorer,
    transform: ScoreTransform = transforms.identity(),  # noqa: B008 (an immutable pair)
    *,
    batch_size: int,
    k: ScalarOrSchedule = 1.0,
    resample: Resampler = resampling.systematic,
    initial_loss: float = 1.0,
    preserve_mean_score: bool = False,
) -> Sampler:
    """Biased importance sampling (arXiv 1706.00043).

    Args:
        scorer: says how important an example is; see `isjax.scorers`.
        transform: reshapes the scores; see `isjax.transforms`.
        batch_size: b.
        k: exponent of the weights (1 / (B p))^k, a number or a schedule of the sampler's step, of
            which values above 1 count as 1. 1 corrects fully and 0 is no correction; smaller
            prefers harder examples.
        resample: see `isjax.resampling`.
        initial_loss: what an example never seen is thought to lose; the logarithm of the number
            of classes suits classification.
        preserve_mean_score: rescale the weights as `weights.preserve_mean` does.

    Returns:
        A `Sampler`. Its `sample` takes the pool's `ids` [B]. Without ids the pool is the whole
        data set or, for a scorer that needs no history, the examples of `batch`, of which `ids`
        are then the positions. `batch` (the pool's examples) and `params` are passed on to the
        scorer, which may need them; `update` takes the `batch` that was trained on.

    Ids are not checked: JAX reads the last row for an id beyond the data set, and writes nothing.

    Raises:
        TypeError: if `scorer` or `transform` is not one, but perhaps the function that makes it.
        ValueError: here if `batch_size` < 1 or k > 1 (of a schedule, its first value); when
            traced, if the pool is smaller than the batch, the scorer lacks its input, or scores
            or losses are not one for each example.
    """
    if not isinstance(scorer, Scorer) or not isinstance(transform, ScoreTransform):
        raise TypeError(
            f"got scorer {scorer} and transform {transform}; pass what their functions return, as "
            "in importance_sampler(scorers.last_loss(), transforms.smooth(0.1), batch_size=128)"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; draw at least 1 example")
    exponent = _exponent(k)

    def init(key: Array, num_examples: int) -> SamplerState:
        if num_examples < 1:
            raise ValueError(f"the data set has {num_examples} examples; sampling needs at least 1")
        return SamplerState(
            step=jnp.zeros((), jnp.int32),
            buffer=buffer.init(num_examples, scorer.history, initial_loss),
            scorer=scorer.init(key),
            transform=transform.init(),
        )

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        ids = _everything(state, batch) if ids is None else ids
        pool_size = ids.shape[0]
        if pool_size < batch_size:
            raise ValueError(
                f"a pool of {pool_size} is smaller than the batch of {batch_size}; "
                "enlarge the pool or shrink the batch"
            )
        rows = Rows(*buffer.read(state.buffer, ids), batch, params)
        raw = scorer.score(state.scorer, rows)
        if jnp.shape(raw) != (pool_size,):
            raise ValueError(
                f"the scorer returned shape {jnp.shape(raw)} for a pool of {pool_size}; "
                f"return one score per row, shape ({pool_size},)"
            )
        finite = jnp.isfinite(raw)
        # An example whose loss was NaN would be sought the more the better others are mastered.
        worth = finite & ~buffer.has_failed(state.buffer, ids)
        scores = jnp.where(worth, raw, 0.0).astype(jnp.float32)
        transformed, transform_state = transform.update(scores, state.transform)
        probs = normalize(jnp.where(finite, transformed, 0.0))
        index, draw_probs = resample(key, probs, batch_size)
        weights = importance_weights(draw_probs, pool_size, exponent(state.step))
        if preserve_mean_score:
            unbiased = importance_weights(draw_probs, pool_size)
            weights = preserve_mean(weights, unbiased, scores[index])
        draw = Draw(
            ids=ids[index],
            index=index,
            weights=weights,
            draw_probs=draw_probs,
            scores=scores[index],
            ess=effective_sample_size(probs) / pool_size,
            nonfinite=jnp.sum(~finite, dtype=jnp.int32),
        )
        transform_state = _if_finite(transform_state, state.transform)
        return draw, state._replace(step=state.step + 1, transform=transform_state)

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        losses = check_losses(losses, draw.ids.shape[0]).astype(jnp.float32)
        # The scorer learns from what was known before these losses.
        rows = Rows(*buffer.read(state.buffer, draw.ids), batch)
        learned = scorer.update(state.scorer, rows, losses)
        return state._replace(
            scorer=_if_finite(learned, state.scorer),
            buffer=buffer.write(state.buffer, draw.ids, losses),
        )

    return Sampler(init, sample, update)


class GateState(NamedTuple):
    """The gate's part of `SamplerState.transform`.

    Attributes:
        inner: the gated sampler's transform state.
        tau: [] float32 moving average of tau; 1 = uniform losses, nothing to gain.
    """

    inner: PyTree
    tau: Array


def gate(sampler: Sampler, threshold: float, decay: float = 0.9) -> Sampler:
    """Samples by importance only while that is worth its cost, else uniformly, without scoring.

    tau^2, by how much sampling by loss would cut the gradient's second moment, is estimated from
    the batch's own losses, weighted by 1 / draw_probs, so that the pool need not be scored to know
    it. Following arXiv 1803.00942, with the loss in place of the gradient norm.

    Args:
        sampler: what to switch. While closed its scorer does not run, draws are uniform, of weight
            and score one, its transform stands still, and its `update` goes on learning.
        threshold: open while the average of tau, which is at least 1, exceeds this; see
            `break_even`.
        decay: of the moving average of tau, which starts at 1 (closed).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"gate: decay is {decay}; choose one in [0, 1)")

    def init(key: Array, num_examples: int) -> SamplerState:
        state = sampler.init(key, num_examples)
        return state._replace(transform=GateState(state.transform, jnp.ones((), jnp.float32)))

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        ids = _everything(state, batch) if ids is None else ids
        inner, tau = state.transform

        def opened(state):
            return sampler.sample(key, state, ids, batch, params)

        state = state._replace(transform=inner)
        drawn, _ = jax.eval_shape(opened, state)  # b, which the inner sampler alone knows

        def closed(state):
            probs = jnp.full(ids.shape, 1 / ids.shape[0], jnp.float32)
            index, draw_probs = resampling.systematic(key, probs, drawn.ids.shape[0])
            ones = jnp.ones(index.shape, jnp.float32)
            draw = Draw(ids[index], index, ones, draw_probs, ones, jnp.float32(1), jnp.int32(0))
            return draw, state._replace(step=state.step + 1)

        draw, state = jax.lax.cond(tau > threshold, opened, closed, state)
        return draw, state._replace(transform=GateState(state.transform, tau))

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        inner, tau = state.transform
        state = sampler.update(state._replace(transform=inner), draw, losses, batch)
        tau = decay * tau + (1 - decay) * _tau(losses.astype(jnp.float32), draw.draw_probs)
        return state._replace(transform=GateState(state.transform, tau))

    return Sampler(init, sample, update)


def break_even(pool_size: int, batch_size: int) -> float:
    """(B + 3b) / (3b): the tau from which scoring a pool of B by forward passes pays.

    A backward pass counts as two forward passes (arXiv 1803.00942).
    """
    return (pool_size + 3 * batch_size) / (3 * batch_size)


def _tau(losses: Array, draw_probs: Array) -> Array:
    """sqrt(E[L^2]) / E[L] over the pool, self-normalised; 1 where no loss is positive."""
    usable = jnp.isfinite(losses)
    share = jnp.where(usable, 1 / draw_probs, 0.0)
    losses = jnp.where(usable, jnp.maximum(losses, 0.0), 0.0)
    losses = losses / jnp.maximum(jnp.max(losses), jnp.finfo(jnp.float32).tiny)
    mean, square = jnp.sum(share * losses), jnp.sum(share * jnp.square(losses))
    tau = jnp.sqrt(jnp.sum(share) * square) / jnp.where(mean > 0, mean, 1.0)
    return jnp.where(mean > 0, tau, 1.0)


def _everything(state: SamplerState, batch: Batch) -> Array:
    """The ids of the whole buffer or, where there is none, of the examples in `batch`."""
    size = buffer.size(state.buffer)
    if not size:
        leaves = jax.tree.leaves(batch)
        if not leaves:
            raise ValueError(
                "a scorer without history knows no ids; pass ids=, or batch= to choose from"
            )
        size = leaves[0].shape[0]
    return jnp.arange(size, dtype=jnp.int32)


def _if_finite(new: PyTree, old: PyTree) -> PyTree:
    return jax.lax.cond(all_finite(new), lambda: new, lambda: old)


def _exponent(k: ScalarOrSchedule) -> Schedule:
    """`k` as a schedule, checked at its first value."""
    schedule = cast(Schedule, k) if callable(k) else lambda step: k
    with jax.ensure_compile_time_eval():
        first = float(schedule(jnp.zeros((), jnp.int32)))
    if not -math.inf < first <= 1:
        raise ValueError(
            f"k is {first}; choose k <= 1, and finite: 1 corrects the bias fully, less prefers "
            "harder examples"
        )
    return lambda step: jnp.minimum(schedule(step), 1.0)
