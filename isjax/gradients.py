"""Gradients of weighted batches, gradient norms of single examples, protection from NaN."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from isjax.base import Array, Batch, Params, PyTree

_LISTED = 3  # leaves in a message


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
            JAX, if `loss_fn` takes other arguments, or if its losses are no array.
        ValueError: when traced, if the weights are not [b], or `loss_fn` does not return one loss
            per weight.
    """

    def weighted_loss(
        params: Params, batch: Batch, weights: Array | Callable[[Array], Array], *extra: Any
    ):
        require_arguments(
            loss_fn,
            ("params", "batch", *(f"extra_{i}" for i in range(len(extra)))),
            "weighted_value_and_grad(loss_fn)(params, batch, weights, *extra) calls it so",
        )
        out = loss_fn(params, batch, *extra)
        if isinstance(out, tuple | list) != has_aux or (has_aux and len(out) != 2):
            wanted = (
                "the pair (losses, aux), such as (losses, model_state)" if has_aux else "losses"
            )
            raise ValueError(
                f"the loss function must return {wanted}, but returned a {type(out).__name__}: "
                f"{shapes_of(out)}"
            )
        losses = require_array(out[0] if has_aux else out)
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
        dtype = getattr(leaf, "dtype", type(leaf))
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {kind_of(leaf)}, but JAX differentiates by "
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
        TypeError: if they are no array.
        ValueError: if their shape is another.
    """
    if jnp.shape(require_array(losses)) != (size,):
        raise wrong_losses(losses, size)
    return losses


def require_array(losses: Any) -> Any:
    """Checks that losses are an array, and returns them.

    Raises:
        TypeError: if they are a dict, list or something else.
    """
    if not hasattr(losses, "shape"):
        raise TypeError(
            f"got losses that are a {type(losses).__name__}, {shapes_of(losses)}; return one array "
            "of shape [b], such as the sum of the terms of the loss, and other numbers as aux"
        )
    return losses


def wrong_losses(losses: Array, size: int) -> ValueError:
    """The error for losses that are not one per example."""
    shape = jnp.shape(losses)
    if not shape:
        remedy = "leave the mean over the batch to isjax"
    elif len(shape) == 1:
        remedy = f"compute them for the {size} examples given, and no others"
    else:
        remedy = "take the mean over all axes but the first"
    return ValueError(
        f"got losses of shape {shape} for {size} examples; return one loss per example, shape "
        f"({size},): {remedy}"
    )


def shapes_of(tree: PyTree) -> str:
    """Lists the names, types and shapes of the first few leaves of a pytree, for a message."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    listed = [f"{jax.tree_util.keystr(path)} {kind_of(x)}".strip() for path, x in leaves[:_LISTED]]
    more = [f"and {len(leaves) - _LISTED:,} more"] if len(leaves) > _LISTED else []
    return ", ".join(listed + more) or "no arrays"


def kind_of(leaf: Any) -> str:
    """Type and shape, such as float32[8, 3]."""
    if not hasattr(leaf, "shape"):
        return type(leaf).__name__
    return f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"


def require_arguments(function: Callable, names: Sequence[str], remedy: str) -> None:
    """Checks that a function can be called with arguments by position.

    Args:
        function: a caller's.
        names: of the arguments.
        remedy: for the message.

    Raises:
        TypeError: if it takes more or fewer.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins do not tell
        return
    try:
        signature.bind(*names)
    except TypeError:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"{name} takes {signature}, but is called with ({', '.join(names)}); {remedy}"
        ) from None


def all_finite(tree: PyTree) -> Array:
    """Tells whether no floating point array holds NaN or infinity.

    Args:
        tree: pytree of arrays; integers and keys are ignored.

    Returns:
        [] bool.
    """
    leaves = [
        leaf
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and jnp.size(leaf)
    ]
    if not leaves:
        return jnp.ones((), bool)
    # Of the columns of each array, then of all of them: the maximum of a whole array, or one
    # comparison for each, would take more kernels on an accelerator.
    columns = jnp.concatenate([_largest_of_columns(x) for x in leaves])
    return jnp.all(jnp.isfinite(jax.lax.optimization_barrier(columns)))


def _largest_of_columns(x: Array) -> Array:
    """The largest magnitude of each column, NaN where it holds NaN; of a vector, its entries."""
    return jnp.max(jnp.abs(x), axis=tuple(range(x.ndim - 1))) if jnp.ndim(x) > 1 else jnp.ravel(x)
