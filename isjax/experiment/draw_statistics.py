"""Draw statistics of a run: kept on the device, a few operations a step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isjax.base import Array, Batch, Draw, PyTree

__all__ = ["Record", "init", "latest", "observe", "record_draws"]

_KEPT = 4096


class Record(NamedTuple):
    """The draws of a run.

    Attributes:
        count: int32[N], how often each example was drawn.
        scores: float32[K], of the last K examples drawn, a ring buffer.
        losses: float32[K], observed for them.
        probs: float32[K], their probabilities times the pool size: 1 = as likely as in a uniform
            draw, 0 = this place of the ring is empty.
        place: int32[], of the next draw in the ring.
    """

    count: Array
    scores: Array
    losses: Array
    probs: Array
    place: Array

    def leading_axes(self) -> PyTree:
        """`count` has an entry for each example; see `base.leading_axes`."""
        return jax.tree.map(lambda x: "whole", self)._replace(count="examples")


def init(num_examples: int, kept: int = _KEPT) -> Record:
    """The record before the first draw.

    Args:
        num_examples: N.
        kept: K, the last draws whose scores, losses and probabilities are kept.
    """
    rings = (jnp.zeros((kept,), jnp.float32) for _ in range(3))
    return Record(jnp.zeros((num_examples,), jnp.int32), *rings, jnp.zeros((), jnp.int32))


def observe(record: Record, draw: Draw, losses: Array) -> Record:
    """Adds a draw to the record.

    Args:
        record: so far.
        draw: of b examples; if b > K, the ring keeps only the first K.
        losses: float[b], observed for the draw.

    Returns:
        The record after the draw.
    """
    kept = record.scores.shape[0]
    size = min(draw.ids.shape[0], kept)
    place = (record.place + jnp.arange(size, dtype=jnp.int32)) % kept

    def write(ring: Array, values: Array) -> Array:
        return ring.at[place].set(values[:size].astype(jnp.float32))

    return Record(
        count=record.count.at[draw.ids].add(1),
        scores=write(record.scores, draw.scores),
        losses=write(record.losses, losses),
        probs=write(record.probs, draw.draw_probs * draw.pool_size),
        place=(record.place + size) % kept,
    )


def record_draws(
    step: Callable[[Any, Batch], tuple[Any, dict[str, Any]]], *, with_draw: bool = False
) -> Callable[[Any, Batch], tuple[Any, dict[str, Any]]]:
    """Wraps a step so that it records its draws in the `record` of the train state.

    Args:
        step: of `make_train_step`; with `with_draw=True` if the state has a record.
        with_draw: keep the draw among the metrics, if there is one.

    Returns:
        `step(state, data) -> (state, metrics)`.
    """

    @functools.wraps(step)
    def recording(state: Any, data: Batch) -> tuple[Any, dict[str, Any]]:
        state, metrics = step(state, data)
        if state.record is not None:
            with jax.named_scope("diagnose"):
                record = observe(state.record, metrics["draw"], metrics["losses"])
            state = state._replace(record=record)
        left_out = {"losses"} if with_draw else {"draw", "losses"}
        return state, {name: x for name, x in metrics.items() if name not in left_out}

    return recording


def latest(record: Record) -> dict[str, Any]:
    """The last draws of a record.

    Args:
        record: of a run.

    Returns:
        `scores`, `losses` and `probs`: NumPy arrays [<= K], in no particular order.
    """
    rings = {"scores": record.scores, "losses": record.losses, "probs": record.probs}
    rings = jax.device_get(rings)
    return {name: ring[rings["probs"] > 0] for name, ring in rings.items()}
