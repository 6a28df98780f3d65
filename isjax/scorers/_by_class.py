"""A scorer that remembers the past losses of each class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax._numerics.limits import violated
from isjax.base import Array, Rows, Scorer
from isjax.scorers._common import LabelFn
from isjax.scorers._learned import labels_of

__all__ = ["class_gaussian"]


class ClassState(NamedTuple):
    """State of `class_gaussian`.

    Attributes:
        mean: [classes] float32 moving average of each class's losses.
        square: [classes] float32 moving average of their squares.
    """

    mean: Array
    square: Array


def class_gaussian(num_classes: int, label_fn: LabelFn | None = None, decay: float = 0.9) -> Scorer:
    """Mean + standard deviation of the class's recent losses.

    It follows the authors' `PerClassGaussian` (github.com/idiap/importance-sampling). There the
    losses of a batch enter the averages one by one; here the n losses of a class enter at once, as
    their mean with the weight of n. Averages start at log(classes), the loss of a uniform guess,
    with deviation zero.

    Use it where classes differ in difficulty. It costs nothing, and needs no buffer.

    Args:
        num_classes: classes, numbered from 0.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        decay: of the averages, per observation, in [0, 1).

    Returns:
        A `Scorer` without a buffer; `sample` and `update` need `batch`, to read classes.

    Raises:
        ValueError: if `decay` is outside its range.
    """
    if violated(decay >= 0, decay < 1):
        raise ValueError(f"scorers.class_gaussian: decay is {decay}; choose one in [0, 1)")

    def init(key: Array) -> ClassState:
        mean = jnp.full((num_classes,), jnp.log(num_classes), jnp.float32)
        return ClassState(mean, jnp.square(mean))

    def score(state: ClassState, rows: Rows) -> Array:
        deviation = jnp.sqrt(jnp.maximum(state.square - jnp.square(state.mean), 0.0))
        labels = labels_of(rows, label_fn, "scorers.class_gaussian")
        return jnp.maximum(state.mean + deviation, 0.0)[labels]

    def update(state: ClassState, rows: Rows, losses: Array) -> ClassState:
        labels = labels_of(rows, label_fn, "scorers.class_gaussian")
        finite = jnp.isfinite(losses)
        losses = jnp.where(finite, losses, 0.0)

        def total(values: Array) -> Array:
            return jax.ops.segment_sum(values, labels, num_classes)

        number = total(finite.astype(jnp.float32))
        kept = jnp.power(decay, number)

        def average(old: Array, values: Array) -> Array:
            return kept * old + (1 - kept) * total(values) / jnp.maximum(number, 1)

        return ClassState(average(state.mean, losses), average(state.square, jnp.square(losses)))

    return Scorer(init, score, update, history=0)
