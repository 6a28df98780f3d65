"""`importance_sampler`: scorer, transform, resampler and weights composed into one `Sampler`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from isjax import buffer, resampling, transforms
from isjax._numerics.finite import if_finite
from isjax.base import (
    Array,
    Batch,
    Draw,
    Params,
    PyTree,
    Resampler,
    Sampler,
    SamplerState,
    ScalarOrSchedule,
    Scorer,
    ScoreTransform,
    take,
)
from isjax.distributions import effective_sample_size, mean_mass, normalize
from isjax.samplers import _memory
from isjax.samplers._checks import (
    require_batch_size,
    require_kind,
    require_pool_of,
    require_whole,
)
from isjax.samplers._draw import make_draw
from isjax.weights import exponent_schedule

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
    require_batch_size(batch_size)
    exponent = exponent_schedule(k)

    def init(key: Array, num_examples: int) -> SamplerState:
        memory = _memory.begin(scorer, key, num_examples, initial_loss)
        return SamplerState(**memory, transform=transform.init())

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        ids, batch = pool_of(state, ids, batch)
        pool_size = ids.shape[0]
        require_pool_of(batch_size, pool_size)
        raw, finite, drawable = _memory.score(scorer, state, ids, batch, params)
        scores = jnp.where(drawable, raw, 0.0).astype(jnp.float32)
        transformed, transform_state = transform.update(scores, state.transform)
        # A transform that prefers low scores must not prefer these: they count as the pool's least.
        least = jnp.min(jnp.where(drawable, transformed, jnp.inf))
        transformed = jnp.where(drawable, transformed, jnp.minimum(transformed, least))
        transformed = jnp.where(finite, transformed, 0.0)
        probs = normalize(transformed)
        index, draw_probs = resample(key, probs, batch_size)
        draw = make_draw(
            ids[index],
            index,
            draw_probs,
            scores=scores[index],
            pool_size=pool_size,
            k=exponent(state.step),
            ess=effective_sample_size(probs) / pool_size,
            mass=mean_mass(transformed),
            last_loss=buffer.last_loss(state.buffer, ids[index]),
            nonfinite=jnp.sum(~finite, dtype=jnp.int32),
            passes=pool_size * scorer.passes,
        )
        if rescale is not None:
            draw = draw._replace(weights=rescale(draw))
        transform_state = if_finite(transform_state, state.transform)
        return draw, state._replace(step=state.step + 1, transform=transform_state)

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        return _memory.observe(scorer, state, draw.ids, losses, batch)

    return Sampler(init, sample, update, batch_size)


def pool_of(state: PyTree, ids: Array | None, batch: Batch) -> tuple[Array, Batch]:
    """The ids of the pool [B], and its examples.

    Without ids the pool is the whole data set or, where nothing is remembered, `batch`.
    """
    if ids is not None:
        return jnp.asarray(ids), batch
    size, leaves = state.span.size, jax.tree.leaves(batch)
    if not buffer.size(_memory.buffer_of(state)) and leaves:
        return jnp.arange(leaves[0].shape[0], dtype=jnp.int32), batch
    require_whole(batch, size, "importance_sampler")
    ids = jnp.arange(size, dtype=jnp.int32)
    padded = leaves and leaves[0].shape[0] > size
    return ids, take(batch, ids) if padded else batch
