"""Data sets as arrays, looked up by name in `__all__`."""

import os
import pathlib
import random
import tempfile
from typing import NamedTuple

import numpy as np

from isjax.base import Batch
from isjax.training import num_examples

__all__ = ["mnist1d"]


class Dataset(NamedTuple):
    """Examples in memory.

    Attributes:
        train: pytree of arrays with one leading axis; for classification `{"x", "label"}`.
        test: the same for the examples held out.
        num_classes: of the labels; None where there are no classes.
    """

    train: Batch
    test: Batch
    num_classes: int | None = None


def from_arrays(train: Batch, test: Batch, num_classes: int | None = None) -> Dataset:
    """A data set of one's own arrays.

    Raises:
        ValueError: if a part is empty or ragged, or a label lies outside [0, num_classes).
    """
    for name, part in (("train", train), ("test", test)):
        try:
            num_examples(part)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if num_classes is not None:
            low, high = int(np.min(part["label"])), int(np.max(part["label"]))
            if low < 0 or high >= num_classes:
                raise ValueError(
                    f"{name}: labels run from {low} to {high}, but num_classes is {num_classes}; "
                    f"labels must lie in [0, {num_classes})"
                )
    return Dataset(train, test, num_classes)


def mnist1d(
    data_dir: str | os.PathLike | None = None,
    num_train: int = 40_000,
    num_test: int = 10_000,
    seed: int = 42,
) -> Dataset:
    """MNIST-1D (arXiv 2011.14439), generated offline by its authors' code.

    Args:
        data_dir: where the arrays are cached; by default `~/.cache/isjax`. The first call with
            given numbers takes some 20 seconds.
        num_train: examples to train on.
        num_test: examples to test on. Together a multiple of 10, for classes of equal size.
        seed: of the generator; 42 is the authors' choice.

    Returns:
        `x` [N, 40, 1] float32 with mean 0 and variance 1, `label` [N] int32 in [0, 10).

    Raises:
        ValueError: if a number of examples is not positive or the total no multiple of 10.
    """
    total = num_train + num_test
    if num_train < 1 or num_test < 1 or total % 10:
        raise ValueError(
            f"mnist1d: num_train = {num_train} and num_test = {num_test}; both must be positive "
            "and their sum a multiple of 10, for 10 classes of equal size"
        )
    path = _cache_dir(data_dir) / f"mnist1d-{total}-{seed}.npz"
    if not path.exists():
        _save(path, **_generate_mnist1d(total, seed))
    with np.load(path) as arrays:
        x, label = arrays["x"], arrays["label"]
    train = {"x": x[:num_train], "label": label[:num_train]}
    test = {"x": x[num_train:], "label": label[num_train:]}
    return from_arrays(train, test, num_classes=10)


def _generate_mnist1d(total: int, seed: int) -> dict[str, np.ndarray]:
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise ImportError("data.mnist1d needs mnist1d: pip install 'isjax[run]'") from error
    args = get_dataset_args()
    args.num_samples, args.train_split, args.seed = total, 1.0, seed
    # The generator seeds the global generators: give the caller's back.
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


def _cache_dir(data_dir: str | os.PathLike | None) -> pathlib.Path:
    if data_dir:
        return pathlib.Path(data_dir).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "isjax"


def _save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes all of a file or nothing, so that no run reads half of what another writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = pathlib.Path(folder, path.name)
        np.savez_compressed(part, allow_pickle=False, **arrays)
        os.replace(part, path)
