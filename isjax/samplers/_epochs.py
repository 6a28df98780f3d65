"""`epochs`: the pool is the next stretch of a shuffled data set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax._numerics.leading_axis import extend, split
from isjax.base import Array, Batch, Draw, Params, PyTree, Sampler, require_integer, take
from isjax.samplers._importance import require_whole, span_of_inner, step_of_inner
from isjax.samplers._refusals import refuse_wrong_sample, refuse_wrong_update

__all__ = ["epochs"]


class EpochState(NamedTuple):
    """State of `epochs`.

    Attributes:
        inner: the sampler's state.
        order: [N] int32, the data set as shuffled for this epoch.
    """

    inner: PyTree
    order: Array

    step, span = step_of_inner, span_of_inner

    def split(self, parts: int, size: int) -> "EpochState":
        """An order for each part; see `isjax._numerics.leading_axis.split`."""
        if size % parts:
            raise ValueError(
                f"epochs: {size} examples are not a multiple of {parts} parts; leave some out, or "
                "choose another number of parts"
            )
        order = jnp.arange(size // parts, dtype=jnp.int32)
        return EpochState(split(self.inner, parts), jnp.broadcast_to(order, (parts, order.size)))

    def extend(self, old: "EpochState", size: int) -> "EpochState":
        """The order of the epoch, then the new examples; see `isjax._numerics.leading_axis`."""
        return EpochState(extend(self.inner, old.inner), self.order.at[:size].set(old.order))


def epochs(sampler: Sampler, pool_size: int) -> Sampler:
    """Takes the next stretch of the shuffled data set as the pool: all are looked at equally often.

    Each epoch has a new order. The rest at its end, less than a pool, is left out. The order takes
    4 bytes per example. If `sample` gets `ids`, it draws from these, and that step's stretch is
    left out.

    Args:
        sampler: draws from the pool.
        pool_size: B. With B = b and `scorers.uniform()`, each example is trained on once an epoch.

    Returns:
        A `Sampler` with a pool of its own.

    Raises:
        ValueError: here if `sampler` has a pool of its own or B < 1; at `init` if B exceeds the
            data set; at `sample` if the batch is not the whole data set.
    """
    if sampler.own_pool:
        raise ValueError("epochs: the sampler has a pool of its own already; pass one without")
    require_integer("epochs: pool_size", pool_size)
    if pool_size < 1:
        raise ValueError(f"epochs: pool_size is {pool_size}; look at 1 example or more")

    def check(size: int) -> None:
        if size < pool_size:
            raise ValueError(
                f"epochs: a pool of {pool_size} is more than the {size} examples; "
                f"choose at most {size}"
            )

    def init(key: Array, num_examples: int) -> EpochState:
        inner = sampler.init(key, num_examples)
        check(num_examples)
        return EpochState(inner, jnp.arange(num_examples, dtype=jnp.int32))

    def next_stretch(key: Array, state: EpochState) -> tuple[Array, Array]:
        """The ids of the pool [B], and the order, shuffled where an epoch begins."""
        size = state.order.shape[0]
        check(size)
        number = state.step % (size // pool_size)
        order = jax.lax.cond(
            number == 0,
            lambda: jax.random.permutation(key, state.order),
            lambda: state.order,
        )
        return jax.lax.dynamic_slice(order, (number * pool_size,), (pool_size,)), order

    def sample(
        key: Array,
        state: EpochState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, EpochState]:
        refuse_wrong_sample(key, state)
        shuffle_key, own_key = jax.random.split(jax.random.fold_in(key, state.step))
        stretch, order = next_stretch(shuffle_key, state)
        if ids is None:
            require_whole(batch, state.span, "epochs")
            key, ids, batch = own_key, stretch, take(batch, stretch)
        draw, inner = sampler.sample(key, state.inner, ids, batch, params)
        return draw, EpochState(inner, order)

    def update(state: EpochState, draw: Draw, losses: Array, batch: Batch = None) -> EpochState:
        refuse_wrong_update(state, draw, losses)
        return state._replace(inner=sampler.update(state.inner, draw, losses, batch))

    def reweigh(state: EpochState, draw: Draw, losses: Array) -> Array:
        return sampler.weigh(state.inner, draw, losses)

    return Sampler(
        init,
        sample,
        update,
        sampler.batch_size,
        reweigh if sampler.reweigh else None,
        own_pool=True,
    )
