import numpy as np
import pytest
import skimage

from isjax import data
from isjax.data import fields


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("astronaut", (512, 512, 3)),
        ("camera", (512, 512, 1)),
        ("china", (427, 640, 3)),
        ("coffee", (400, 600, 3)),
        ("flower", (427, 640, 3)),
    ],
)
def test_an_image_comes_as_it_is_without_a_network(name, shape):
    image = data.bundled_image(name)
    assert image.shape == shape and image.dtype == np.float32
    assert 0 <= image.min() < 0.1 and 0.9 < image.max() <= 1
    assert name in fields.IMAGES


def test_camera_is_that_of_scikit_image():
    np.testing.assert_allclose(
        data.bundled_image("camera")[:, :, 0], skimage.data.camera() / 255.0, atol=1e-6
    )


def test_a_smaller_image_keeps_its_proportions_and_its_mean():
    image, small = data.bundled_image("coffee"), data.bundled_image("coffee", 60)
    assert small.shape == (40, 60, 3)
    np.testing.assert_allclose(small.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=0.01)


def test_pixels_are_fourier_features_of_their_coordinates():
    made = data.image_field("camera", size=8, num_features=6, scale=2.0, seed=3)
    frequencies = 2.0 * np.random.default_rng(3).normal(size=(2, 3))
    for row, column in [(0, 0), (0, 7), (5, 2)]:
        v = np.array([2 * row / 7 - 1, 2 * column / 7 - 1])
        angles = 2 * np.pi * v @ frequencies
        want = np.concatenate([np.sin(angles), np.cos(angles)])
        np.testing.assert_allclose(made.train["x"][8 * row + column], want, atol=1e-6)
        colour = data.bundled_image("camera", 8)[row, column]
        np.testing.assert_array_equal(made.train["y"][8 * row + column], colour)
    assert made.train["x"].shape == (64, 6) and made.train["x"].dtype == np.float32
    np.testing.assert_array_equal(made.test["y"], made.train["y"])
    assert data.builder("image_field") is data.image_field


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "lena"}, "no image lena; choose of astronaut, camera"),
        ({"size": 513}, "size is 513; choose one from 1 to 512, or 0"),
        ({"num_features": 7}, "num_features is 7; choose an even number"),
        ({"scale": 0.0}, r"scale is 0\.0; choose a finite number above 0"),
    ],
)
def test_an_image_field_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        data.image_field(**options)
