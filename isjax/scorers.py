"""Scorers: how important is each example?"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax.base import Array, Batch, Params, PyTree, Rows, Scorer
from isjax.gradients import check_losses

__all__ = ["grad_norm_bound", "last_loss", "learned", "loss", "uniform"]


def uniform() -> Scorer:
    """Every example is as important as any other."""
    return _fixed(lambda rows: jnp.ones(rows.count.shape, jnp.float32), history=0)


def last_loss() -> Scorer:
    """The loss last observed, and `initial_loss` before that; negative losses count as zero."""
    return _fixed(lambda rows: jnp.maximum(rows.history[:, 0], 0.0), history=1)


def loss(loss_fn: Callable[[Params, Batch], Array]) -> Scorer:
    """The loss itself: the main model runs on the whole pool (arXiv 1706.00043).

    Args:
        loss_fn: `(params, batch) -> losses [B]`, in evaluation mode: with dropout or batch
            statistics of the pool the scores would be noise. Negative losses count as zero. Its
            `params` are what `sampler.sample` was given: in `training.make_train_step`, for a model
            with state, the pair `(params, model_state)`.
    """

    def score(rows: Rows) -> Array:
        _require_model("scorers.loss", rows)
        losses = check_losses(loss_fn(rows.params, rows.batch), rows.count.shape[0])
        return jnp.maximum(losses, 0.0).astype(jnp.float32)

    return _fixed(score, history=0)


def grad_norm_bound(
    logits_fn: Callable[[Params, Batch], Array],
    label_fn: Callable[[Batch], Array] | None = None,
) -> Scorer:
    """||softmax(z) - y||_2, an upper bound on the gradient norm up to a constant factor.

    One forward pass of the main model on the pool (arXiv 1803.00942), for cross-entropy.

    Args:
        logits_fn: `(params, batch) -> logits [B, classes]`, in evaluation mode, with params as in
            `scorers.loss`.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
    """

    def score(rows: Rows) -> Array:
        _require_model("scorers.grad_norm_bound", rows)
        logits = logits_fn(rows.params, rows.batch).astype(jnp.float32)
        if logits.ndim != 2:
            raise ValueError(
                f"scorers.grad_norm_bound: logits_fn returned shape {logits.shape}; "
                "return one row of logits per example, shape (examples, classes)"
            )
        labels = _labels(label_fn, rows, "scorers.grad_norm_bound")
        residual = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
        return jnp.linalg.norm(residual, axis=-1)

    return _fixed(score, history=0)


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


def _fixed(score: Callable[[Rows], Array], history: int) -> Scorer:
    """A scorer that learns nothing."""
    return Scorer(
        init=lambda key: (),
        score=lambda state, rows: score(rows),
        update=lambda state, rows, losses: state,
        history=history,
    )


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
        return None if num_classes is None else _labels(label_fn, rows, "scorers.learned")

    def init(key: Array) -> PyTree:
        none_seen = jnp.zeros((1,), jnp.int32)
        return lstm.init(key, jnp.zeros((1, history), jnp.float32), none_seen, none_seen)

    def apply(params: PyTree, rows: Rows) -> Array:
        return jnp.asarray(lstm.apply(params, rows.history, rows.count, labels(rows)))

    return Network(init, apply)


def _require_model(name: str, rows: Rows) -> None:
    for field in ("params", "batch"):
        if getattr(rows, field) is None:
            raise ValueError(
                f"{name} runs the main model on the pool, but got no {field}; "
                f"pass {field}= to sampler.sample"
            )


def _labels(label_fn: Callable[[Batch], Array] | None, rows: Rows, name: str) -> Array:
    if rows.batch is None:
        raise ValueError(
            f"{name} reads classes from the batch, but got none; "
            "pass batch= to sampler.sample and sampler.update"
        )
    try:
        labels = rows.batch["label"] if label_fn is None else label_fn(rows.batch)
    except (KeyError, TypeError, IndexError):
        if label_fn is not None:
            raise
        raise ValueError(
            f'{name} reads classes from batch["label"], which this batch lacks; '
            "pass label_fn=, a function of the batch"
        ) from None
    if labels.shape != rows.count.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{name} got labels of shape {labels.shape} and type {labels.dtype}; "
            f"it needs one integer per example, shape {rows.count.shape}"
        )
    return labels
