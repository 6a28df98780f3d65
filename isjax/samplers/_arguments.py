"""Checks of the arguments of a sampler's functions, shared by all samplers."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from isjax.base import Array, Batch, Draw, Params, PyTree, Sampler
from isjax.gradients import check_losses, shapes_of


def guarded(sampler: Sampler) -> Sampler:
    """The same sampler, whose functions check the kind and order of their arguments first.

    Args:
        sampler: any.

    Raises:
        TypeError: by `sample`, if key and state are swapped or the ids are not integers [B]; by
            `update`, if arguments are swapped or the losses are no array.
        ValueError: by `update`, if the losses are not one for each example.
    """

    @functools.wraps(sampler.sample)
    def sample(
        key: Array,
        state: PyTree,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, PyTree]:
        if not hasattr(state, "span"):
            wrong = "key and state are swapped" if hasattr(key, "span") else _of_type(state)
            raise TypeError(
                f"sample: {wrong}; call sample(key, state, ids), with the state that init or "
                "update returned"
            )
        ids = None if ids is None else require_ids(ids)
        return sampler.sample(key, state, ids, batch, params)

    @functools.wraps(sampler.update)
    def update(state: PyTree, draw: Draw, losses: Array, batch: Batch = None) -> PyTree:
        if not hasattr(state, "span") or not hasattr(draw, "ids"):
            swapped = hasattr(state, "ids") or hasattr(losses, "ids")
            raise TypeError(
                f"update: {'arguments are swapped' if swapped else _of_type(state)}; call "
                "update(state, draw, losses), with the state and the draw that sample returned"
            )
        return sampler.update(state, draw, check_losses(losses, draw.ids.shape[0]), batch)

    return sampler._replace(sample=sample, update=update)


def _of_type(state: Any) -> str:
    return f"state is of type {type(state).__name__}, not the state of a sampler"


def require_ids(ids: Any) -> Array:
    """Checks that ids are [B] integers, and returns them.

    Raises:
        TypeError: if they are something else, such as a mask or the examples themselves.
    """
    if isinstance(ids, list | range):
        ids = np.asarray(ids)
    integers = hasattr(ids, "dtype") and jnp.issubdtype(ids.dtype, jnp.integer)
    if not integers or ids.ndim != 1:
        raise TypeError(
            f"ids are {shapes_of(ids)}; pass the numbers of the examples in the data set, integers "
            "[B] such as those of presample or jnp.flatnonzero(mask), and the examples themselves, "
            "if the scorer needs them, as batch="
        )
    return jnp.asarray(ids)
