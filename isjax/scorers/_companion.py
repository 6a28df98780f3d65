"""A companion, a small model of the main model's task, scores examples by its own loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax.base import Array, Batch, Params, PyTree, Rows, Scorer
from isjax.gradients import check_losses

__all__ = ["Companion", "companion"]


class Companion(NamedTuple):
    """A small model of the main model's task, for `companion`.

    Attributes:
        init: `(key) -> (params, model_state)`; `model_state` is None if the model has none.
        loss_fn: `(params, model_state, batch, key) -> (losses [b], model_state)`, for training.
        score_fn: `(params, model_state, batch) -> losses [B]`, in evaluation mode.
        passes: its cost per example, as a share of a pass of the main model.
    """

    init: Callable[[Array], tuple[Params, PyTree]]
    loss_fn: Callable[[Params, PyTree, Batch, Array], tuple[Array, PyTree]]
    score_fn: Callable[[Params, PyTree, Batch], Array]
    passes: float = 0.0


class CompanionState(NamedTuple):
    """State of `companion`.

    Attributes:
        key: of the randomness in training, such as dropout.
        step: [] int32 updates so far.
        params: of the companion.
        model_state: of the companion, such as batch statistics.
        opt_state: of its optimiser.
    """

    key: Array
    step: Array
    params: Params
    model_state: PyTree
    opt_state: optax.OptState


def companion(
    model: Companion,
    optimizer: optax.GradientTransformation | None = None,
    *,
    every: int = 4,
) -> Scorer:
    """The loss of a companion, a small model of the same task that is trained beside the main one.

    It is the paper's small model in another form: it reads the example itself in place of its past
    losses. Each update trains it on one in `every` examples of the batch, without weights.

    Use it where examples come once, or where past losses are stale and a pass of the main model
    over the pool is too dear. It costs the companion on the pool, and its gradient on the share of
    the batch; the main model makes no pass for it.

    Args:
        model: the companion; an `isjax.tasks.Task` has its three functions.
        optimizer: of the companion; by default `optax.adam(1e-3)`.
        every: the companion trains on one in this many examples of a batch.

    Returns:
        A `Scorer` without a buffer; `sample` and `update` need the `batch`. Negative losses score
        zero.

    Raises:
        ValueError: if `every` is not positive; when traced, if the batch is missing, or smaller
            than `every`, or the companion returns another shape than one loss for each example.
    """
    if every < 1:
        raise ValueError(f"scorers.companion: every is {every}; choose 1 or more")
    optimizer = optimizer or optax.adam(1e-3)

    def init(key: Array) -> CompanionState:
        init_key, key = jax.random.split(key)
        params, model_state = model.init(init_key)
        step = jnp.zeros((), jnp.int32)
        return CompanionState(key, step, params, model_state, optimizer.init(params))

    def score(state: CompanionState, rows: Rows) -> Array:
        _require_batch(rows)
        losses = model.score_fn(state.params, state.model_state, rows.batch)
        return jnp.maximum(check_losses(losses, rows.count.shape[0]), 0.0).astype(jnp.float32)

    def update(state: CompanionState, rows: Rows, losses: Array) -> CompanionState:
        _require_batch(rows)
        num = losses.shape[0] // every
        if not num:
            raise ValueError(
                f"scorers.companion: a batch of {losses.shape[0]} has no example in every {every}; "
                "choose a smaller every"
            )
        # A batch may be in order of its ids: a stretch of it would be a stretch of the pool.
        chosen = state.step % every + every * jnp.arange(num, dtype=jnp.int32)
        batch = jax.tree.map(lambda x: x[chosen], rows.batch)
        key = jax.random.fold_in(state.key, state.step)

        def mean_loss(params: Params) -> tuple[Array, PyTree]:
            losses, model_state = model.loss_fn(params, state.model_state, batch, key)
            return jnp.mean(check_losses(losses, num)), model_state

        grads, model_state = jax.grad(mean_loss, has_aux=True)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return CompanionState(state.key, state.step + 1, params, model_state, opt_state)

    return Scorer(init, score, update, history=0, passes=model.passes)


def _require_batch(rows: Rows) -> None:
    if rows.batch is None:
        raise ValueError(
            "scorers.companion runs the companion on the examples, but got no batch; pass batch= "
            "to sampler.sample and sampler.update"
        )
