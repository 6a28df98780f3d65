"""`lagged`: batches are chosen some steps before they are trained on, to be loaded meanwhile."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import resampling
from isjax.base import Array, Batch, Draw, Params, PyTree, Sampler, require_integer
from isjax.samplers._importance import refuse_ids, span_of_inner, step_of_inner
from isjax.samplers._refusals import (
    refuse_wrong_sample,
    refuse_wrong_update,
    require_pool,
    require_weights_of_the_draw,
)

__all__ = ["lagged", "pending"]


class LagState(NamedTuple):
    """State of `lagged`.

    Attributes:
        inner: the sampler's state.
        draws: a `Draw` whose arrays have a leading axis d + 1: those made and not yet trained on,
            the next one first.
        key: typed PRNG key; the randomness of a draw is `fold_in(key, step)`.
    """

    inner: PyTree
    draws: Draw
    key: Array

    step, span = step_of_inner, span_of_inner

    def split(self, parts: int, size: int) -> "LagState":
        """Refuses; see `isjax._numerics.leading_axis.split`."""
        raise ValueError("put lagged outside, as in lagged(stratified(...), lag)")


def lagged(sampler: Sampler, lag: int, pool_size: int | None = None) -> Sampler:
    """Chooses batches d steps ahead, so that they can be loaded meanwhile.

    The batch of step t + 1 + d is chosen after step t. `sample` returns the next of the batches
    chosen, whatever its key. `update` learns the losses, then chooses one more batch; call the two
    in turns. The state holds the d + 1 batches to come, `pending(state)`: a checkpoint has them,
    and none is lost or drawn twice when training resumes. A draw does not know the losses of the
    last d batches. Its weights are unbiased at k = 1 all the same.

    Args:
        sampler: needs neither data nor model to draw, and its weights do not depend on the losses.
        lag: d, 0 or more.
        pool_size: B, of the uniform presample, for a sampler without a pool of its own.

    Returns:
        A `Sampler` with a pool of its own, for `training.make_loaded_step`.

    Raises:
        ValueError: here if d < 0, if `pool_size` is given to a sampler with a pool of its own or
            missing for one without, or if the sampler is gated or weighs by losses; at `init` if
            the pool is larger than the data set, or the sampler needs data or the main model.
    """
    require_integer("lagged: lag", lag)
    if lag < 0:
        raise ValueError(f"lagged: lag is {lag}; choose 0 steps or more")
    require_pool(sampler, pool_size, "lagged")
    require_weights_of_the_draw(
        sampler, "lagged", "put reweight outside, as in reweight(lagged(...), policy)"
    )

    def choose(key: Array, inner: PyTree) -> tuple[Draw, PyTree]:
        pool_key, draw_key = jax.random.split(jax.random.fold_in(key, inner.step))
        ids = None
        if pool_size is not None:
            ids = resampling.presample(pool_key, inner.span.size, pool_size)
        return sampler.sample(draw_key, inner, ids)

    def init(key: Array, num_examples: int) -> LagState:
        require_integer("num_examples", num_examples)
        if pool_size is not None and pool_size > num_examples:
            raise ValueError(
                f"lagged: pool_size is {pool_size}, but there are {num_examples} examples; choose "
                "at most as many"
            )
        key, init_key = jax.random.split(key)
        inner = sampler.init(init_key, num_examples)
        inner = jax.tree.map(lambda x: jnp.array(x, jnp.asarray(x).dtype), inner)
        try:
            inner, draws = jax.lax.scan(
                lambda inner, _: choose(key, inner)[::-1], inner, length=lag + 1
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"lagged: this sampler cannot draw by its buffer alone ({error}); take "
                "one that needs neither the data nor the main model, such as default"
            ) from error
        return LagState(inner, draws, key)

    def sample(
        key: Array,
        state: LagState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, LagState]:
        del batch, params
        refuse_wrong_sample(key, state)
        refuse_ids(ids, "lagged draws choose by themselves where to look")
        return jax.tree.map(lambda xs: xs[0], state.draws), state

    def update(state: LagState, draw: Draw, losses: Array, batch: Batch = None) -> LagState:
        refuse_wrong_update(state, draw, losses)
        inner = sampler.update(state.inner, draw, losses, batch)
        new, inner = choose(state.key, inner)
        draws = jax.tree.map(lambda xs, x: jnp.concatenate([xs[1:], x[None]]), state.draws, new)
        return LagState(inner, draws, state.key)

    return sampler._replace(init=init, sample=sample, update=update, own_pool=True)


def pending(state: LagState) -> Array:
    """Returns the ids of the batches to come, of a `lagged` sampler.

    Args:
        state: of the sampler.

    Returns:
        [d + 1, b] int32, the next batch first.

    Raises:
        ValueError: if the state is of another sampler.
    """
    if not isinstance(state, LagState):
        raise ValueError("this sampler has no batches pending; wrap it, as in lagged(sampler, 2)")
    return state.draws.ids
