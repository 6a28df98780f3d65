"""RandAugment: each operation is Pillow's, on each kind of image, and each is drawn as often."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial
from PIL import Image, ImageEnhance, ImageOps

from isjax.tasks.augmentations._randaugment import OPERATIONS, apply, rand_augment

pytestmark = pytest.mark.slow  # statistics of many images

HEIGHT, WIDTH = 22, 30
MAGNITUDES = [0, 9, 30]
MOVES = ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]
BLENDS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
EXACT = ["identity", "equalize", "solarize", "posterize", "translate_x", "translate_y"]
UNSIGNED = ["identity", "autocontrast", "equalize", "solarize", "posterize"]


def pictures(channels):
    """Faint noise, noise, a ramp, a dark image with a bright corner, few values, one value."""
    rng = np.random.default_rng(0)
    shape = (HEIGHT, WIDTH, channels)
    y, x, c = np.indices(shape)
    dark = np.zeros(shape)
    dark[:4, :5] = 200
    kinds = [
        rng.integers(90, 231, shape),
        rng.integers(0, 256, shape),
        5 * x + 3 * y + 10 * c,
        dark,
        rng.choice([0, 17, 254, 255], shape),
        np.full(shape, 77),
    ]
    return np.stack(kinds).astype(np.uint8)


@functools.cache
def applied(channels, magnitude):
    """Every operation, by every sign, to every picture, {(name, sign): [kinds, H, W, C]}."""
    cases = list(itertools.product(OPERATIONS, [-1, 1]))
    images = pictures(channels)
    index, sign = np.array([(OPERATIONS.index(name), sign) for name, sign in cases]).T
    results = jax.jit(apply, static_argnames="magnitude")(
        np.tile(images, (len(cases), 1, 1, 1)),
        np.repeat(index, len(images)),
        np.repeat(sign, len(images)).astype(np.float32),
        magnitude=magnitude,
    )
    assert results.dtype == np.uint8
    results = np.asarray(results).reshape(len(cases), *images.shape)
    return dict(zip(cases, results, strict=True))


def by_pillow(name, image, sign, magnitude):
    """One image [H, W, C], with the ranges of the docstring."""
    level = magnitude / 30
    signed = sign * level
    height, width, channels = image.shape
    pillow = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
    grey = (128,) * channels

    def affine(*matrix):
        return pillow.transform(
            pillow.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=grey
        )

    if name in BLENDS:
        result = BLENDS[name](pillow).enhance(1 + 0.9 * signed)
    else:
        result = {
            "identity": lambda: pillow,
            "autocontrast": lambda: ImageOps.autocontrast(pillow),
            "equalize": lambda: ImageOps.equalize(pillow),
            "solarize": lambda: ImageOps.solarize(pillow, 256 * (1 - level)),
            "posterize": lambda: ImageOps.posterize(pillow, 8 - round(4 * level)),
            "rotate": lambda: pillow.rotate(
                30 * signed, Image.Resampling.NEAREST, fillcolor=grey[0] if channels == 1 else grey
            ),
            "shear_x": lambda: affine(1, 0.3 * signed, 0, 0, 1, 0),
            "shear_y": lambda: affine(1, 0, 0, 0.3 * signed, 1, 0),
            "translate_x": lambda: affine(1, 0, 150 / 331 * signed * width, 0, 1, 0),
            "translate_y": lambda: affine(1, 0, 0, 0, 1, 150 / 331 * signed * height),
        }[name]()
    return np.asarray(result).reshape(image.shape)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_what_pillow_does(name, channels, magnitude):
    for sign in (-1, 1):
        ours = applied(channels, magnitude)[name, sign].astype(int)
        images = pictures(channels)
        pillows = np.stack([by_pillow(name, image, sign, magnitude) for image in images])
        difference = np.abs(ours - pillows)
        if name in EXACT:
            assert not np.any(difference)
        elif name in MOVES:  # Pillow rounds its matrix to 1/65536: a tie may fall otherwise
            assert np.mean(np.any(difference, axis=(0, 3))) <= 0.01
        else:  # Pillow cuts products in floating point: one less where they are whole
            assert np.max(difference) <= 1
            assert np.mean(difference > 0) <= 0.01


def test_autocontrast_is_exact_in_every_range():
    width = np.arange(1, 256)[:, None, None, None]
    low = (255 - width) // 2
    high = low + width
    values = np.clip(np.arange(256).reshape(1, 16, 16, 1), low, high)
    operation = np.full(255, OPERATIONS.index("autocontrast"))
    result = jax.jit(apply)(values.astype(np.uint8), operation, np.ones(255, np.float32))
    np.testing.assert_array_equal(result, 255 * (values - low) // (high - low))


@pytest.mark.parametrize("channels", [1, 3])
def test_only_autocontrast_and_equalize_change_an_image_at_magnitude_0(channels):
    images = pictures(channels)
    changed = {name for (name, _), x in applied(channels, 0).items() if np.any(x != images)}
    assert changed == {"autocontrast", "equalize"}


@pytest.mark.parametrize("channels", [1, 3])
def test_each_operation_changes_an_image_but_the_identity_and_the_colour_of_grey(channels):
    results = applied(channels, 9)
    same = {name for (name, _), x in results.items() if np.all(x[0] == pictures(channels)[0])}
    assert same == ({"identity", "color"} if channels == 1 else {"identity"})
    mirrored = {name for name in OPERATIONS if np.any(results[name, 1] != results[name, -1])}
    assert mirrored == set(OPERATIONS) - set(UNSIGNED) - same


def test_a_moved_image_shows_mid_grey_where_it_has_no_pixel():
    results = applied(3, 30)
    right = results["translate_x", 1]  # read 150/331 * 30 = 13.6 columns further right
    np.testing.assert_array_equal(right[:, :, :16], pictures(3)[:, :, 14:])
    assert np.all(right[:, :, 16:] == 128)
    assert np.all(results["rotate", 1][:, 0, 0] == 128)


def after_each(images):
    """Every operation by every sign on each of [n, H, W, C] -> [28 n, H, W, C], magnitude 9."""
    index = np.repeat(np.arange(len(OPERATIONS)), 2)
    sign = np.tile(np.float32([-1, 1]), len(OPERATIONS))
    return np.asarray(
        jax.jit(apply)(
            np.repeat(images, len(index), axis=0),
            np.tile(index, len(images)),
            np.tile(sign, len(images)),
        )
    )


@pytest.mark.parametrize("num_ops", [1, 2])
def test_each_operation_and_sign_is_as_likely_for_each_image_in_each_turn(num_ops):
    num = 10_000
    image = np.random.default_rng(5).integers(20, 201, (1, 17, 17, 3)).astype(np.uint8)
    ends = after_each(image)
    if num_ops == 2:
        ends = after_each(ends)
    ends, ways = np.unique(ends, axis=0, return_counts=True)
    if num_ops == 1:
        assert len(ends) == 2 * len(OPERATIONS) - len(UNSIGNED)  # every one can be told

    drawn = rand_augment(jax.random.key(0), np.repeat(image, num, axis=0), num_ops=num_ops)
    found, end, counts = np.unique(drawn, axis=0, return_inverse=True, return_counts=True)
    np.testing.assert_array_equal(found, ends)
    shares = ways / ways.sum()
    assert_binomial(counts, num, shares)
    # The next image's operations say nothing of this one's.
    assert_binomial(np.sum(end[1:] == end[:-1]), num - 1, np.sum(shares**2))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_key_alone_decides(channels):
    images = jnp.asarray(np.repeat(pictures(channels), 8, axis=0))
    first, other = (rand_augment(jax.random.key(seed), images) for seed in (0, 1))
    assert first.shape == images.shape and first.dtype == images.dtype
    assert np.any(first != other)
    # By default two operations of magnitude 9.
    within = jax.jit(lambda key, images: rand_augment(key, images, num_ops=2, magnitude=9))
    np.testing.assert_array_equal(first, within(jax.random.key(0), images))


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 1, 9, 3), (3, 2, 2, 1)])
def test_an_image_may_be_tiny(shape):
    operation = jnp.arange(len(OPERATIONS))
    images = np.full((len(OPERATIONS), *shape[1:]), 7, np.uint8)
    results = jax.jit(apply)(images, operation, jnp.ones(len(OPERATIONS)))
    for name, image, result in zip(OPERATIONS, images, results, strict=True):
        if name not in MOVES:
            expected = by_pillow(name, image, 1, 9)
            assert np.max(np.abs(np.asarray(result, int) - expected)) <= 1


@pytest.mark.parametrize("shape", [(2, 8, 8, 2), (2, 8, 8, 4), (8, 8, 3), (2, 40, 1), ()])
def test_what_is_not_an_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"shape is .*1 channel or 3; reshape"):
        rand_augment(jax.random.key(0), jnp.zeros(shape, jnp.uint8))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_what_is_not_bytes_is_refused(dtype):
    with pytest.raises(ValueError, match=f"images are {dtype}, .*scale them afterwards"):
        rand_augment(jax.random.key(0), jnp.zeros((2, 8, 8, 3), dtype))


@pytest.mark.parametrize("magnitude", [-1, 30.5, float("nan")])
def test_a_magnitude_out_of_range_is_refused(magnitude):
    with pytest.raises(ValueError, match=f"magnitude is {magnitude}; choose 0 to 30"):
        rand_augment(jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.uint8), magnitude=magnitude)


def test_no_operation_at_all_is_refused():
    with pytest.raises(ValueError, match="num_ops is 0; choose 1 or more"):
        rand_augment(jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.uint8), num_ops=0)
