"""`checked`: warns of mistakes in a training loop that no error reveals."""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isjax.base import Array, Batch, Draw, Params, PyTree, Sampler
from isjax.samplers._importance import span_of_inner, step_of_inner
from isjax.samplers._refusals import refuse_wrong_sample, refuse_wrong_update

__all__ = ["checked"]

ADVICE = {
    "key": "two draws in a row got the same key, so that presample, dropout and augmentation "
    "repeat; give each step its own, as in jax.random.fold_in(key, step)",
    "update": "a batch was drawn, but its losses were never learned; call state = "
    "sampler.update(state, draw, losses) after each step",
    "state": "two draws were made from the same state; go on with the state that sample returns, "
    "and pass it to update",
    "ids": "the pool has ids that are of no example: they read the last row, and their losses are "
    "lost; pass ids from 0 to num_examples - 1",
    "negative": "some losses are below zero; scorers by the loss count them as zero, so that these "
    "examples are hardly drawn; add a constant, or score by another number",
    "nonfinite": "some losses are NaN or infinite; they are not learned from, and their examples "
    "are not drawn by their scores; look at the data of draw.ids",
}


class CheckedState(NamedTuple):
    """State of `checked`.

    Attributes:
        inner: the sampler's state.
        key: uint32 data of the key of the last draw.
        waiting: [] bool, whether the last draw was not learned from yet.
    """

    inner: PyTree
    key: Array
    waiting: Array

    step, span = step_of_inner, span_of_inner


def checked(sampler: Sampler, data: Batch = None) -> Sampler:
    """Warns of mistakes in a training loop that no error reveals.

    Use it in the first steps of a loop of your own, then take it away: each step calls back to the
    host. It draws what `sampler` draws. It warns, once for each kind:

    - of a key that is used for two draws in a row;
    - of a draw without `update`, or from a state that was drawn from before;
    - of ids that are of no example;
    - of losses that are negative, NaN or infinite.

    Args:
        sampler: to be checked, any.
        data: the data set, a pytree of arrays with leading axis N; None = its size is not checked.

    Returns:
        A `Sampler`.

    Raises:
        ValueError: at `init`, if the data has another number of examples.
    """
    drawn: set[int] = set()
    told: set[str] = set()

    def tell(kind: str) -> None:
        if kind not in told:
            told.add(kind)
            warnings.warn(f"isjax.checked: {ADVICE[kind]}", stacklevel=2)

    def after_sample(step, same_key, waiting, invalid) -> None:
        found = {
            "state": int(step) in drawn,
            "key": same_key and int(step) not in drawn,
            "update": waiting,
            "ids": invalid > 0,
        }
        drawn.add(int(step))
        for kind in found:
            if found[kind]:
                tell(kind)

    def after_update(losses) -> None:
        if np.any(losses < 0):
            tell("negative")
        if not np.all(np.isfinite(losses)):
            tell("nonfinite")

    def init(key: Array, num_examples: int) -> CheckedState:
        for leaf in jax.tree.leaves(data):
            if leaf.shape[0] != num_examples:
                raise ValueError(
                    f"checked: the data has {leaf.shape[0]} examples, but num_examples is "
                    f"{num_examples}; initialise the sampler for those of the data"
                )
        jax.debug.callback(drawn.clear)
        inner = sampler.init(key, num_examples)
        return CheckedState(inner, jax.random.key_data(key), jnp.zeros((), bool))

    def sample(
        key: Array,
        state: CheckedState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, CheckedState]:
        refuse_wrong_sample(key, state)
        draw, inner = sampler.sample(key, state.inner, ids, batch, params)
        data_of_key = jax.random.key_data(key)
        same_key = jnp.all(data_of_key == state.key) & (state.step > 0)
        jax.debug.callback(after_sample, state.step, same_key, state.waiting, draw.info.invalid_ids)
        return draw, CheckedState(inner, data_of_key, jnp.ones((), bool))

    def update(state: CheckedState, draw: Draw, losses: Array, batch: Batch = None) -> CheckedState:
        refuse_wrong_update(state, draw, losses)
        inner = sampler.update(state.inner, draw, losses, batch)
        jax.debug.callback(after_update, losses)
        return CheckedState(inner, state.key, jnp.zeros((), bool))

    def reweigh(state: CheckedState, draw: Draw, losses: Array) -> Array:
        return sampler.weigh(state.inner, draw, losses)

    return sampler._replace(
        init=init, sample=sample, update=update, reweigh=reweigh if sampler.reweigh else None
    )
