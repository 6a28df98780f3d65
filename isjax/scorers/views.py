"""Cheap views of the main model: a loss function `(params, batch) -> losses [B]` for less.

They score a pool: `scorers.loss(half_resolution(loss_fn), passes=0.25)`. What they return has the
contract that they take, so that one goes around another. `params` is any pytree, the pair
`(params, model_state)` too.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from isjax._numerics.precision import cast
from isjax.base import Array, Batch, Params
from isjax.scorers import LossFn

__all__ = ["half_resolution", "in_bfloat16"]

# Of a forward pass by convolutions. As many operations in bfloat16, each for less where the
# hardware has them.
PASSES = {"half_resolution": 0.25, "in_bfloat16": 1.0}


def half_resolution(loss_fn: LossFn) -> LossFn:
    """The losses on images of half the height and width, each 2 x 2 pixels averaged.

    For networks that take images of any size, such as those that end in a mean over all places:
    `networks.WideResNet`, or `networks.CNN` with `pooled`. One that has only seen whole images may
    misjudge smaller ones: have it learn from both (benchmarks/streams.py). Bytes become float32
    averages of the same range.

    Args:
        loss_fn: `(params, batch) -> losses [B]`, of a mapping whose `"x"` is [B, H, W, C].

    Returns:
        A function likewise.

    Raises:
        ValueError: when called, if `"x"` is no batch of images with even height and width, or
            `loss_fn` cannot take images of half the size.
    """

    def view(params: Params, batch: Batch) -> Array:
        shape = jnp.shape(batch["x"])
        if len(shape) != 4 or shape[1] % 2 or shape[2] % 2:
            raise ValueError(
                'views.half_resolution averages 2 x 2 pixels of batch["x"], [B, H, W, C] with even '
                f"H and W, but got shape {shape}; crop or pad to even sizes first"
            )
        number, height, width, channels = shape
        pixels = jnp.reshape(batch["x"], (number, height // 2, 2, width // 2, 2, channels))
        halved = jnp.mean(pixels, axis=(2, 4))
        try:
            return loss_fn(params, {**batch, "x": halved})
        except Exception as error:
            raise ValueError(
                f"views.half_resolution: the loss function failed on images of {halved.shape[1:]} "
                f"in place of {shape[1:]}; use a network that takes any size, such as one that "
                f"ends in a mean over all places, or another view. It said: {error}"
            ) from error

    return view


def in_bfloat16(loss_fn: LossFn) -> LossFn:
    """The losses from parameters and examples rounded to bfloat16, as float32.

    Images of bytes, a uint8 `batch["x"]`, are converted too, without loss. A `loss_fn` should take
    the logits back to float32, as those of `isjax.tasks` do: with 8 bits small losses, differences
    of large logits, come out as zero. What it converts before the network gains nothing.

    Args:
        loss_fn: `(params, batch) -> losses [B]`.

    Returns:
        A function likewise.
    """

    def view(params: Params, batch: Batch) -> Array:
        if isinstance(batch, Mapping) and "x" in batch:
            batch = {**batch, "x": jax.tree.map(_without_bytes, batch["x"])}
        params, batch = cast((params, batch), jnp.bfloat16)
        return loss_fn(params, batch).astype(jnp.float32)

    return view


def _without_bytes(x: Array) -> Array:
    return x.astype(jnp.bfloat16) if x.dtype == jnp.uint8 else x
