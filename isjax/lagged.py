"""`lagged`: a batch is chosen some steps before it is trained on, to be loaded meanwhile."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import buffer, resampling
from isjax.base import (
    Array,
    Batch,
    Draw,
    Params,
    PyTree,
    Sampler,
    SamplerState,
    drawn_weights,
    take,
)
from isjax.sampler import refuse_ids, require_pool

__all__ = ["lagged", "pending"]


class LagState(NamedTuple):
    """The part of `lagged` in `SamplerState.transform`.

    Attributes:
        inner: the sampler's transform state.
        draws: a `Draw` whose arrays have a leading axis d: those made and not yet trained on,
            oldest first.
    """

    inner: PyTree
    draws: Draw


def lagged(sampler: Sampler, lag: int, pool_size: int | None = None) -> Sampler:
    """Chooses at step t, by what is known then, the batch of step t + d.

    The ids of the next d batches are `pending(state)`: part of the state, so that a checkpoint has
    them, and none is lost or drawn twice when training goes on from it. The first d batches are
    drawn when the state is made. Weights are those of the draw as it was made: unbiased at k = 1.

    Args:
        sampler: one that goes by what is remembered, and weighs a draw when it makes it.
        lag: d; 0 = each batch is chosen when it is needed.
        pool_size: B, of the uniform presample that a sampler without a pool of its own chooses
            from.

    Returns:
        A `Sampler` with a pool of its own.

    Raises:
        ValueError: here if d < 0, if a pool is given to a sampler that has one or is lacking for
            one that has none, or if the sampler is gated or weighs by losses; at `init` if it
            remembers nothing, or cannot choose without seeing data or the main model.
    """
    if lag < 0:
        raise ValueError(f"lagged: lag is {lag}; choose 0 steps or more")
    require_pool(sampler, pool_size, "lagged")
    if sampler.weigh is not drawn_weights:
        raise ValueError(
            "lagged: this sampler switches, or weighs by the losses of a batch; put reweight "
            "outside, as in reweight(lagged(...), policy)"
        )

    def choose(key: Array, state: SamplerState, batch: Batch, params: Params):
        if pool_size is None:
            return sampler.sample(key, state, batch=batch, params=params)
        pool_key, key = jax.random.split(key)
        ids = resampling.presample(pool_key, buffer.size(state.buffer), pool_size)
        return sampler.sample(key, state, ids, take(batch, ids), params)

    def init(key: Array, num_examples: int) -> SamplerState:
        key, *keys = jax.random.split(key, lag + 1)
        state = sampler.init(key, num_examples)
        if not buffer.size(state.buffer):
            raise ValueError("lagged: this sampler remembers nothing of the examples it is to find")
        draws = []
        for key in keys:
            draw, state = choose(key, state, None, None)
            draws.append(draw)
        if not lag:
            return state
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *draws)
        return state._replace(transform=LagState(state.transform, stacked))

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        refuse_ids(ids, "lagged draws choose by themselves where to look")
        if not lag:
            return choose(key, state, batch, params)
        inner, draws = state.transform
        new, state = choose(key, state._replace(transform=inner), batch, params)
        later = jax.tree.map(lambda xs, x: jnp.concatenate([xs[1:], x[None]]), draws, new)
        oldest = jax.tree.map(lambda xs: xs[0], draws)
        return oldest, state._replace(transform=LagState(state.transform, later))

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        if not lag:
            return sampler.update(state, draw, losses, batch)
        inner, draws = state.transform
        state = sampler.update(state._replace(transform=inner), draw, losses, batch)
        return state._replace(transform=LagState(state.transform, draws))

    return Sampler(init, sample, update, own_pool=True, take=sampler.take)


def pending(state: SamplerState) -> Array:
    """The ids of the batches to come, of a sampler `lagged` by d > 0: [d, b], next first."""
    return state.transform.draws.ids
