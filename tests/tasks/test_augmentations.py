"""Augmentations: every result is one that NumPy gives, and each is as likely as it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial

from isjax.tasks import augmentations
from isjax.tasks.augmentations import Mixed, crop, flip

BATCH = 4000


def pictures(shape=(BATCH, 6, 7, 2), dtype=np.uint8, seed=0):
    """Images whose pixels tell places apart."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, shape).astype(dtype)


def places(images, cropped, padding):
    """For each image the one place (row, column) at which NumPy cuts the same out, [b, 2]."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), mode="reflect")
    side = 2 * padding + 1
    matches = np.stack(
        [
            np.all(padded[:, i : i + height, j : j + width] == cropped, axis=(1, 2, 3))
            for i in range(side)
            for j in range(side)
        ],
        axis=1,
    )
    assert np.all(matches.sum(axis=1) == 1)
    return np.stack(np.divmod(matches.argmax(axis=1), side), axis=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("padding", [1, 4])
def test_a_crop_is_cut_out_of_its_padded_image_at_any_place_as_likely(padding, dtype):
    images = pictures(dtype=dtype)
    cropped = jax.jit(crop, static_argnames="padding")(jax.random.key(0), images, padding=padding)
    assert cropped.shape == images.shape and cropped.dtype == dtype
    place = places(images, np.asarray(cropped), padding)
    side = 2 * padding + 1
    assert_binomial(np.bincount(place @ [side, 1], minlength=side**2), BATCH, side**-2)
    # The next image's place says nothing of this one's.
    same = np.all(place[1:] == place[:-1], axis=1)
    assert_binomial(same.sum(), BATCH - 1, side**-2)


def test_a_crop_pads_by_4_and_by_0_does_nothing():
    images = pictures((64, 8, 6, 1))
    key = jax.random.key(3)
    np.testing.assert_array_equal(crop(key, images), crop(key, images, padding=4))
    np.testing.assert_array_equal(crop(key, images, padding=0), images)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_flip_turns_half_of_the_images_left_to_right(dtype):
    images = pictures(dtype=dtype)
    flipped = jax.jit(flip)(jax.random.key(0), images)
    assert flipped.shape == images.shape and flipped.dtype == dtype
    turned = np.all(np.flip(images, axis=2) == flipped, axis=(1, 2, 3))
    kept = np.all(images == flipped, axis=(1, 2, 3))
    assert np.all(turned ^ kept)
    assert_binomial(turned.sum(), BATCH, 0.5)
    assert_binomial((turned[1:] == turned[:-1]).sum(), BATCH - 1, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", augmentations.__all__)
def test_the_key_alone_decides(name):
    augment = jax.jit(getattr(augmentations, name))
    images = jnp.asarray(pictures((50, 6, 6, 3)))
    first, again, other = (augment(jax.random.key(seed), images) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))
    # A batch of one image many times over: each copy has its own fate, unless they are averaged.
    copies = augment(jax.random.key(0), jnp.repeat(images[:1], 50, axis=0))
    copies = copies.x if isinstance(copies, Mixed) else copies
    assert np.any(copies[1:] != copies[:-1]) == (name != "mixup")


@pytest.mark.parametrize("name", augmentations.__all__)
@pytest.mark.parametrize("shape", [(2, 40, 1), (28, 28), (2, 3, 8, 8, 1)])
def test_what_is_not_an_image_is_refused(name, shape):
    with pytest.raises(
        ValueError, match=f"augmentations.{name}: the shape is .*{shape[0]}.*; reshape"
    ):
        getattr(augmentations, name)(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("padding", [5, -1])
def test_a_crop_refuses_more_padding_than_there_is_to_reflect(padding):
    with pytest.raises(ValueError, match=f"padding is {padding}, .*5 x 7 reflect 0 to 4 pixels"):
        crop(jax.random.key(0), jnp.zeros((2, 5, 7, 1)), padding=padding)
