"""`lagged`: batches are chosen some steps before they are trained on, to be loaded meanwhile."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import resampling
from isjax.base import Array, Batch, Draw, Params, PyTree, Sampler, SamplerState, drawn_weights
from isjax.samplers._importance import refuse_ids, require_pool

__all__ = ["lagged", "pending"]


class LagState(NamedTuple):
    """The part of `lagged` in `SamplerState.transform`.

    Attributes:
        inner: the sampler's transform state.
        draws: a `Draw` whose arrays have a leading axis d + 1: those made and not yet trained on,
            the next one first.
        key: typed PRNG key; the randomness of a draw is `fold_in(key, step)`.
        size: [] int32, N.
    """

    inner: PyTree
    draws: Draw
    key: Array
    size: Array


def lagged(sampler: Sampler, lag: int, pool_size: int | None = None) -> Sampler:
    """Chooses by what is known after step t the batch of step t + 1 + d.

    `sample` gives the next of the batches chosen, by whatever key; `update` learns the losses and
    then chooses one more, so that they take turns. The ids of the d + 1 batches to come are
    `pending(state)`: part of the state, so that a checkpoint has them, and none is lost or drawn
    twice when training goes on from it. The first d + 1 are drawn when the state is made. At d = 0
    a draw knows all that it would without `lagged`, at d > 0 not the last d batches. Weights are
    those of the draw as it was made: unbiased at k = 1.

    Args:
        sampler: one that goes by what is remembered, and weighs a draw when it makes it.
        lag: d.
        pool_size: B, of the uniform presample that a sampler without a pool of its own chooses
            from.

    Returns:
        A `Sampler` with a pool of its own, for `training.make_loaded_step`.

    Raises:
        ValueError: here if d < 0, if a pool is given to a sampler that has one or is lacking for
            one that has none, or if the sampler is gated or weighs by losses; at `init` if the
            pool is larger than the data set, or the sampler cannot choose without seeing data or
            the main model.
    """
    if lag < 0:
        raise ValueError(f"lagged: lag is {lag}; choose 0 steps or more")
    require_pool(sampler, pool_size, "lagged")
    if sampler.weigh is not drawn_weights:
        raise ValueError(
            "lagged: this sampler switches, or weighs by the losses of a batch; put reweight "
            "outside, as in reweight(lagged(...), policy)"
        )

    def choose(key: Array, state: SamplerState, size: Array) -> tuple[Draw, SamplerState]:
        pool_key, draw_key = jax.random.split(jax.random.fold_in(key, state.step))
        ids = None if pool_size is None else resampling.presample(pool_key, size, pool_size)
        draw, state = sampler.sample(draw_key, state, ids)
        return jax.tree.map(jnp.asarray, draw), state

    def init(key: Array, num_examples: int) -> SamplerState:
        key, init_key = jax.random.split(key)
        state, size = sampler.init(init_key, num_examples), jnp.int32(num_examples)
        if pool_size is not None and pool_size > num_examples:
            raise ValueError(
                f"lagged: pool_size is {pool_size}, but there are {num_examples} examples; choose "
                "at most as many"
            )
        state = jax.tree.map(lambda x: jnp.array(x, jnp.asarray(x).dtype), state)
        try:
            state, draws = jax.lax.scan(
                lambda state, _: choose(key, state, size)[::-1], state, length=lag + 1
            )
        except Exception as error:
            raise ValueError(
                f"lagged: this sampler cannot choose by what is remembered alone ({error}); take "
                "one that needs neither the data nor the main model, such as default"
            ) from error
        return state._replace(transform=LagState(state.transform, draws, key, size))

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        del key, batch, params
        refuse_ids(ids, "lagged draws choose by themselves where to look")
        return jax.tree.map(lambda xs: xs[0], state.transform.draws), state

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        inner, draws, key, size = state.transform
        state = sampler.update(state._replace(transform=inner), draw, losses, batch)
        new, state = choose(key, state, size)
        draws = jax.tree.map(lambda xs, x: jnp.concatenate([xs[1:], x[None]]), draws, new)
        return state._replace(transform=LagState(state.transform, draws, key, size))

    return sampler._replace(init=init, sample=sample, update=update, own_pool=True)


def pending(state: SamplerState) -> Array:
    """The ids of the batches to come, of a `lagged` sampler: [d + 1, b] int32, the next first.

    Raises:
        ValueError: if the state is of another.
    """
    parts = jax.tree.leaves(state.transform, is_leaf=lambda part: isinstance(part, LagState))
    for part in parts:
        if isinstance(part, LagState):
            return part.draws.ids
    raise ValueError("this sampler has no batches pending; wrap it, as in lagged(sampler, 2)")
