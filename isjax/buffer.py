"""Score buffer: the past losses of every example."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax.base import Array


class ScoreBuffer(NamedTuple):
    """`H` numbers for each of `N` examples. Has no arrays for a scorer with H = 0.

    Attributes:
        losses: [N, H] float32 last losses, newest first; `initial_loss` where not yet observed.
            None where the scorer remembers other numbers.
        numbers: [N, H] float32 of a scorer that does; None where it remembers losses.
        count: [N] int32 times observed.
        failed: [N] bool, whether the loss last seen was not finite, and so not observed.
        seen: [N] int32 draws made when the example was last observed; 0 = never.
    """

    losses: Array | None = None
    numbers: Array | None = None
    count: Array | None = None
    failed: Array | None = None
    seen: Array | None = None

    def leading_axes(self) -> "ScoreBuffer":
        """See `isjax._numerics.leading_axis.leading_axes`."""
        return jax.tree.map(lambda x: "examples", self)


def init(
    num_examples: int, history: int, initial_loss: float = 1.0, *, keeps_losses: bool = True
) -> ScoreBuffer:
    """Makes a buffer in which no example has been seen.

    Args:
        num_examples: N, of the data set.
        history: H, numbers kept per example; 0 allocates nothing.
        initial_loss: number that stands for a loss not yet observed, in units of the loss.
        keeps_losses: whether the numbers are the last losses.
    """
    if not history:
        return ScoreBuffer()
    kept = jnp.full((num_examples, history), initial_loss, jnp.float32)
    return ScoreBuffer(
        losses=kept if keeps_losses else None,
        numbers=None if keeps_losses else kept,
        count=jnp.zeros((num_examples,), jnp.int32),
        failed=jnp.zeros((num_examples,), bool),
        seen=jnp.zeros((num_examples,), jnp.int32),
    )


def size(buffer: ScoreBuffer) -> int:
    """Number of rows, N; 0 if nothing is kept."""
    return 0 if buffer.count is None else buffer.count.shape[0]


def read(buffer: ScoreBuffer, ids: Array) -> tuple[Array, Array]:
    """Reads history and count of some examples.

    Args:
        buffer: N rows.
        ids: [B] int32.

    Returns:
        History [B, H] float32, newest first, and count [B] int32.
    """
    kept = buffer.numbers if buffer.losses is None else buffer.losses
    if kept is None or buffer.count is None:
        return jnp.zeros((*ids.shape, 0), jnp.float32), jnp.zeros(ids.shape, jnp.int32)
    return kept[ids], buffer.count[ids]


def has_failed(buffer: ScoreBuffer, ids: Array) -> Array:
    """Whether the loss last seen of each example was not finite. [B] -> [B] bool."""
    return jnp.zeros(ids.shape, bool) if buffer.failed is None else buffer.failed[ids]


def age(buffer: ScoreBuffer, ids: Array, step: Array | int) -> Array:
    """Draws since each example was last observed, after `step` draws; `step` if never. [B] int32.

    The batch of the last draw has age 1 when the next one is made.
    """
    seen = jnp.zeros(ids.shape, jnp.int32) if buffer.seen is None else buffer.seen[ids]
    return step - seen + (seen > 0).astype(jnp.int32)


def shift(history: Array, count: Array, losses: Array) -> Array:
    """Puts one new loss in front of each history: [b, H], [b], [b] -> [b, H]."""
    del count
    return jnp.concatenate([losses[:, None], history[:, :-1]], axis=1)


def write(
    buffer: ScoreBuffer,
    ids: Array,
    losses: Array,
    step: Array | int = 0,
    remember: Callable[[Array, Array, Array], Array] = shift,
) -> ScoreBuffer:
    """Lets each example remember a new loss.

    An id drawn several times is observed once, with the mean of its losses: every duplicate
    writes the same row, so the result does not depend on the order of the scatter. NaN and
    infinite losses are left out; an example with no finite loss keeps its row, marked as failed.

    Args:
        buffer: N rows.
        ids: [b] int32, duplicates allowed.
        losses: [b] float32.
        step: draws so far, the one of this batch included.
        remember: see `Scorer.remember`; by default the loss is put in front of the history.
    """
    all_counts, failed, seen = buffer.count, buffer.failed, buffer.seen
    if all_counts is None or failed is None or seen is None:
        return buffer
    loss, observed = _mean_over_duplicates(ids, losses.astype(jnp.float32))
    history, count = read(buffer, ids)
    remembered = jnp.where(observed[:, None], remember(history, count, loss), history)
    written = lambda kept: None if kept is None else kept.at[ids].set(remembered)  # noqa: E731
    return ScoreBuffer(
        losses=written(buffer.losses),
        numbers=written(buffer.numbers),
        count=all_counts.at[ids].set(count + observed.astype(jnp.int32)),
        failed=failed.at[ids].set(~observed),
        seen=seen.at[ids].set(jnp.where(observed, step, seen[ids])),
    )


def slots(ids: Array) -> Array:
    """Numbers each id such that equal ids share a number and others do not.

    Args:
        ids: [b] int32.

    Returns:
        [b] int32 in [0, b).
    """
    # Unrolled: the binary search has few steps, and a loop over them is slower.
    return jnp.searchsorted(jnp.sort(ids), ids, method="scan_unrolled")


def counts(ids: Array) -> Array:
    """Counts how often each id occurs in the batch.

    Args:
        ids: [b] int32.

    Returns:
        [b] int32, at least 1.
    """
    slot = slots(ids)
    return jnp.zeros(ids.shape, jnp.int32).at[slot].add(1)[slot]


def _mean_over_duplicates(ids: Array, losses: Array) -> tuple[Array, Array]:
    """For each position, the mean finite loss of its id, and whether there was one."""
    slot, finite = slots(ids), jnp.isfinite(losses)
    number = jnp.zeros(ids.shape, jnp.int32).at[slot].add(finite.astype(jnp.int32))[slot]
    share = jnp.where(finite, losses, 0.0) / jnp.maximum(number, 1).astype(jnp.float32)
    return jnp.zeros(ids.shape, jnp.float32).at[slot].add(share)[slot], number > 0
