"""Score buffer: the past losses of every example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isjax.base import Array

PAIRS_UP_TO = 2048  # ids of a batch, on an accelerator


class ScoreBuffer(NamedTuple):
    """`H` numbers for each of `N` examples. Has no arrays for a scorer with H = 0.

    Attributes:
        losses: [N, H] float32 last losses, newest first; `initial_loss` where not yet observed.
            [N] for H = 1: a TPU pads a last axis of 1 to 128. None where the scorer remembers other
            numbers.
        numbers: the same of a scorer that does; None where it remembers losses.
        count: [N] int32 times observed.
        failed: [N] int32, 1 where the loss last seen was not finite, and so not observed, else 0.
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
    shape = (num_examples,) if history == 1 else (num_examples, history)
    kept = jnp.full(shape, initial_loss, jnp.float32)
    return ScoreBuffer(
        losses=kept if keeps_losses else None,
        numbers=None if keeps_losses else kept,
        count=jnp.zeros((num_examples,), jnp.int32),
        failed=jnp.zeros((num_examples,), jnp.int32),
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
    return kept[ids].reshape(*ids.shape, -1), buffer.count[ids]


def last_loss(buffer: ScoreBuffer, ids: Array) -> Array | None:
    """The newest loss of some examples, [B] -> [B] float32; None where no losses are kept."""
    losses = buffer.losses
    if losses is None:
        return None
    return losses[ids] if losses.ndim == 1 else losses[ids, 0]


def has_failed(buffer: ScoreBuffer, ids: Array) -> Array:
    """Whether the loss last seen of each example was not finite. [B] -> [B] bool."""
    return jnp.zeros(ids.shape, bool) if buffer.failed is None else buffer.failed[ids] > 0


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

    def written(kept: Array | None) -> Array | None:
        return kept if kept is None else kept.at[ids].set(remembered.reshape(-1, *kept.shape[1:]))

    return ScoreBuffer(
        losses=written(buffer.losses),
        numbers=written(buffer.numbers),
        count=all_counts.at[ids].set(count + observed.astype(jnp.int32)),
        failed=failed.at[ids].set((~observed).astype(jnp.int32)),
        seen=seen.at[ids].set(jnp.where(observed, step, seen[ids])),
    )


def counts(ids: Array) -> Array:
    """Counts how often each id occurs in the batch.

    Args:
        ids: [b] int32.

    Returns:
        [b] int32, at least 1.
    """
    return _with_totals(ids, lambda total: total(jnp.ones(ids.shape, jnp.int32)))


def _mean_over_duplicates(ids: Array, losses: Array) -> tuple[Array, Array]:
    """For each position, the mean finite loss of its id, and whether there was one."""

    def mean(total: Callable[[Array], Array]) -> tuple[Array, Array]:
        finite = jnp.isfinite(losses)
        number = total(finite.astype(jnp.int32))
        # Divided before they are added: the sum of large losses may overflow.
        share = jnp.where(finite, losses, 0.0) / jnp.maximum(number, 1).astype(jnp.float32)
        return total(share), number > 0

    return _with_totals(ids, mean)


def _with_totals(ids: Array, function: Callable[[Callable[[Array], Array]], Any]) -> Any:
    """`function` of a function that adds up [b] over equal ids, for each position.

    A CPU finds equal ids by a sort. An accelerator compares all pairs: a sort takes many small
    kernels there.
    """
    by_sort = lambda ids: function(total_by_sort(ids))  # noqa: E731
    if ids.shape[0] > PAIRS_UP_TO:
        return by_sort(ids)
    by_pairs = lambda ids: function(total_by_pairs(ids))  # noqa: E731
    return jax.lax.platform_dependent(ids, cpu=by_sort, default=by_pairs)


def total_by_sort(ids: Array) -> Callable[[Array], Array]:
    """Adds up over equal ids, in O(b log b)."""
    # Unrolled: the binary search has few steps, and a loop over them is slower.
    slot = jnp.searchsorted(jnp.sort(ids), ids, method="scan_unrolled")
    return lambda x: jnp.zeros_like(x).at[slot].add(x)[slot]


def total_by_pairs(ids: Array) -> Callable[[Array], Array]:
    """Adds up over equal ids, in O(b^2)."""
    same = ids[:, None] == ids[None, :]
    return lambda x: jnp.sum(jnp.where(same, x[None, :], 0), axis=1, dtype=x.dtype)
