"""Random augmentations that run on the device, within the jitted step.

An augmentation is a pure function `(key, images [b, H, W, C]) -> images`, of the same shape and
dtype. Each image of a batch gets its own randomness. Write your own in the same shape. One that
mixes images returns `mixing.Mixed`, which says what each image is made of.
"""

import jax
import jax.numpy as jnp

from isjax.tasks.mixing import mixup, ricap
from isjax.tasks.randaugment import rand_augment

__all__ = ["crop", "flip", "mixup", "rand_augment", "ricap"]


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Turns each image left to right with probability one half.

    Args:
        key: PRNG key.
        images: [b, H, W, C], any dtype.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: these are not images [b, H, W, C].
    """
    _require_images("flip", images)
    turned = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(turned, images[:, :, ::-1], images)


def crop(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Pads each image by reflection and cuts the old size out at a random place (1605.07146).

    Args:
        key: PRNG key.
        images: [b, H, W, C], any dtype.
        padding: rows and columns added at each side, 0 to min(H, W) - 1; the edge itself is not
            repeated. Each of the (2 padding + 1)^2 places is as likely.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: these are not images [b, H, W, C], or there is nothing to reflect so far out.
    """
    _require_images("crop", images)
    batch, *sizes, _ = images.shape
    if not 0 <= padding < min(sizes):
        raise ValueError(
            f"augmentations.crop: padding is {padding}, but images of {sizes[0]} x {sizes[1]} "
            f"reflect 0 to {min(sizes) - 1} pixels; choose padding among these"
        )
    shifts = jax.random.randint(key, (2, batch, 1), -padding, padding + 1)
    # Where each row and column of the crop is read: no padded copy of the batch is made.
    rows, columns = (
        _reflect(shift + jnp.arange(size)[None, :], size)
        for shift, size in zip(shifts, sizes, strict=True)
    )
    image = jnp.arange(batch)[:, None, None]
    return images[image, rows[:, :, None], columns[:, None, :]]


def _reflect(index, size):
    """Indices from 1 - size to 2 size - 2 into [0, size), mirrored at the first and the last."""
    return size - 1 - jnp.abs(size - 1 - jnp.abs(index))


def _require_images(function: str, images: jax.Array) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"augmentations.{function}: the shape is {tuple(images.shape)}, but images are "
            "[b, height, width, channels]; reshape them, or leave the augmentation out"
        )
