"""Scorers that run the main model on the pool."""

from collections.abc import Callable
from typing import cast

import jax.numpy as jnp

from isjax.base import Array, Batch, Rows, Scorer
from isjax.gradients import el2n, per_example_grad_norms
from isjax.scorers._by_history import stateless
from isjax.scorers._common import (
    LabelFn,
    LogitsFn,
    LossFn,
    by_id,
    model_losses,
    require_evaluation,
    require_model,
)
from isjax.scorers._learned import labels_of

__all__ = ["grad_norm", "grad_norm_bound", "loss", "reducible_loss"]


def loss(loss_fn: LossFn, passes: float = 1.0) -> Scorer:
    """The loss itself, by the main model (arXiv 1706.00043).

    Use it where exact losses are worth a forward pass for each example of the pool.

    Args:
        loss_fn: `(params, batch) -> losses [B]` in evaluation mode: dropout, or batch statistics of
            the pool, would add noise to the scores. Negative losses score zero. `params` are those
            passed to `sampler.sample`; `training.make_train_step` passes the pair
            `(params, model_state)` if the model has state.
        passes: forward passes of the main model per example: less than one for a cheaper view of
            it, see `isjax.scorers.views`.

    Returns:
        A `Scorer` without a buffer; `sample` needs the `batch` and `params` of the pool.

    Raises:
        TypeError: when scored, if the function takes other arguments.
        ValueError: when scored, if params or batch is missing, or `loss_fn` returns another
            shape than [B].
    """

    def score(rows: Rows) -> Array:
        return jnp.maximum(model_losses(loss_fn, rows, "scorers.loss"), 0.0)

    return stateless(score, history=0, passes=passes)


def grad_norm_bound(logits_fn: LogitsFn, label_fn: LabelFn | None = None) -> Scorer:
    """||softmax(z) - y||_2, an upper bound on the gradient norm up to a constant factor.

    Use it with cross-entropy (arXiv 1803.00942). The same number is known as `el2n` (arXiv
    2107.07075). It costs one forward pass of the main model per example.

    Args:
        logits_fn: `(params, batch) -> logits [B, classes]` in evaluation mode, with params as in
            `scorers.loss`.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.

    Returns:
        A `Scorer` without a buffer; `sample` needs the `batch` and `params` of the pool.

    Raises:
        TypeError: when scored, if the function takes other arguments.
        ValueError: when scored, if params or batch is missing, or the logits are not [B,
            classes], or the labels not one integer per example.
    """

    def score(rows: Rows) -> Array:
        require_model(rows, "scorers.grad_norm_bound")
        require_evaluation(logits_fn, "scorers.grad_norm_bound")
        logits = logits_fn(rows.params, rows.batch).astype(jnp.float32)
        if logits.ndim != 2:
            raise ValueError(
                f"scorers.grad_norm_bound: logits_fn returned shape {logits.shape}; "
                "return one row of logits per example, shape (examples, classes)"
            )
        return el2n(logits, labels_of(rows, label_fn, "scorers.grad_norm_bound"))

    return stateless(score, history=0, passes=1)


def grad_norm(loss_fn: LossFn, microbatch: int = 32, *, stateful: bool = False) -> Scorer:
    """||grad L||_2 exactly, the score of least variance.

    Use it in studies. It costs a forward and a backward pass for each example of the pool, without
    the savings of a batch.

    Args:
        loss_fn: as in `scorers.loss`, differentiable by its params.
        microbatch: gradients held in memory at once.
        stateful: whether the params are the pair `(params, model_state)`; the gradient is then by
            the first alone.

    Returns:
        A `Scorer` without a buffer; `sample` needs the `batch` and `params` of the pool.

    Raises:
        TypeError: when scored, if the function takes other arguments.
        ValueError: when scored, if params or batch is missing.
    """

    def score(rows: Rows) -> Array:
        require_model(rows, "scorers.grad_norm")
        require_evaluation(loss_fn, "scorers.grad_norm")
        if not stateful:
            return per_example_grad_norms(loss_fn, rows.params, rows.batch, microbatch=microbatch)
        params, state = rows.params
        of_params = lambda params, batch: loss_fn((params, state), batch)  # noqa: E731
        return per_example_grad_norms(of_params, params, rows.batch, microbatch=microbatch)

    return stateless(score, history=0, passes=3)


def reducible_loss(loss_fn: LossFn, reference: Array | Callable[[Batch], Array]) -> Scorer:
    """The loss minus that of a reference model, which was not trained on the example.

    It is large where something is left to learn (arXiv 2206.07137): a wrong label costs the
    reference as much as the model. It costs one forward pass of the main model per example. Scores
    may be negative: chain `percentile` or `clip`.

    Args:
        loss_fn: as in `scorers.loss`.
        reference: losses [N] of all examples of the data set, or `(batch) -> losses [B]`.

    Returns:
        A `Scorer` without a buffer; `sample` needs the `batch` and `params` of the pool.

    Raises:
        TypeError: when scored, if the function takes other arguments.
        ValueError: when scored, if params or batch is missing, or `loss_fn` returns another
            shape than [B].
    """
    if not callable(reference):
        name = "scorers.reducible_loss"
        return by_id(
            reference, lambda known, rows: model_losses(loss_fn, rows, name) - known, passes=1
        )
    reference_fn = cast(Callable[[Batch], Array], reference)

    def score(rows: Rows) -> Array:
        return model_losses(loss_fn, rows, "scorers.reducible_loss") - reference_fn(rows.batch)

    return stateless(score, history=0, passes=1)
