"""A small network over features of the example itself: the learned scorer of a stream."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from isjax.base import Array, Batch, PyTree, Rows
from isjax.networks import MLP
from isjax.scorers._common import LabelFn
from isjax.scorers._learned import Network

__all__ = ["coarse_features", "features_mlp"]


def features_mlp(
    features: Callable[[Batch], Array], num_features: int, hidden: tuple[int, ...] = (64,)
) -> Network:
    """A small MLP over features of the example itself, for `learned`.

    Use it for a stream, where nothing is remembered: `learned(features_mlp(...), history=0)`.

    Args:
        features: `(batch) -> [B, num_features]`, of about unit scale, cheap to compute.
        num_features: of an example.
        hidden: sizes of the hidden layers.

    Returns:
        A `Network` that reads `rows.batch` alone.

    Raises:
        ValueError: when the scorer scores or learns, if there is no batch, or its features have
            another shape.
    """
    module = MLP(outputs=1, hidden=hidden)

    def apply(params: PyTree, rows: Rows) -> Array:
        if rows.batch is None:
            raise ValueError(
                "scorers.features_mlp reads features of the batch, but got none; "
                "pass batch= to sampler.sample and sampler.update"
            )
        inputs, wanted = features(rows.batch), (rows.count.shape[0], num_features)
        if jnp.shape(inputs) != wanted:
            raise ValueError(
                f"scorers.features_mlp got features of shape {jnp.shape(inputs)}; return one row "
                f"of num_features = {num_features} for each example, shape {wanted}"
            )
        return jnp.asarray(module.apply(params, inputs))[:, 0]

    return Network(lambda key: module.init(key, jnp.zeros((1, num_features), jnp.float32)), apply)


def coarse_features(
    num_classes: int, label_fn: LabelFn | None = None, cells: int = 8
) -> Callable[[Batch], Array]:
    """A coarse version of each example, with its class, for `features_mlp`.

    Images [B, H, W, C] become their means over a grid of at most `cells` x `cells`. Any other `x`
    of floating point stays as it is. Bytes are scaled to x / 64 - 2.

    Args:
        num_classes: classes, numbered from 0.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        cells: along each side of an image.

    Returns:
        `(batch) -> [B, features]` float32, of a batch whose `"x"` is one array.

    Raises:
        ValueError: when called, if `"x"` is neither floating point nor bytes.
    """

    def features(batch: Batch) -> Array:
        x = batch["x"]
        dtype = getattr(x, "dtype", None)
        if dtype is None or not (dtype == jnp.uint8 or jnp.issubdtype(dtype, jnp.floating)):
            raise ValueError(
                'scorers.coarse_features needs batch["x"] to be one array of floating point or '
                f"bytes, but it is {dtype or type(x).__name__}; write features of your own"
            )
        label = batch["label"] if label_fn is None else label_fn(batch)
        number, scaled = x.shape[0], x.astype(jnp.float32)
        scaled = scaled / 64 - 2 if dtype == jnp.uint8 else scaled
        if x.ndim == 4:
            vertical, horizontal = (_means(size, min(size, cells)) for size in x.shape[1:3])
            scaled = jnp.einsum("hH,wW,bHWc->bhwc", vertical, horizontal, scaled)
        return jnp.concatenate(
            [scaled.reshape(number, -1), jax.nn.one_hot(label, num_classes)], axis=1
        )

    return features


def _means(size: int, cells: int) -> np.ndarray:
    """[cells, size] matrix that takes a vector to the means over nearly equal parts of it."""
    member = np.arange(size) * cells // size == np.arange(cells)[:, None]
    return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)
