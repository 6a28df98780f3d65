"""Mixed images (mixup, RICAP), and the loss of each original image in a mixed batch.

The proportions are drawn once for the whole batch, and each column of `Mixed.source` is a
permutation of the batch. Every image therefore occurs once in each column, and its shares over the
whole batch sum to one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax.base import Array
from isjax.tasks.augmentations._geometric import require_images

__all__ = ["Mixed", "mixup", "per_source", "ricap"]


class Mixed(NamedTuple):
    """A batch of `b` images, each made of `m` images of the original batch.

    Attributes:
        x: [b, H, W, C], the mixed images.
        source: [b, m] int32, indices of the images that each is made of; the first is its own.
        share: [b, m] float32, shares of those images; each row sums to one.
    """

    x: Array
    source: Array
    share: Array


def mixup(key: Array, images: Array, alpha: float = 1.0) -> Mixed:
    """Averages each image with another of the batch, pixel by pixel (arXiv 1710.09412).

    x_i = lambda x_i + (1 - lambda) x_j. As in the authors' code, lambda ~ Beta(alpha, alpha) is
    drawn once for the batch, and j by a random permutation, so that an image may meet itself.

    Args:
        key: PRNG key.
        images: [b, H, W, C], any real dtype.
        alpha: parameter of the Beta distribution, > 0. At 1 lambda is uniform; towards 0 it is
            close to 0 or 1, and images hardly mix.

    Returns:
        `Mixed` with m = 2. Integers and floats below 32 bits become float32.

    Raises:
        ValueError: if the images are not [b, H, W, C], or alpha is not above 0.
    """
    require_images("mixup", images)
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
    """Makes each image of four patches, cut out of itself and three others (arXiv 1811.09030).

    Takahashi et al. 2018, "Data augmentation using random image cropping and patching for deep
    CNNs". The patches meet at row round(H t) and column round(W u), with t and u ~ Beta(beta, beta)
    drawn once for the batch. The image's own patch is at the top left; the others are top right,
    bottom left and bottom right. Each patch is cut out of its image at a random place; all places
    where it fits are equally likely. A share is an area, 0 for a patch without pixels.

    Args:
        key: PRNG key.
        images: [b, H, W, C], any dtype.
        beta: parameter of the Beta distribution, > 0. At 1 the cut is uniform; towards 0 one patch
            covers nearly everything.

    Returns:
        `Mixed` with m = 4, of the same dtype.

    Raises:
        ValueError: if the images are not [b, H, W, C], or beta is not above 0.
    """
    require_images("ricap", images)
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

    # The patch of each pixel, [H, W], and its row and column in the source image, [b, H, W].
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
    """Computes the loss of each original image, summed over the mixed images that contain it.

    loss_i = sum over rows r and parts j with source[r, j] = i of share[r, j] losses[r, j].

    The loss of a mixed image belongs to several originals. Published code gives it to the first
    one: the others are then trained on with a weight that is not theirs, and the stored loss of the
    first contains theirs. With this function the weight and the stored loss of image i concern
    image i alone. The sum over the batch stays that of the usual mixed losses:
    sum_i loss_i = sum_r sum_j share[r, j] losses[r, j].

    The result does not depend on the order of additions, because each column of `mixed_source` is a
    permutation.

    Args:
        losses: [b, m] float32, loss of mixed image r against the target of its j-th source.
        mixed_source: [b, m] int32, `Mixed.source`.
        share: [b, m] float32, `Mixed.share`.

    Returns:
        [b] float32, in the order of the batch before mixing.

    Raises:
        ValueError: if the three shapes are not the same [b, m].
    """
    shapes = tuple(losses.shape), tuple(mixed_source.shape), tuple(share.shape)
    if len(set(shapes)) > 1 or losses.ndim != 2:
        raise ValueError(
            f"augmentations.per_source: the shapes are {shapes[0]}, {shapes[1]} and {shapes[2]}, "
            "but losses, source and share must all be [b, m]; give one loss for each source of "
            "each mixed image"
        )
    part = jnp.arange(losses.shape[1])[None, :]
    parts = jnp.zeros(losses.shape, jnp.float32).at[mixed_source, part].add(share * losses)
    return jnp.sum(parts, axis=1)


def _require_positive(function: str, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(
            f"augmentations.{function}: {name} is {value}; choose it above 0, or leave the "
            "augmentation out"
        )
