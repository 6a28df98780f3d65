"""RandAugment: a few random operations on each image, all of one magnitude.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
arXiv 1909.13719. Every operation is computed for the whole batch, and each image takes its own
result. The operations do to bytes the same as Pillow's `ImageOps`, `ImageEnhance` and
`Image.transform`, and so does the authors' code. DM-PIX differs: its brightness adds, its contrast
keeps the mean of each channel, and its saturation is that of HSV.
"""

import functools
import math

import jax
import jax.numpy as jnp

from isjax.base import Array

__all__ = ["OPERATIONS", "apply", "rand_augment"]

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
MAX_MAGNITUDE = 30
OUTSIDE = 128  # value of pixels outside a moved image


@functools.partial(jax.jit, static_argnames=("num_ops", "magnitude"))
def rand_augment(key: Array, images: Array, num_ops: int = 2, magnitude: float = 9) -> Array:
    """Applies random operations to each image: RandAugment (arXiv 1909.13719).

    Each of the 14 operations is equally likely: identity, autocontrast, equalize, rotate, solarize,
    color, posterize, contrast, brightness, sharpness, shear_x, shear_y, translate_x, translate_y.

    Args:
        key: PRNG key.
        images: [b, H, W, C] uint8, C = 1 (grey) or 3 (red, green, blue).
        num_ops: number of operations applied one after the other, at least 1; the paper's N.
        magnitude: strength of the operations, 0 to 30; the paper's M.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: if the images are not bytes of that shape, or num_ops or magnitude is out of its
            range.
    """
    if num_ops < 1:
        raise ValueError(
            f"augmentations.rand_augment: num_ops is {num_ops}; choose 1 or more, or leave the "
            "augmentation out"
        )
    shape = images.shape[:1]

    def augment(images: Array, key: Array) -> tuple[Array, None]:
        operation_key, sign_key = jax.random.split(key)
        operation = jax.random.randint(operation_key, shape, 0, len(OPERATIONS))
        sign = jax.random.rademacher(sign_key, shape, jnp.float32)
        return apply(images, operation, sign, magnitude), None

    # A scan: XLA on a CPU would compute an unrolled operation anew for each pixel of the next.
    return jax.lax.scan(augment, images, jax.random.split(key, num_ops))[0]


def apply(images: Array, operation: Array, sign: Array, magnitude: float = 9) -> Array:
    """Applies a given operation to each image.

    With s = sign * M / 30, where M is the magnitude:

    - identity: does nothing.
    - autocontrast: stretches each channel to 0..255, for every M.
    - equalize: flattens the histogram of each channel, for every M.
    - solarize: inverts values from 256 (1 - M / 30) up.
    - posterize: keeps the highest 8 - round(4 M / 30) bits.
    - color, contrast, brightness, sharpness: z + (1 + 0.9 s) (image - z), where z is the grey
      image, its mean, black, and the smoothed image.
    - rotate: by 30 s degrees, counterclockwise, about the centre.
    - shear_x, shear_y: by 0.3 s; the top or the left edge stays in place.
    - translate_x, translate_y: by 150/331 s of the width or height.

    The last three take the nearest pixel, and 128 where there is none. Color leaves a grey image as
    it is. A larger M is never weaker. The ranges are those of torchvision, whose solarize inverts
    white even at M = 0. In the authors' code M goes to 10, solarize and posterize grow weaker with
    M, and the four blends go from weaker to stronger images.

    Args:
        images: [b, H, W, C] uint8, C = 1 or 3.
        operation: [b] int32 into `OPERATIONS`.
        sign: [b] float32, -1 or 1; solarize and posterize ignore it.
        magnitude: M, 0 to 30.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: if the images are not bytes of that shape, or magnitude is out of its range.
    """
    _require_images_of_bytes(images)
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ValueError(
            f"augmentations.rand_augment: magnitude is {magnitude}; choose 0 to {MAX_MAGNITUDE}"
        )
    level = magnitude / MAX_MAGNITUDE
    signed = (sign * level)[:, None, None, None]

    def amount(name: str) -> Array:
        """Signed level of images with that operation, 0 for others: [b, 1, 1, 1]."""
        return _choose(operation, {name: signed}, jnp.zeros_like(signed))

    values = jnp.asarray(images, jnp.int32)
    luma = _luma(values)
    moved = _move(
        values,
        angle=math.radians(30) * amount("rotate"),
        shear_x=0.3 * amount("shear_x"),
        shear_y=0.3 * amount("shear_y"),
        shift_x=150 / 331 * amount("translate_x"),
        shift_y=150 / 331 * amount("translate_y"),
    )
    start = {
        "color": luma,
        "contrast": _mean(luma),
        "brightness": jnp.zeros_like(values),
        "sharpness": _smooth(values),
    }
    blended = _blend(_choose(operation, start, values), values, signed)
    results = {
        "autocontrast": _autocontrast(values),
        "equalize": _equalize(values),
        "solarize": jnp.where(values >= 256 * (1 - level), 255 - values, values),
        "posterize": values & (256 - 2 ** round(4 * level)),
    } | dict.fromkeys(start, blended)
    return _choose(operation, results, moved).astype(jnp.uint8)


