"""Batches whose images are made of several images each, and the loss of each image in such a batch.

A mixing is a pure function `(key, images [b, H, W, C]) -> Mixed`, on the device, within the jitted
step. One cut is drawn for the whole batch and each column of `source` is a permutation of it, so
that every image appears once in each column and its shares over the whole batch sum to one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax.base import Array

__all__ = ["Mixed", "mixup", "per_source", "ricap"]


class Mixed(NamedTuple):
    """A batch of `b` images, each made of `m` images of a batch.

    Attributes:
        x: [b, H, W, C] the mixed images.
        source: [b, m] int32, which images of the batch each is made of; the first is its own index.
        share: [b, m] float32, how much of each; a row sums to one.
    """

    x: Array
    source: Array
    share: Array


def mixup(key: Array, images: Array, alpha: float = 1.0) -> Mixed:
    """Each image is averaged with another of the batch, pixel by pixel (arXiv 1710.09412).

    x_i = lambda x_i + (1 - lambda) x_j, lambda ~ Beta(alpha, alpha) once for the batch and j by a
    random permutation, as in the authors' code: an image may meet itself.

    Args:
        key: PRNG key.
        images: [b, H, W, C], any real dtype.
        alpha: above 0; towards 0 an image stays whole, its own or the other, and 1 is uniform.

    Returns:
        `Mixed` of m = 2; bytes and other integers, and less than float32, become float32.

    Raises:
        ValueError: these are not images [b, H, W, C], or alpha is not above 0.
    """
    _require_images("mixup", images)
    _require_positive("mixup", "alpha", alpha)
    batch = images.shape[0]
    share_key, order_key = jax.random.split(key)
    own = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
    other = jax.random.permutation(order_key, batch)
    images = jnp.asarray(images)
    return Mixed(
        x=own * images + (1 - own) * images[other],
        source=jnp.stack([jnp.arange(batch), other], axis=1).astype(jnp.int32),
        share=jnp.tile(jnp.stack([own, 1 - own])[None, :], (batch, 1)),
    )


def ricap(key: Array, images: Array, beta: float = 0.3) -> Mixed:
    """Each image becomes four patches, cut out of itself and of three others (arXiv 1811.09030).

    Takahashi et al. 2018, "Data augmentation using random image cropping and patching for deep
    CNNs". The patches meet at row round(H t) and column round(W u), t and u ~ Beta(beta, beta) once
    for the batch: its own patch at the top left, then top right, bottom left, bottom right. Each is
    cut out of its image at a random place, any at which it fits being as likely. A share is an
    area, 0 for a patch without pixels.

    Args:
        key: PRNG key.
        images: [b, H, W, C], any dtype.
        beta: above 0; towards 0 one patch covers all, and 1 is uniform.

    Returns:
        `Mixed` of m = 4, its images of the same dtype.

    Raises:
        ValueError: these are not images [b, H, W, C], or beta is not above 0.
    """
    _require_images("ricap", images)
    _require_positive("ricap", "beta", beta)
    batch, height, width, _ = images.shape
    cut_key, row_key, column_key, *order_keys = jax.random.split(key, 6)

    sizes = jnp.array([height, width], jnp.float32)
    cut = jnp.round(jax.random.beta(cut_key, beta, beta, (2,), jnp.float32) * sizes)
    top, left = cut.astype(jnp.int32)
    heights = jnp.stack([top, top, height - top, height - top])[None, :]
    widths = jnp.stack([left, width - left, left, width - left])[None, :]

    own = jnp.arange(batch)
    others = [jax.random.permutation(order_key, batch) for order_key in order_keys]
    source = jnp.stack([own, *others], axis=1).astype(jnp.int32)
    first_row = jax.random.randint(row_key, (batch, 4), 0, height - heights + 1)
    first_column = jax.random.randint(column_key, (batch, 4), 0, width - widths + 1)

    # Which patch each pixel is of, [H, W], and where in its image it is read, [b, H, W].
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    patch = 2 * (row >= top) + (column >= left)
    row_in_patch = jnp.where(row < top, row, row - top)[None, :, :]
    column_in_patch = jnp.where(column < left, column, column - left)[None, :, :]
    x = jnp.asarray(images)[
        source[:, patch],
        row_in_patch + first_row[:, patch],
        column_in_patch + first_column[:, patch],
    ]
    share = (heights * widths).astype(jnp.float32) / (height * width)
    return Mixed(x, source, jnp.tile(share, (batch, 1)))


def per_source(losses: Array, mixed_source: Array, share: Array) -> Array:
    """The loss of each image that a batch was mixed from, wherever a part of it went.

    loss_i = sum over rows r and parts j with source[r, j] = i of share[r, j] losses[r, j].

    The loss of a row belongs to several images. Weighted by the importance of its first image and
    written back to it, as published code does, the others would be trained on by a weight that is
    not theirs and the score of one would hold the losses of the rest. By this loss the importance
    weight and the write-back of image i concern image i alone, and nothing is lost: the sum over
    the batch is the sum of the usual mixed losses,

        sum_i loss_i = sum_r sum_j share[r, j] losses[r, j].

    Each column of the source being a permutation, no two losses are added in an order that the
    device may choose: the result is the same bit by bit.

    Args:
        losses: [b, m], of row r against the target of its j-th source.
        mixed_source: [b, m] int32, `Mixed.source`.
        share: [b, m] float32, `Mixed.share`.

    Returns:
        [b] float32, in the order of the batch before it was mixed.

    Raises:
        ValueError: the three are not of one shape [b, m].
    """
    shapes = tuple(losses.shape), tuple(mixed_source.shape), tuple(share.shape)
    if len(set(shapes)) > 1 or losses.ndim != 2:
        raise ValueError(
            f"mixing.per_source: the shapes are {shapes[0]}, {shapes[1]} and {shapes[2]}, but "
            "losses are [b, m] as source and share are; give one loss for each source of each row"
        )
    part = jnp.arange(losses.shape[1])[None, :]
    parts = jnp.zeros(losses.shape, jnp.float32).at[mixed_source, part].add(share * losses)
    return jnp.sum(parts, axis=1)


def _require_images(function: str, images: Array) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"mixing.{function}: the shape is {tuple(images.shape)}, but images are "
            "[b, height, width, channels]; reshape them, or leave the mixing out"
        )


def _require_positive(function: str, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(
            f"mixing.{function}: {name} is {value}; choose it above 0, or leave the mixing out"
        )
