"""What a run has drawn so far: kept on the device, a few operations a step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isjax.base import Array, Batch, Draw, PyTree

__all__ = ["Record", "init", "latest", "observe", "recorded"]

_KEPT = 4096


class Record(NamedTuple):
    """The draws of a run.

    Attributes:
        count: [N] int32, how often each example was drawn.
        scores: [K] float32 of the last K draws, in a ring.
        losses: [K] float32 then observed.
        probs: [K] float32, times the size of the pool: 1 = as likely as by uniform draws, 0 = not
            yet drawn.
        place: [] int32 in the ring, of the next draw.
    """

    count: Array
    scores: Array
    losses: Array
    probs: Array
    place: Array

    def leading_axes(self) -> PyTree:
        """The counts have a row for each example; see `base.leading_axes`."""
        return Record("examples", *["whole"] * 4)


def init(num_examples: int, kept: int = _KEPT) -> Record:
    """Nothing drawn yet of N examples; the last `kept` draws are to be kept."""
    rings = (jnp.zeros((kept,), jnp.float32) for _ in range(3))
    return Record(jnp.zeros((num_examples,), jnp.int32), *rings, jnp.zeros((), jnp.int32))


def observe(record: Record, draw: Draw, losses: Array) -> Record:
    """Adds a draw of b examples and their losses [b]; of more than K, the first K are kept."""
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


def recorded(
    step: Callable[[Any, Batch], tuple[Any, dict[str, Any]]], *, with_draw: bool = False
) -> Callable[[Any, Batch], tuple[Any, dict[str, Any]]]:
    """A step that records what it draws in the `record` of its train state, where it has one.

    Args:
        step: of `make_train_step(..., with_draw=True)`, unless there is nothing to record.
        with_draw: whether the draw, if there is one, stays among the metrics.
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
    """Of the last draws `scores`, `losses`, `probs`, NumPy arrays [<= K], in no order."""
    rings = {"scores": record.scores, "losses": record.losses, "probs": record.probs}
    rings = jax.device_get(rings)
    return {name: ring[rings["probs"] > 0] for name, ring in rings.items()}
