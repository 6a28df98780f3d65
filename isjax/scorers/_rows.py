"""What a scorer reads from rows, and errors that say what they lack."""

from collections.abc import Callable

import jax.numpy as jnp

from isjax.base import Array, Batch, Rows

__all__ = ["labels_of", "require_model"]


def require_model(rows: Rows, name: str) -> None:
    """Refuses rows without what the main model runs on; `name` is the scorer's, for the message."""
    for field in ("params", "batch"):
        if getattr(rows, field) is None:
            raise ValueError(
                f"{name} runs the main model on the pool, but got no {field}; "
                f"pass {field}= to sampler.sample"
            )


def labels_of(rows: Rows, label_fn: Callable[[Batch], Array] | None, name: str) -> Array:
    """Classes of the examples, [B] int; `name` is the scorer's, for the message.

    Args:
        rows: with a batch.
        label_fn: `(batch) -> classes [B] int`; None = `batch["label"]`.
        name: of the scorer.

    Raises:
        ValueError: if there are none, or not one integer per example.
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
            f'{name} reads classes from batch["label"], which this batch lacks; '
            "pass label_fn=, a function of the batch"
        ) from None
    if labels.shape != rows.count.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{name} got labels of shape {labels.shape} and type {labels.dtype}; "
            f"it needs one integer per example, shape {rows.count.shape}"
        )
    return labels