def _choose(operation: Array, results: dict[str, Array], otherwise: Array) -> Array:
    """Takes for each image the result [b, ...] of its operation, else `otherwise`."""
    operation = operation[:, None, None, None]
    for name, result in results.items():
        otherwise = jnp.where(operation == OPERATIONS.index(name), result, otherwise)
    return otherwise


def _move(
    values: Array, angle: Array, shear_x: Array, shear_y: Array, shift_x: Array, shift_y: Array
) -> Array:
    """Moves the pixels of each image; at most one amount [b, 1, 1, 1] per image is not zero."""
    batch, height, width, _ = values.shape
    x = (jnp.arange(width) + 0.5)[None, None, :, None]
    y = (jnp.arange(height) + 0.5)[None, :, None, None]
    right, down = x - width / 2, y - height / 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    read_x = width / 2 + cos * right - sin * down + shear_x * y + shift_x * width
    read_y = height / 2 + sin * right + cos * down + shear_y * x + shift_y * height
    column = jnp.floor(read_x).astype(jnp.int32)
    row = jnp.floor(read_y).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    image = jnp.arange(batch)[:, None, None]
    read = values.at[image, row[..., 0], column[..., 0]].get(mode="clip")
    return jnp.where(inside, read, OUTSIDE)


def _blend(start: Array, values: Array, signed: Array) -> Array:
    """Goes `1 + 0.9 signed` of the way from `start` to the values; clips to bytes as Pillow."""
    blended = start + (1 + 0.9 * signed) * (values - start)
    return jnp.clip(blended, 0, 255).astype(jnp.int32)


def _luma(values: Array) -> Array:
    """Grey image of the same shape, by ITU-R 601-2 in Pillow's fixed point."""
    if values.shape[-1] == 1:
        return values
    shares = jnp.array([19595, 38470, 7471])[None, None, None, :]
    grey = (jnp.sum(values * shares, axis=-1, keepdims=True) + 2**15) >> 16
    return jnp.broadcast_to(grey, values.shape)


def _mean(luma: Array) -> Array:
    """Rounded mean of each image, in the same shape."""
    mean = jnp.mean(luma[..., :1].astype(jnp.float32), axis=(1, 2, 3), keepdims=True)
    return jnp.broadcast_to(jnp.floor(mean + 0.5).astype(jnp.int32), luma.shape)


def _smooth(values: Array) -> Array:
    """Weighted mean of a pixel (5) and its eight neighbours (1 each); the border stays."""
    _, height, width, _ = values.shape
    padded = jnp.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    mean = (around + 4 * values) / 13
    y, x = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inner, (mean + 0.5).astype(jnp.int32), values)


def _autocontrast(values: Array) -> Array:
    """floor(255 (v - low) / (high - low)); a channel of one value stays."""
    low = jnp.min(values, axis=(1, 2), keepdims=True)
    high = jnp.max(values, axis=(1, 2), keepdims=True)
    # Adding a half never changes the floor of an exact quotient, and guards it against rounding.
    stretched = (255 * (values - low) + 0.5) / jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched.astype(jnp.int32), values)


def _equalize(values: Array) -> Array:
    """floor((count below v + step // 2) / step), step = (count below the largest value) // 255."""
    batch, height, width, channels = values.shape
    pixels = jnp.moveaxis(values, -1, 1).reshape(batch * channels, height * width)
    count = jax.vmap(lambda row: jnp.bincount(row, length=256))(pixels)
    below = jnp.cumsum(count, axis=1) - count
    largest = jnp.max(pixels, axis=1, keepdims=True)
    step = jnp.take_along_axis(below, largest, axis=1) // 255
    table = jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255)
    table = jnp.where(step > 0, table, jnp.arange(256)[None, :])
    equalized = jnp.take_along_axis(table, pixels, axis=1)
    return jnp.moveaxis(equalized.reshape(batch, channels, height, width), 1, -1)


def _require_images_of_bytes(images: Array) -> None:
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"augmentations.rand_augment: the shape is {tuple(images.shape)}, but images must be "
            "[b, height, width, channels] with 1 channel or 3; reshape them, or leave the "
            "augmentation out"
        )
    if images.dtype != jnp.uint8:
        raise ValueError(
            f"augmentations.rand_augment: the images are {images.dtype}, but must be uint8; "
            "augment the bytes and scale them afterwards, as isjax.tasks does"
        )
