"""`importance_sampler`: scorer, transform, resampler and weights composed into one `Sampler`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from isjax import buffer, resampling, transforms
from isjax._numerics.finite import if_finite
from isjax.base import (
    Array,
    Batch,
    Draw,
    Params,
    Resampler,
    Rows,
    Sampler,
    SamplerState,
    ScalarOrSchedule,
    Scorer,
    ScoreTransform,
)
from isjax.distributions import effective_sample_size, mean_mass, normalize
from isjax.gradients import check_losses
from isjax.weights import exponent_schedule, importance_weights

__all__ = ["importance_sampler"]


def importance_sampler(
    scorer: Scorer,
    transform: ScoreTransform = transforms.identity(),  # noqa: B008 (an immutable pair)
    *,
    batch_size: int,
    k: ScalarOrSchedule = 1.0,
    resample: Resampler = resampling.systematic,
    initial_loss: float = 1.0,
    rescale: Callable[[Draw], Array] | None = None,
) -> Sampler:
    """Biased importance sampling (arXiv 1706.00043).

    Args:
        scorer: says how important an example is; see `isjax.scorers`.
        transform: reshapes the scores; see `isjax.transforms`.
        batch_size: b, the examples drawn.
        k: exponent of the weights (1 / (B p))^k, a number or a schedule of the sampler's step, of
            which values above 1 count as 1. 1 corrects fully and 0 is no correction; smaller
            prefers harder examples.
        resample: see `isjax.resampling`.
        initial_loss: what an example never seen is thought to lose; the logarithm of the number
            of classes suits classification.
        rescale: `(draw) -> weights`, of the draw as weighted by k: `weights.preserve_mean_score`,
            `weights.divide_by_largest`, or one's own; None = they stay.

    Returns:
        A `Sampler`. Its `sample` takes the pool's `ids` [B]. Without ids the pool is the whole
        data set or, for a scorer that needs no history, the examples of `batch`, of which `ids`
        are then the positions. `batch` (the pool's examples) and `params` are passed on to the
        scorer, which may need them; `update` takes the `batch` that was trained on, and what is
        learned takes effect with the next draw.

    Ids are not checked: JAX reads the last row for an id beyond the data set, and writes nothing.

    Raises:
        TypeError: if `scorer` or `transform` is not one, but perhaps the function that makes it.
        ValueError: here if `batch_size` < 1 or k > 1 (of a schedule, its first value); when
            traced, if the pool is smaller than the batch, the scorer lacks its input, or scores
            or losses are not one for each example.
    """
    require_kind(scorer, Scorer, "scorer")
    require_kind(transform, ScoreTransform, "transform")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; draw at least 1 example")
    exponent = exponent_schedule(k)

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
        ids = everything(state, batch) if ids is None else jnp.asarray(ids)
        pool_size = ids.shape[0]
        if pool_size < batch_size:
            raise ValueError(
                f"a pool of {pool_size} is smaller than the batch of {batch_size}; "
                "enlarge the pool or shrink the batch"
            )
        with jax.named_scope("score"):
            # Whoever differentiates a step wants the gradient of the loss, not of the choice.
            raw = jax.lax.stop_gradient(
                scorer.score(state.scorer, rows_of(state, ids, batch, params))
            )
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
        # Nor must a transform that prefers low scores seek it: it counts as the least of the pool.
        least = jnp.min(jnp.where(worth, transformed, jnp.inf))
        transformed = jnp.where(worth, transformed, jnp.minimum(transformed, least))
        transformed = jnp.where(finite, transformed, 0.0)
        probs = normalize(transformed)
        index, draw_probs = resample(key, probs, batch_size)
        power = jnp.asarray(exponent(state.step), jnp.float32)
        draw = Draw(
            ids=ids[index],
            index=index,
            weights=importance_weights(draw_probs, pool_size, power),
            draw_probs=draw_probs,
            scores=scores[index],
            ess=effective_sample_size(probs) / pool_size,
            nonfinite=jnp.sum(~finite, dtype=jnp.int32),
            pool_size=jnp.int32(pool_size),
            passes=jnp.float32(pool_size * scorer.passes),
            mass=mean_mass(transformed),
            k=power,
        )
        if rescale is not None:
            draw = draw._replace(weights=rescale(draw))
        transform_state = if_finite(transform_state, state.transform)
        return draw, state._replace(step=state.step + 1, transform=transform_state)

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        return observe(scorer, state, draw.ids, losses, batch)

    return Sampler(init, sample, update, keeps_losses=keeps_losses(scorer))


def observe(
    scorer: Scorer, state: SamplerState, ids: Array, losses: Array, batch: Batch
) -> SamplerState:
    """Lets scorer and buffer learn the losses [b] of the examples `ids`, whose data is `batch`."""
    losses = check_losses(losses, ids.shape[0]).astype(jnp.float32)
    # The scorer learns from what was known when the batch was drawn, before these losses.
    with jax.named_scope("learn"):
        drawn = state._replace(step=jnp.maximum(state.step - 1, 0))
        learned = scorer.update(state.scorer, rows_of(drawn, ids, batch), losses)
        learned = if_finite(learned, state.scorer)
    remember = scorer.remember or buffer.shift
    written = buffer.write(state.buffer, ids, losses, state.step, remember)
    return state._replace(scorer=learned, buffer=written)


def keeps_losses(scorer: Scorer) -> bool:
    """Whether what is remembered for the scorer begins with the loss last observed."""
    return scorer.history > 0 and scorer.remember is None


def require_kind(given: Any, kind: type, name: str) -> None:
    """Refuses what is no scorer or transform; `name` is the argument's."""
    if not isinstance(given, kind):
        raise TypeError(
            f"{name} is {getattr(given, '__name__', given)}, no isjax.{kind.__name__}; pass what "
            "its function returns, as in importance_sampler(scorers.last_loss(), "
            "transforms.smooth(0.1), batch_size=128)"
        )


def refuse_ids(ids: Array | None, subject: str) -> None:
    """Refuses a pool from outside; `subject` says who chooses, and where."""
    if ids is not None:
        raise ValueError(f"{subject}; pass no ids, no pool_size")


def require_pool(sampler: Sampler, pool_size: int | None, name: str) -> None:
    """Refuses a presample for a sampler that has a pool of its own, or none for one without."""
    if sampler.own_pool and pool_size is not None:
        raise ValueError(f"{name}: this sampler has a pool of its own; leave pool_size out")
    if not sampler.own_pool and pool_size is None:
        raise ValueError(f"{name}: give pool_size, of the presample to choose from")


def require_whole(batch: Batch, size: int, name: str) -> None:
    """Refuses a batch that is less than the data set of `size`; `name` is for the message.

    It may have more rows than that, of which `isjax.parallel.padding` tells.
    """
    sizes = sorted({leaf.shape[0] for leaf in jax.tree.leaves(batch)})
    if sizes and (sizes[0] < size or len(sizes) > 1):
        wrong = next(number for number in sizes if number != size)
        raise ValueError(
            f"{name}: got a batch of {wrong} examples, but the data set has {size}; pass all of "
            "it, or none"
        )


def rows_of(state: SamplerState, ids: Array, batch: Batch, params: Params = None) -> Rows:
    """What a scorer may see of the examples `ids` [B], of which `batch` holds the data."""
    with jax.named_scope("buffer"):
        history, count = buffer.read(state.buffer, ids)
        age = buffer.age(state.buffer, ids, state.step)
    ids = ids if state.first is None else ids + state.first
    return Rows(history, count, batch, params, ids, age)


def everything(state: SamplerState, batch: Batch) -> Array:
    """The ids of the whole buffer or, where there is none, of the examples in `batch`."""
    size = buffer.size(state.buffer)
    if not size:
        leaves = jax.tree.leaves(batch)
        if not leaves:
            raise ValueError(
                "a scorer without history knows no ids; pass ids=, or batch= to choose from"
            )
        size = leaves[0].shape[0]
    require_whole(batch, size, "importance_sampler")
    return jnp.arange(size, dtype=jnp.int32)
