"""Generated data sets: Friedman's regression problem and MNIST-1D."""

import os
import pathlib
import random

import numpy as np

from isjax.data.dataset import Dataset, cache_dir, from_arrays, load, save

__all__ = ["friedman", "mnist1d"]


def friedman(
    num_train: int = 8000, num_test: int = 2000, noise: float = 1.0, seed: int = 0
) -> Dataset:
    """Generates Friedman's first regression problem (Ann. Statistics 19:1, 1991; Breiman 1996).

    y = 10 sin(pi x0 x1) + 20 (x2 - 0.5)^2 + 10 x3 + 5 x4 + noise * e, with e standard normal. The
    other five of the ten inputs do not matter.

    Args:
        num_train: number of examples to train on.
        num_test: number of examples to test on, with the same noise.
        noise: standard deviation of the noise; its square is the least mean squared error possible.
        seed: seed of NumPy's generator.

    Returns:
        `x` [N, 10] float32, uniform in [0, 1]; `y` [N, 1] float32, with mean about 14.4 and
        standard deviation about 4.9 without noise.

    Raises:
        ValueError: if a number of examples is not positive, or the noise is negative.
    """
    if num_train < 1 or num_test < 1:
        raise ValueError(
            f"friedman: num_train = {num_train} and num_test = {num_test}; choose at least 1"
        )
    if not 0 <= noise < np.inf:
        raise ValueError(f"friedman: noise = {noise}; choose a finite number, 0 or more")
    generator = np.random.default_rng(seed)
    total = num_train + num_test
    x = generator.random((total, 10), dtype=np.float32)
    x0, x1, x2, x3, x4 = x[:, :5].T.astype(np.float64)
    y = 10 * np.sin(np.pi * x0 * x1) + 20 * (x2 - 0.5) ** 2 + 10 * x3 + 5 * x4
    y = (y + noise * generator.standard_normal(total)).astype(np.float32)[:, None]
    train = {"x": x[:num_train], "y": y[:num_train]}
    return from_arrays(train, {"x": x[num_train:], "y": y[num_train:]})


def mnist1d(
    data_dir: str | os.PathLike | None = None,
    num_train: int = 40_000,
    num_test: int = 10_000,
    seed: int = 42,
) -> Dataset:
    """Generates MNIST-1D (arXiv 2011.14439) by its authors' code, without a download.

    The first call with given numbers takes some 20 seconds; the arrays are then cached. A damaged
    cache is made anew, with a note.

    Args:
        data_dir: folder of the cache; by default `~/.cache/isjax`.
        num_train: number of examples to train on.
        num_test: number of examples to test on. Train and test together must be a multiple of 10,
            so that the 10 classes have equal size.
        seed: seed of the generator; the authors use 42.

    Returns:
        `x` [N, 40, 1] float32 with mean 0 and variance 1; `label` [N] int32 in [0, 10).

    Raises:
        ImportError: if mnist1d is not installed.
        ValueError: if a number of examples is not positive, or the total is not a multiple of 10.
    """
    total = num_train + num_test
    if num_train < 1 or num_test < 1 or total % 10:
        raise ValueError(
            f"mnist1d: num_train = {num_train} and num_test = {num_test}; choose positive numbers "
            "whose sum is a multiple of 10, for 10 classes of equal size"
        )
    folder = pathlib.Path(data_dir).expanduser() if data_dir else cache_dir()
    path = folder / f"mnist1d-{total}-{seed}.npz"
    arrays = load(path, x=(total, 40, 1), label=(total,))
    if arrays is None:
        arrays = _generate_mnist1d(total, seed)
        save(path, **arrays)
    x, label = arrays["x"], arrays["label"]
    train = {"x": x[:num_train], "label": label[:num_train]}
    test = {"x": x[num_train:], "label": label[num_train:]}
    return from_arrays(train, test, num_classes=10)


def _generate_mnist1d(total: int, seed: int) -> dict[str, np.ndarray]:
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise ImportError(
            "data.mnist1d needs mnist1d: pip install '.[run]' in a checkout of isjax"
        ) from error
    args = get_dataset_args()
    args.num_samples, args.train_split, args.seed = total, 1.0, seed
    # The generator seeds the global random states; restore the caller's.
    states = np.random.get_state(), random.getstate()
    try:
        arrays = make_dataset(args)
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
    return {
        "x": arrays["x"].astype(np.float32)[:, :, None],
        "label": arrays["y"].astype(np.int32),
    }
