"""Changes to a sampler's memory from outside: losses set, examples excluded, examples added."""

import jax.numpy as jnp

from isjax._numerics.leading_axis import extend
from isjax.base import Array, Batch, PyTree, Sampler
from isjax.samplers import sum_tree
from isjax.samplers._importance import make_draw, require_ids
from isjax.samplers._lagged import LagState
from isjax.samplers._stratified import StrataState
from isjax.samplers._tree_sampler import TreeState

__all__ = ["exclude", "grow", "set_losses"]


def set_losses(
    sampler: Sampler, state: PyTree, ids: Array, losses: Array, batch: Batch = None
) -> PyTree:
    """Tells a sampler the losses of some examples, as if they had been trained on.

    Use it for losses known from elsewhere, such as an evaluation of the whole data set. In a tree
    it costs O(n log N).

    Args:
        sampler: whose `update` learns the losses.
        state: of the sampler.
        ids: [n] int32 into the data set, any number of them.
        losses: [n] float32.
        batch: the examples, for a scorer that reads them.

    Returns:
        The state. Its step stays as it is.

    Raises:
        TypeError: if the ids are not integers.
        ValueError: if the sampler is stratified or lagged, or there is not one loss per id.
    """
    if sampler.parts > 1 or isinstance(state, LagState):
        raise ValueError(
            "set_losses: a stratified or lagged sampler learns only of the batch that it drew; set "
            "the losses of the sampler inside, before it is wrapped"
        )
    ids = require_ids(ids)
    size = state.span.size
    draw = make_draw(
        state,
        ids,
        ids,
        jnp.full(ids.shape, 1 / size, jnp.float32),
        scores=jnp.ones(ids.shape, jnp.float32),
        pool_size=size,
        k=0.0,
        ess=1.0,
        mass=1.0,
    )
    return sampler.update(state, draw, jnp.asarray(losses, jnp.float32), batch)


def exclude(state: PyTree, ids: Array) -> PyTree:
    """Excludes examples from all further draws of a `tree_sampler`.

    A score of zero is not enough, since smoothing adds to it. Means and weights are then those of
    the examples that are left. The first call changes the structure of the state, so that a jitted
    step compiles again. It costs O(n log N), and O(N) at the first call. A sampler that is given
    its pool needs no such function: leave the ids out of the pool. Batches that `lagged` has chosen
    already stay as they are.

    Args:
        state: of a `tree_sampler`, perhaps inside of wrappers.
        ids: [n] int32 into the data set.

    Returns:
        The state.

    Raises:
        TypeError: if the ids are not integers.
        ValueError: if the state is of another sampler, or stratified.
    """
    if hasattr(state, "inner") and not isinstance(state, StrataState):
        return state._replace(inner=exclude(state.inner, ids))
    if not isinstance(state, TreeState):
        raise ValueError(
            "exclude: only a tree_sampler that is not stratified can exclude ids; leave them out "
            "of the pool, or out of the data"
        )
    return state._replace(scores=sum_tree.exclude(state.scores, require_ids(ids)))


def grow(sampler: Sampler, key: Array, state: PyTree, num_examples: int) -> PyTree:
    """Adds examples to the data set of a sampler.

    New examples take the ids from N on, and score as never seen. A step compiles again for the
    larger data set, so add many at a time. It costs O(N).

    Args:
        sampler: made as before; a scorer with a number for each example, such as `scorers.given`,
            needs those of the new ones, too.
        key: typed PRNG key.
        state: of the sampler, for N examples.
        num_examples: in all, at least N.

    Returns:
        A state of that many examples, in which the first N are known.

    Raises:
        ValueError: if there are fewer than before, or the sampler is stratified.
    """
    if num_examples < state.span.size:
        raise ValueError(
            f"grow: num_examples is {num_examples}, but the sampler knows {state.span.size}; "
            "choose at least as many, and leave examples out by exclude"
        )
    return extend(sampler.init(key, num_examples), state)
