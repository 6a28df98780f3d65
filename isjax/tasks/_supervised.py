"""Supervised tasks: losses and metrics that follow from a network's output on `batch["x"]`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from isjax.base import Array, Batch, Params, PyTree
from isjax.data.dataset import Dataset
from isjax.data.source import held
from isjax.tasks._task import Augmentation, Network, Task
from isjax.tasks.augmentations import Mixed, per_source

__all__ = ["PIXELS", "supervised"]


def supervised(
    dataset: Dataset,
    network: Network,
    metrics: Callable[[Array, Batch], dict[str, Array]],
    augment: Sequence[Augmentation],
    pixels: str = "standardised",
    train_loss: Callable[[Array, Batch, Array], Array] | None = None,
) -> Task:
    """Makes a task from a function that computes metrics from the output of a network.

    Args:
        dataset: examples of `{"x", ...}`.
        network: Flax module, from `x` to its output.
        metrics: `(output, batch) -> {name: [b]}`, `loss` among them.
        augment: functions `(key, x) -> x` for training, applied in order.
        pixels: scale of an `x` of bytes, a name in `PIXELS`.
        train_loss: `(output, batch, key) -> losses [b]`, which replaces the loss of `metrics` in
            training; None = the same loss.

    Raises:
        ValueError: if there is no such scale.
    """
    if pixels not in PIXELS:
        raise ValueError(f"pixels is {pixels!r}; choose one of {', '.join(PIXELS)}")
    known = held(dataset.train)["x"]
    scale = jax.tree.map(lambda x: _scaler(PIXELS[pixels], x), known)

    def prepare(x: PyTree) -> PyTree:
        return jax.tree.map(lambda function, leaf: function(leaf), scale, x)

    @jax.jit  # one program, in which the network's output is never computed
    def init(key: Array) -> tuple[Params, PyTree]:
        first = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), known)
        model_state, params = flax.core.pop(network.init(key, prepare(first)), "params")
        return params, model_state or None

    def variables(params: Params, model_state: PyTree) -> Mapping[str, Any]:
        return {"params": params, **(model_state or {})}

    def loss_fn(
        params: Params, model_state: PyTree, batch: Batch, key: Array
    ) -> tuple[Array, PyTree]:
        dropout_key, augment_key = jax.random.split(key)
        x, mixed = _augmented(augment, augment_key, batch["x"])
        output, updated = network.apply(
            variables(params, model_state),
            prepare(x),
            train=True,
            rngs={"dropout": dropout_key},
            mutable=list(model_state or {}),
        )
        if train_loss is not None:
            # 0 and 1 may be the keys of the split above.
            return train_loss(output, batch, jax.random.fold_in(key, 2)), updated or None
        if mixed is None:
            return metrics(output, batch)["loss"], updated or None
        targets = {name: value for name, value in batch.items() if name != "x"}
        targets = jax.tree.map(jnp.asarray, targets)
        of_source = jax.vmap(
            lambda ids: metrics(output, jax.tree.map(lambda y: y[ids], targets))["loss"],
            in_axes=1,
            out_axes=1,
        )
        losses = per_source(of_source(mixed.source), mixed.source, mixed.share)
        return losses, updated or None

    def output_fn(params: Params, model_state: PyTree, batch: Batch) -> Array:
        output = network.apply(variables(params, model_state), prepare(batch["x"]), train=False)
        output = jnp.asarray(output)
        return output.astype(jnp.promote_types(output.dtype, jnp.float32))

    def metrics_fn(params: Params, model_state: PyTree, batch: Batch) -> dict[str, Array]:
        return metrics(output_fn(params, model_state, batch), batch)

    def score_fn(params: Params, model_state: PyTree, batch: Batch) -> Array:
        return metrics_fn(params, model_state, batch)["loss"]

    return Task(dataset, init, loss_fn, score_fn, metrics_fn, output_fn=output_fn)


def _augmented(
    augment: Sequence[Augmentation], key: Array, x: PyTree
) -> tuple[PyTree, Mixed | None]:
    """Augments `x`. Returns it, and how it was mixed if it was."""
    mixed = None
    for function, own_key in zip(augment, jax.random.split(key, len(augment)), strict=True):
        x = function(own_key, x)
        if isinstance(x, Mixed):
            if mixed is not None:
                raise ValueError("two augmentations mix images; leave one of them out")
            x, mixed = x.x, x
    return x, mixed


def _scaler(
    make: Callable[[np.ndarray], Callable[[Array], Array]], x: np.ndarray
) -> Callable[[Array], Array]:
    """Makes the function that scales bytes, in float32; it leaves other types of `x` as they are.

    An input that is already floating point keeps its type.
    """
    if x.dtype != np.uint8:
        return lambda x: x
    scale = make(x)

    def scaled(x: Array) -> Array:
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
        return scale(x.astype(jnp.float32)).astype(dtype)

    return scaled


def _standardise(x: np.ndarray) -> Callable[[Array], Array]:
    """To mean 0 and deviation 1 in each channel of `x`."""
    values = np.arange(256.0)
    counts = np.stack([_count_bytes(channel) for channel in np.moveaxis(x, -1, 0)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = np.sum(shares * (values[None, :] - mean[:, None]) ** 2, axis=1)
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0)).astype(np.float32)
    mean = mean.astype(np.float32)

    def standardise(x: Array) -> Array:
        shape = (1,) * (x.ndim - 1) + mean.shape
        return (x - mean.reshape(shape)) / deviation.reshape(shape)

    return standardise


def _to_unit(x: np.ndarray) -> Callable[[Array], Array]:
    """To [0, 1]."""
    return lambda x: x / 255


def _count_bytes(x: np.ndarray) -> np.ndarray:
    """Counts each value, [256]; in slices, because counting takes 8 bytes per value."""
    slices = (x[start : start + 10_000] for start in range(0, len(x), 10_000))
    return sum((np.bincount(part.ravel(), minlength=256) for part in slices), np.zeros(256, int))


# How bytes become numbers: by name, the function that makes the function from the training part.
PIXELS = {"standardised": _standardise, "unit": _to_unit}
