"""Flips and crops."""

import jax
import jax.numpy as jnp

from isjax.base import Array

__all__ = ["crop", "flip", "require_images"]


def flip(key: Array, images: Array) -> Array:
    """Flips each image left to right with probability one half.

    Args:
        key: PRNG key.
        images: [b, H, W, C], any dtype.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: if the images are not [b, H, W, C].
    """
    require_images("flip", images)
    flipped = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def crop(key: Array, images: Array, padding: int = 4) -> Array:
    """Pads each image by reflection and crops it to its old size at random (arXiv 1605.07146).

    Args:
        key: PRNG key.
        images: [b, H, W, C], any dtype.
        padding: rows and columns added at each side, 0 to min(H, W) - 1; the edge itself is not
            repeated. All (2 padding + 1)^2 places are equally likely.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: if the images are not [b, H, W, C], or the padding is out of its range.
    """
    require_images("crop", images)
    batch, *sizes, _ = images.shape
    if not 0 <= padding < min(sizes):
        raise ValueError(
            f"augmentations.crop: padding is {padding}, but images of {sizes[0]} x {sizes[1]} "
            f"reflect 0 to {min(sizes) - 1} pixels; choose a number in that range"
        )
    shifts = jax.random.randint(key, (2, batch, 1), -padding, padding + 1)
    # Index of each row and column in the image, so that no padded copy of the batch is made.
    rows, columns = (
        _reflect(shift + jnp.arange(size)[None, :], size)
        for shift, size in zip(shifts, sizes, strict=True)
    )
    image = jnp.arange(batch)[:, None, None]
    return images[image, rows[:, :, None], columns[:, None, :]]


def _reflect(index: Array, size: int) -> Array:
    """Mirrors indices from 1 - size to 2 size - 2 at the first and the last, into [0, size)."""
    return size - 1 - jnp.abs(size - 1 - jnp.abs(index))


def require_images(function: str, images: Array) -> None:
    """Refuses arrays that are not images [b, H, W, C].

    Args:
        function: name of the augmentation, for the message.
        images: its argument.

    Raises:
        ValueError: if there are not four axes.
    """
    if images.ndim != 4:
        raise ValueError(
            f"augmentations.{function}: the shape is {tuple(images.shape)}, but images must be "
            "[b, height, width, channels]; reshape them, or leave the augmentation out"
        )
