"""Image classification data sets of tensorflow-datasets, as arrays."""

import functools
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from isjax.base import Batch
from isjax.data.dataset import SETS, Dataset, cache_dir, from_arrays
from isjax.data.files import read_or_none, write_whole
from isjax.data.source import Source, held
from isjax.data.tfds_source import open_builder, open_split, quiet

__all__ = ["load_images"]


def load_images(
    name: str,
    data_dir: str | os.PathLike | None = None,
    train: str = "train",
    test: str = "test",
    in_memory: bool = True,
) -> Dataset:
    """Loads an image classification data set of tensorflow-datasets (TFDS).

    Images are decoded once and cached in `~/.cache/isjax/tfds`, in one folder for each split and
    prepared copy of the data set. The arrays are memory-mapped: a process holds only the parts that
    it reads. A damaged cache is made anew, with a note.

    Args:
        name: name in TFDS, such as "cifar10" or "fashion_mnist".
        data_dir: TFDS's folder of prepared data sets; by default its own. A data set that is not
            prepared there is downloaded and prepared, which needs TensorFlow.
        train: split to train on, such as "train[:90%]".
        test: split to test on, such as "train[90%:]".
        in_memory: False makes `train` a `Source`, which reads images when they are needed. The test
            part is always in memory.

    Returns:
        `x` [N, H, W, C] uint8, `label` [N] int32 in [0, num_classes).

    Raises:
        ImportError: if tensorflow-datasets is not installed, or TensorFlow is needed to prepare the
            data and is not installed.
        ValueError: if there is no such data set or split, it cannot be prepared or read, or it does
            not consist of labelled 8-bit images of one size.
    """
    builder = open_builder(name, data_dir, others=SETS)
    keys = _keys(name, builder.info)  # before anything is downloaded
    if in_memory:
        examples = _part(name, builder, train, keys)
    else:
        examples = Source(open_split(builder, train), functools.partial(_pair, keys))
    parts = examples, _part(name, builder, test, keys)
    with quiet():  # TFDS logs when the first image of a source is decoded
        _check_sizes(name, *(held(part)["x"].shape[1:] for part in parts))
    label = builder.info.features[keys[1]]
    return from_arrays(*parts, num_classes=label.num_classes, class_names=label.names)


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Names of the image and label features; refuses data sets of another kind."""
    from tensorflow_datasets import features

    keys = info.supervised_keys
    kinds = [type(info.features[key]) for key in keys or () if isinstance(key, str)]
    if kinds != [features.Image, features.ClassLabel]:
        found = ", ".join(f"{key}: {type(info.features[key]).__name__}" for key in info.features)
        raise ValueError(
            f"{name} is not image classification, a pair of Image and ClassLabel, but has {found}; "
            "choose another data set, or make arrays of it and use isjax.data.from_arrays"
        )
    if info.features[keys[0]].np_dtype != np.uint8:
        raise ValueError(
            f"{name} has images of {np.dtype(info.features[keys[0]].np_dtype)}, but only 8-bit "
            "ones are read; make arrays of it and use isjax.data.from_arrays"
        )
    return keys


def _part(name: str, builder: Any, split: str, keys: tuple[str, str]) -> Batch:
    source = open_split(builder, split)
    copy = f"{builder.data_path.resolve()}\n{split}\n{builder.info.as_json}"
    fingerprint = hashlib.sha256(copy.encode()).hexdigest()[:16]
    full_name = builder.info.full_name.replace("/", "-")
    folder = cache_dir() / "tfds" / f"{full_name}-{fingerprint}"
    num_classes = builder.info.features[keys[1]].num_classes
    cached = read_or_none(folder, functools.partial(_load_checked, len(source), num_classes))
    if cached is not None:
        return cached
    with quiet():
        arrays = _decode(f"{name} {split}", source, keys)
    for part, array in arrays.items():
        with write_whole(folder / f"{part}.npy") as file:
            np.save(file, array)
    return _load(folder)


def _load(folder: pathlib.Path) -> Batch:
    return {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("x", "label")}


def _load_checked(size: int, num_classes: int, folder: pathlib.Path) -> Batch:
    """The arrays of a cached split; raises ValueError unless they are images and their labels."""
    part = _load(folder)
    x, label = part["x"], part["label"]
    images = x.dtype == np.uint8 and x.ndim == 4 and len(x) == size
    classes = label.dtype == np.int32 and label.shape == (size,)
    if not (images and classes and label.min() >= 0 and label.max() < num_classes):
        raise ValueError("these are not images and their labels")
    return part


def _pair(keys: tuple[str, str], example: dict[str, Any]) -> Batch:
    image, label = keys
    return {"x": example[image], "label": np.int32(example[label])}


def _decode(what: str, source: Any, keys: tuple[str, str]) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    image, label = keys
    labels = np.empty(len(source), np.int32)
    images = np.empty((0,), np.uint8)
    for i, example in enumerate(tqdm(source, f"decoding {what}", unit="image", disable=None)):
        if i == 0:
            images = np.empty((len(source), *example[image].shape), np.uint8)
        _check_sizes(what, images.shape[1:], example[image].shape)
        images[i], labels[i] = example[image], example[label]
    return {"x": images, "label": labels}


def _check_sizes(what: str, first: tuple[int, ...], other: tuple[int, ...]) -> None:
    if first != other:
        raise ValueError(
            f"{what} has images of different sizes, such as {first} and {other}; choose another "
            "data set, or resize them and use isjax.data.from_arrays"
        )
