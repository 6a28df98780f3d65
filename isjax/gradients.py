"""Gradients of weighted batches, and of single examples."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from isjax.base import Array, Batch, Params


def weighted_value_and_grad(loss_fn: Callable, has_aux: bool = False) -> Callable:
    """The gradient of (1/b) sum w_i L_i, and the losses that the sampler learns from.

    Args:
        loss_fn: `(params, batch, *extra) -> losses`, one per example; with `has_aux`
            `-> (losses, aux)`.
        has_aux: whether `loss_fn` also returns auxiliary data, such as model state.

    Returns:
        `(params, batch, weights, *extra) -> ((loss, losses), grads)`, or, with `has_aux`,
        `((loss, (losses, aux)), grads)`. `weights` is [b], or a function of the losses [b] that
        returns them and through which no gradient flows; `loss` is the weighted mean.

    Raises:
        ValueError: when traced, if `loss_fn` does not return one loss per weight.
    """

    def weighted_loss(
        params: Params, batch: Batch, weights: Array | Callable[[Array], Array], *extra: Any
    ):
        out = loss_fn(params, batch, *extra)
        if isinstance(out, tuple | list) != has_aux or (has_aux and len(out) != 2):
            wanted = (
                "the pair (losses, aux), such as (losses, model_state)" if has_aux else "losses"
            )
            shapes = jax.tree.map(jnp.shape, out)
            raise ValueError(f"the loss function must return {wanted}, but returned {shapes}")
        losses = out[0] if has_aux else out
        if callable(weights):
            weigh = cast(Callable[[Array], Array], weights)
            weights = weigh(jax.lax.stop_gradient(losses))
        losses = check_losses(losses, weights.shape[0])
        return jnp.mean(weights * losses), out

    return jax.value_and_grad(weighted_loss, has_aux=True)


def per_example_grad_norms(
    loss_fn: Callable, params: Params, batch: Batch, *extra: Any, microbatch: int = 32
) -> Array:
    """||grad L_i||_2 of each example, [b] float32: the score of least variance.

    Costs b gradients: for studies.

    Args:
        loss_fn: `(params, batch, *extra) -> losses [b]`.
        params: the model's.
        batch: pytree with leading axis b.
        *extra: passed on.
        microbatch: gradients held in memory at once.
    """

    def one(example: Batch) -> Array:
        single = jax.tree.map(lambda x: x[None], example)
        gradient = jax.grad(lambda p: loss_fn(p, single, *extra)[0])(params)
        return optax.tree.norm(optax.tree.cast(gradient, jnp.float32))

    return jax.lax.map(one, batch, batch_size=microbatch)


def el2n(logits: Array, labels: Array) -> Array:
    """||softmax(z) - y||_2, the norm of the cross-entropy's gradient by the logits, [B].

    Args:
        logits: [B, classes].
        labels: [B] int.
    """
    residual = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.linalg.norm(residual, axis=-1)


def check_losses(losses: Array, size: int) -> Array:
    """The losses, if there is one for each of `size` examples; else a ValueError."""
    if jnp.shape(losses) != (size,):
        raise ValueError(
            f"got losses of shape {jnp.shape(losses)} for {size} examples; return one loss per "
            f"example, shape ({size},), and leave the mean over the batch to isjax"
        )
    return losses
