"""The past losses of every example: the only scatter by id."""

from typing import NamedTuple

import jax.numpy as jnp

from isjax.base import Array


class ScoreBuffer(NamedTuple):
    """The last `H` losses of each of `N` examples; without arrays for a scorer with H = 0.

    Attributes:
        losses: [N, H] float32, newest first, `initial_loss` where not yet observed.
        count: [N] int32 times observed.
        failed: [N] bool, whether the loss last seen was not finite, and so not observed.
    """

    losses: Array | None = None
    count: Array | None = None
    failed: Array | None = None


def init(num_examples: int, history: int, initial_loss: float = 1.0) -> ScoreBuffer:
    """A buffer in which no example has been seen.

    Args:
        num_examples: N.
        history: H, losses kept per example; 0 keeps nothing and allocates nothing.
        initial_loss: what an unseen example is thought to lose, in units of the loss.
    """
    if not history:
        return ScoreBuffer()
    return ScoreBuffer(
        losses=jnp.full((num_examples, history), initial_loss, jnp.float32),
        count=jnp.zeros((num_examples,), jnp.int32),
        failed=jnp.zeros((num_examples,), bool),
    )


def size(buffer: ScoreBuffer) -> int:
    """N; 0 if nothing is kept."""
    return 0 if buffer.count is None else buffer.count.shape[0]


def read(buffer: ScoreBuffer, ids: Array) -> tuple[Array, Array]:
    """History [B, H] float32, newest first, and count [B] int32 of the examples `ids` [B]."""
    if buffer.losses is None or buffer.count is None:
        return jnp.zeros((*ids.shape, 0), jnp.float32), jnp.zeros(ids.shape, jnp.int32)
    return buffer.losses[ids], buffer.count[ids]


def has_failed(buffer: ScoreBuffer, ids: Array) -> Array:
    """Whether the loss last seen of each example was not finite. [B] -> [B] bool."""
    return jnp.zeros(ids.shape, bool) if buffer.failed is None else buffer.failed[ids]


def write(buffer: ScoreBuffer, ids: Array, losses: Array) -> ScoreBuffer:
    """Puts one new loss in front of each example's history.

    An id drawn several times is observed once, with the mean of its losses: every duplicate
    writes the same row, so the result does not depend on the order of the scatter. NaN and
    infinite losses are left out; an example with no finite loss keeps its row, marked as failed.

    Args:
        buffer: N rows.
        ids: [b] int32, duplicates allowed.
        losses: [b] float32.
    """
    if buffer.losses is None or buffer.count is None or buffer.failed is None:
        return buffer
    loss, observed = _mean_over_duplicates(ids, losses.astype(jnp.float32))
    history, count = read(buffer, ids)
    shifted = jnp.concatenate([loss[:, None], history[:, :-1]], axis=1)
    return ScoreBuffer(
        losses=buffer.losses.at[ids].set(jnp.where(observed[:, None], shifted, history)),
        count=buffer.count.at[ids].set(count + observed),
        failed=buffer.failed.at[ids].set(~observed),
    )


def _mean_over_duplicates(ids: Array, losses: Array) -> tuple[Array, Array]:
    """For each position, the mean finite loss of its id, and whether there was one."""
    # Comparing all pairs sums duplicates in a fixed order on every backend.
    same = (ids[:, None] == ids[None, :]) & jnp.isfinite(losses)[None, :]
    number = jnp.sum(same, axis=1)
    share = losses / jnp.maximum(number, 1)
    return jnp.sum(jnp.where(same, share[None, :], 0.0), axis=1), number > 0
