"""Cheaper views of the main model: loss functions `(params, batch) -> losses [B]`.

Use one to score a pool: `scorers.loss(half_resolution(loss_fn), passes=0.25)`. A view takes a loss
function and returns one, so that views can be nested. `params` is any pytree, such as the pair
`(params, model_state)`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from isjax._numerics.precision import cast
from isjax.base import Array, Batch, Params
from isjax.scorers._common import LossFn

__all__ = ["half_resolution", "in_bfloat16"]

# Cost of a view, as a share of a forward pass by convolutions. bfloat16 takes as many operations,
# each of them cheaper on hardware that has it.
PASSES = {"half_resolution": 0.25, "in_bfloat16": 1.0}


def half_resolution(loss_fn: LossFn) -> LossFn:
    """Computes the losses on images of half the height and width, each 2 x 2 pixels averaged.

    Use it with networks that take images of any size, such as those that end in a mean over all
    positions: `networks.WideResNet`, or `networks.CNN` with `pooled`. A network trained on whole
    images alone may misjudge smaller ones: train it on both (benchmarks/streams.py). It costs a
    quarter of a forward pass by convolutions.

    Args:
        loss_fn: `(params, batch) -> losses [B]`, of a mapping whose `"x"` is [B, H, W, C]. Bytes
            reach it as float32 averages of the same range.

    Returns:
        `(params, batch) -> losses [B]`.

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
                f"ends in a mean over all positions, or another view. The error was: {error}"
            ) from error

    return view


def in_bfloat16(loss_fn: LossFn) -> LossFn:
    """Computes the losses from parameters and examples rounded to bfloat16.

    Use it where the hardware computes faster in bfloat16. It takes as many operations. A uint8
    `batch["x"]` becomes bfloat16 too, without rounding.

    Args:
        loss_fn: `(params, batch) -> losses [B]`. It should convert the logits back to float32, as
            those of `isjax.tasks` do: otherwise small losses, which are differences of large
            logits, become zero. It gains nothing if it converts its inputs before the network.

    Returns:
        `(params, batch) -> losses [B]` float32.
    """

    def view(params: Params, batch: Batch) -> Array:
        if isinstance(batch, Mapping) and "x" in batch:
            batch = {**batch, "x": jax.tree.map(_without_bytes, batch["x"])}
        params, batch = cast((params, batch), jnp.bfloat16)
        return loss_fn(params, batch).astype(jnp.float32)

    return view


def _without_bytes(x: Array) -> Array:
    return x.astype(jnp.bfloat16) if x.dtype == jnp.uint8 else x
