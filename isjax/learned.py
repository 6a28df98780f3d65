"""The learned scorer: a small model that predicts an example's loss from its past."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax.base import Array, Batch, PyTree, Rows, Scorer
from isjax.rows import labels_of

__all__ = ["Network", "learned"]


class Network(NamedTuple):
    """A network over rows, for `learned`.

    Attributes:
        init: `(key) -> params`.
        apply: `(params, rows) -> [B]`, a real number for each row.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Rows], Array]


class LearnedState(NamedTuple):
    """The scorer's own model, trained beside the main one."""

    params: PyTree
    opt_state: optax.OptState


def learned(
    network: Network | None = None,
    optimizer: optax.GradientTransformation | None = None,
    *,
    num_classes: int | None = None,
    label_fn: Callable[[Batch], Array] | None = None,
    history: int = 10,
    log_losses: bool = False,
) -> Scorer:
    """A small model predicts the loss from the past, trained in parallel (arXiv 1706.00043).

    Each update is one optimiser step on the squared error between the predictions for the batch
    just trained, from its rows before write-back, and the losses just observed. Examples never
    seen score `initial_loss`, which their history holds.

    Args:
        network: an `(init, apply)` pair over rows (see `Network`); by default the paper's LSTM.
        optimizer: of the network; by default `optax.adam(1e-3)`.
        num_classes: classes, numbered from 0, that the default network embeds; None = it reads
            losses alone.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        history: H, the past losses that the network reads.
        log_losses: predict log losses: errors then count in proportion.

    Raises:
        ValueError: if `history` is not positive, or `num_classes` is given beside a `network`.
    """
    if history < 1:
        raise ValueError(f"scorers.learned: history is {history}; a network reads at least 1 loss")
    if network is None:
        network = _history_lstm(history, num_classes, label_fn)
    elif num_classes is not None or label_fn is not None:
        raise ValueError(
            "scorers.learned: num_classes and label_fn are for the default network; "
            "leave them out and let your network read rows.batch"
        )
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer

    def compared(output: Array) -> Array:
        return output if log_losses else jax.nn.softplus(output)

    def target(losses: Array) -> Array:
        return jnp.log(jnp.maximum(losses, 1e-6)) if log_losses else losses

    def init(key: Array) -> LearnedState:
        params = network.init(key)
        return LearnedState(params, optimizer.init(params))

    def score(state: LearnedState, rows: Rows) -> Array:
        predicted = compared(network.apply(state.params, rows))
        if log_losses:
            predicted = jnp.exp(jnp.minimum(predicted, 80.0))
        return jnp.where(rows.count > 0, predicted, jnp.maximum(rows.history[:, 0], 0.0))

    def update(state: LearnedState, rows: Rows, losses: Array) -> LearnedState:
        def squared_error(params: PyTree) -> Array:
            error = compared(network.apply(params, rows)) - target(losses)
            return jnp.mean(jnp.square(jnp.where(jnp.isfinite(losses), error, 0.0)))

        grads = jax.grad(squared_error)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return LearnedState(optax.apply_updates(state.params, updates), opt_state)

    return Scorer(init, score, update, history)


def _history_lstm(
    history: int, num_classes: int | None, label_fn: Callable[[Batch], Array] | None
) -> Network:
    """The bundled LSTM as a network over rows."""
    try:
        from isjax.networks import HistoryLSTM
    except ImportError as error:
        raise ImportError(
            "the default network of scorers.learned needs flax: pip install flax, or pass network="
        ) from error
    lstm = HistoryLSTM(num_classes)

    def labels(rows: Rows) -> Array | None:
        return None if num_classes is None else labels_of(rows, label_fn, "scorers.learned")

    def init(key: Array) -> PyTree:
        none_seen = jnp.zeros((1,), jnp.int32)
        return lstm.init(key, jnp.zeros((1, history), jnp.float32), none_seen, none_seen)

    def apply(params: PyTree, rows: Rows) -> Array:
        return jnp.asarray(lstm.apply(params, rows.history, rows.count, labels(rows)))

    return Network(init, apply)
