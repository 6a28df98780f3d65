"""An image as a function of its coordinates."""

import numpy as np

from isjax.data.dataset import Dataset, from_arrays

__all__ = ["bundled_image", "image_field"]

IMAGES = ("astronaut", "camera", "china", "coffee", "flower")


def bundled_image(name: str = "camera", size: int = 0) -> np.ndarray:
    """Loads an image that scikit-image or scikit-learn ships.

    Args:
        name: "camera" (512 x 512, grey), "astronaut" (512 x 512) or "coffee" (400 x 600) of
            scikit-image, "china" or "flower" (427 x 640) of scikit-learn.
        size: pixels of the longer side, to which the image is shrunk; 0 = as it is.

    Returns:
        [height, width, channels] float32 in [0, 1], of 1 or 3 channels.

    Raises:
        ImportError: if scikit-image or scikit-learn is not installed.
        ValueError: if there is no such image, or it has no more than `size` pixels.
    """
    if name not in IMAGES:
        raise ValueError(f"bundled_image: there is no image {name}; choose of {', '.join(IMAGES)}")
    try:
        import skimage
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(
            "data.bundled_image needs scikit-image and scikit-learn: pip install '.[images]' in a "
            "checkout of isjax"
        ) from error
    photo = name in ("china", "flower")
    image = load_sample_image(f"{name}.jpg") if photo else getattr(skimage.data, name)()
    height, width = image.shape[:2]
    longer = max(height, width)
    if not 0 <= size <= longer:
        raise ValueError(f"bundled_image: size is {size}; choose one from 1 to {longer}, or 0")
    image = image.reshape(height, width, -1) / 255
    if size:
        shape = [max(1, round(side * size / longer)) for side in (height, width)]
        image = skimage.transform.resize(image, shape, anti_aliasing=True)
    return np.clip(image, 0, 1).astype(np.float32)


def image_field(
    image: str = "camera",
    size: int = 128,
    num_features: int = 128,
    scale: float = 8.0,
    seed: int = 0,
) -> Dataset:
    """Makes a data set of the pixels of an image: Fourier features of coordinates, and colours.

    With coordinates v in [-1, 1]^2, the features are sin(2 pi B v) and cos(2 pi B v), the entries
    of B normal with deviation `scale` (arXiv 2006.10739). An `MLP` on them is a neural field.
    Its peak signal-to-noise ratio in decibels is -10 log10(train_loss).

    Args:
        image: name of the image, see `bundled_image`.
        size: pixels of the longer side; 0 = as it is.
        num_features: numbers for each pixel, even.
        scale: deviation of the frequencies, in periods per half of the image.
        seed: seed of NumPy's generator of the frequencies.

    Returns:
        `x` [pixels, num_features] float32; `y` [pixels, channels] float32 in [0, 1], in the order
        of rows. The test part is the training part: the picture itself is the goal.

    Raises:
        ImportError: if scikit-image or scikit-learn is not installed.
        ValueError: if there is no such image, the number of features is not even and positive, or
            the scale is not above 0.
    """
    if num_features < 2 or num_features % 2:
        raise ValueError(f"image_field: num_features is {num_features}; choose an even number")
    if not 0 < scale < np.inf:
        raise ValueError(f"image_field: scale is {scale}; choose a finite number above 0")
    picture = bundled_image(image, size)
    sides = [np.linspace(-1, 1, side) for side in picture.shape[:2]]
    coordinates = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
    frequencies = scale * np.random.default_rng(seed).normal(size=(2, num_features // 2))
    angles = 2 * np.pi * coordinates @ frequencies
    x = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    part = {"x": x, "y": picture.reshape(-1, picture.shape[2])}
    return from_arrays(part, part)
