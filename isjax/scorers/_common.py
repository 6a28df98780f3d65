"""Parts that several scorers share: the main model's losses, numbers known by id."""

from collections.abc import Callable

import jax.numpy as jnp

from isjax.base import Array, Batch, Params, PyTree, Rows, Scorer
from isjax.gradients import check_losses, require_arguments

__all__ = [
    "LabelFn",
    "LogitsFn",
    "LossFn",
    "by_id",
    "model_losses",
    "require_evaluation",
    "require_model",
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


def require_evaluation(function: Callable, name: str) -> None:
    """Checks that a function can be called with params and batch.

    Args:
        function: of the main model.
        name: of the scorer, for the message.

    Raises:
        TypeError: if it takes other arguments.
    """
    require_arguments(
        function,
        ("params", "batch"),
        f"{name} runs the model in evaluation mode, without a key; params are the pair (params, "
        "model_state) where make_train_step calls it for a model with state",
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
        TypeError: if `loss_fn` takes other arguments.
        ValueError: if params or batch is missing, or `loss_fn` returns another shape.
    """
    require_model(rows, name)
    require_evaluation(loss_fn, name)
    return check_losses(loss_fn(rows.params, rows.batch), rows.count.shape[0]).astype(jnp.float32)


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
        by_id=True,
    )
