"""Gradients of weighted batches, gradient norms of single examples, protection from NaN."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from isjax.base import Array, Batch, Params, PyTree


def weighted_value_and_grad(
    loss_fn: Callable,
    has_aux: bool = False,
    value_and_grad: Callable[..., Callable] = jax.value_and_grad,
) -> Callable:
    """Makes a function that returns the weighted mean loss, the single losses and the gradient.

    The gradient is that of (1/b) sum_i w_i L_i. Use it in your own training loop instead of
    `jax.value_and_grad`: it takes the weights of a draw and returns the losses that
    `Sampler.update` needs. It costs one gradient of the batch.

    Args:
        loss_fn: `(params, batch, *extra) -> losses` [b], one per example; with `has_aux`
            `-> (losses, aux)`.
        has_aux: whether `loss_fn` also returns auxiliary data, such as model state.
        value_and_grad: differentiates a function by its first argument. For a module of Flax NNX
            in place of params it is `nnx.value_and_grad`, which also updates the module's state in
            place; for a module of Equinox it is `eqx.filter_value_and_grad`.

    Returns:
        `(params, batch, weights, *extra) -> ((weighted_loss, losses), grads)`; with `has_aux`
        `-> ((weighted_loss, (losses, aux)), grads)`. `weights` is [b] float32, or a function from
        the losses [b] to them; no gradient flows through that function. `grads` is of `params`.
        `weighted_loss` [] is biased unless k = 1: show `diagnostics.mean_loss(draw, losses)`, which
        is unbiased at every k.

    Raises:
        TypeError: when called, if params hold anything but floats and `value_and_grad` is that of
            JAX.
        ValueError: when traced, if the weights are not [b], or `loss_fn` does not return one loss
            per weight.
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
        if jnp.ndim(weights) != 1:
            raise ValueError(
                f"got weights of shape {jnp.shape(weights)}; give one weight per example, as in "
                "draw.weights, of shape [b]"
            )
        if jnp.shape(losses) != jnp.shape(weights):
            raise wrong_losses(losses, jnp.shape(weights)[0])
        return jnp.mean(weights * losses), out

    derive = value_and_grad(weighted_loss, has_aux=True)
    if value_and_grad is not jax.value_and_grad:
        return derive

    @functools.wraps(derive)
    def of_floats(params: Params, *rest: Any, **named: Any):
        require_floats(params)
        return derive(params, *rest, **named)

    return of_floats


def require_floats(params: Params) -> None:
    """Checks that JAX can differentiate by all that params hold.

    Args:
        params: pytree.

    Raises:
        TypeError: if a leaf is no array of floats, such as a module's counter or its functions.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        floats = isinstance(leaf, float | complex) or (
            hasattr(leaf, "dtype") and jnp.issubdtype(dtype, jnp.inexact)
        )
        if not floats:
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is of type {dtype}, but JAX differentiates by "
                "floats alone; split such leaves off, as nnx.split and eqx.partition do, or call "
                "weighted_value_and_grad(loss_fn, value_and_grad=nnx.value_and_grad) in a loop of "
                "your own, or eqx.filter_value_and_grad"
            )


def per_example_grad_norms(
    loss_fn: Callable, params: Params, batch: Batch, *extra: Any, microbatch: int = 32
) -> Array:
    """Computes the gradient norm of each example, ||grad L_i||_2: the score of least variance.

    It costs b gradients, so use it for studies and not in training.

    Args:
        loss_fn: `(params, batch, *extra) -> losses` [b].
        params: parameters, a pytree of float arrays of any precision.
        batch: pytree of arrays with leading axis b.
        *extra: further arguments of `loss_fn`.
        microbatch: number of gradients held in memory at once.

    Returns:
        [b] float32.
    """

    def one(example: Batch) -> Array:
        single = jax.tree.map(lambda x: x[None], example)
        gradient = jax.grad(lambda p: loss_fn(p, single, *extra)[0])(params)
        return optax.tree.norm(optax.tree.cast(gradient, jnp.float32))

    return jax.lax.map(one, batch, batch_size=microbatch)


def el2n(logits: Array, labels: Array) -> Array:
    """Computes the norm of the cross-entropy's gradient by the logits: ||softmax(z) - y||_2.

    Args:
        logits: [B, classes] float, z.
        labels: [B] int, the classes whose one-hot vectors are y.

    Returns:
        [B], of the type of the logits.
    """
    residual = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.linalg.norm(residual, axis=-1)


def check_losses(losses: Array, size: int) -> Array:
    """Checks that there is one loss per example.

    Args:
        losses: of a batch or pool.
        size: number of examples.

    Returns:
        The losses, [size].

    Raises:
        ValueError: if their shape is another.
    """
    if jnp.shape(losses) != (size,):
        raise wrong_losses(losses, size)
    return losses


def wrong_losses(losses: Array, size: int) -> ValueError:
    """The error for losses that are not one per example."""
    return ValueError(
        f"got losses of shape {jnp.shape(losses)} for {size} examples; return one loss per "
        f"example, shape ({size},), and leave the mean over the batch to isjax"
    )


def all_finite(tree: PyTree) -> Array:
    """Tells whether no floating point array holds NaN or infinity.

    Args:
        tree: pytree of arrays; integers and keys are ignored.

    Returns:
        [] bool.
    """
    leaves = jax.tree.leaves(tree)
    leaves = [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    # 0 * x is NaN where x is not finite, so that one sum per array is enough.
    return sum((jnp.sum(0 * leaf) for leaf in leaves), jnp.zeros(())) == 0
