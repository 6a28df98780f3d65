"""Scores known beforehand."""

import jax.numpy as jnp

from isjax.base import Array, Scorer
from isjax.scorers._by_history import stateless
from isjax.scorers._common import by_id

__all__ = ["given", "uniform"]


def uniform() -> Scorer:
    """Scores every example one. Use it for a baseline; it costs nothing.

    Returns:
        A `Scorer` without a buffer.
    """
    return stateless(lambda rows: jnp.ones(rows.count.shape, jnp.float32), history=0)


def given(scores: Array) -> Scorer:
    """Scores each example by a number given beforehand.

    Use it for importances that do not change during training. It costs one lookup per example.

    Args:
        scores: [N], one for each example of the data set. An id that is N or more scores NaN, and
            is not drawn.

    Returns:
        A `Scorer` without a buffer, whose state is a copy of `scores`.
    """
    return by_id(scores, lambda known, rows: known)
