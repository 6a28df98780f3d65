"""Parts that several scorers share: input checks, and scorers that learn nothing."""

from collections.abc import Callable

import jax.numpy as jnp

from isjax.base import Array, Batch, Params, PyTree, Rows, Scorer
from isjax.gradients import check_losses

__all__ = [
    "LabelFn",
    "LogitsFn",
    "LossFn",
    "by_id",
    "labels_of",
    "model_losses",
    "require_model",
    "stateless",
]

LossFn = Callable[[Params, Batch], Array]
LogitsFn = Callable[[Params, Batch], Array]
LabelFn = Callable[[Batch], Array]


def require_model(rows: Rows, name: str) -> None:
    """Checks that rows have the params and the batch that the main model runs on.

    Args:
        rows: of the pool.
        name: of the scorer, for the message.

    Raises:
        ValueError: if one of them is missing.
    """
    for field in ("params", "batch"):
        if getattr(rows, field) is None:
            raise ValueError(
                f"{name} runs the main model on the pool, but got no {field}; "
                f"pass {field}= to sampler.sample"
            )


def model_losses(loss_fn: LossFn, rows: Rows, name: str) -> Array:
    """Losses of the main model on the pool.

    Args:
        loss_fn: `(params, batch) -> losses [B]`.
        rows: of the pool.
        name: of the scorer, for the message.

    Returns:
        [B] float32.

    Raises:
        ValueError: if params or batch is missing, or `loss_fn` returns another shape.
    """
    require_model(rows, name)
    return check_losses(loss_fn(rows.params, rows.batch), rows.count.shape[0]).astype(jnp.float32)


def labels_of(rows: Rows, label_fn: LabelFn | None, name: str) -> Array:
    """Classes of the examples.

    Args:
        rows: with a batch.
        label_fn: `(batch) -> classes [B] int`; None = `batch["label"]`.
        name: of the scorer, for the message.

    Returns:
        [B] int.

    Raises:
        ValueError: if the batch or its classes are missing, or not one integer per example.
    """
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
            f'{name} reads classes from batch["label"], but this batch has no "label"; '
            "pass label_fn=, a function of the batch"
        ) from None
    if labels.shape != rows.count.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{name} got labels of shape {labels.shape} and type {labels.dtype}; "
            f"it needs one integer per example, shape {rows.count.shape}"
        )
    return labels


def stateless(
    score: Callable[[Rows], Array],
    history: int,
    *,
    passes: float = 0.0,
    remember: Callable[[Array, Array, Array], Array] | None = None,
) -> Scorer:
    """A scorer without state, which learns nothing.

    Args:
        score: `(rows) -> scores [B]`.
        history: see `Scorer.history`.
        passes: see `Scorer.passes`.
        remember: see `Scorer.remember`.

    Returns:
        A `Scorer` with an empty state.
    """
    return Scorer(
        init=lambda key: (),
        score=lambda state, rows: score(rows),
        update=lambda state, rows, losses: state,
        history=history,
        remember=remember,
        passes=passes,
    )


def by_id(known: Array, score: Callable[[Array, Rows], Array], passes: float = 0.0) -> Scorer:
    """A scorer with one number for each example of the data set, which are its state.

    Args:
        known: [N] numbers.
        score: `(numbers [B] of the pool, rows) -> scores [B]`. The number is NaN for an id that is
            N or more.
        passes: see `Scorer.passes`.

    Returns:
        A `Scorer` whose state is a copy of `known`.
    """

    def of_rows(state: PyTree, rows: Rows) -> Array:
        if rows.ids is None:
            raise ValueError(
                "this scorer knows one number for each example, and needs rows.ids to look it up"
            )
        return score(state.at[rows.ids].get(mode="fill", fill_value=jnp.nan), rows)

    return Scorer(
        init=lambda key: jnp.array(known, jnp.float32),  # a copy, since steps donate it
        score=of_rows,
        update=lambda state, rows, losses: state,
        history=0,
        passes=passes,
    )
