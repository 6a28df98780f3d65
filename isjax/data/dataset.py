"""The type of a data set, made of arrays, and the cache of data sets that take long to make."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from isjax.base import Batch
from isjax.data.files import read_or_none, write_whole
from isjax.data.source import Source, finite_examples, held, held_ids, num_examples

__all__ = ["SETS", "Dataset", "cache_dir", "from_arrays", "load", "save", "with_label_noise"]

# Functions in isjax.data that make a data set; all other names are those of tensorflow-datasets.
SETS = ("friedman", "image_field", "mnist1d", "ptb", "text_files", "tiny_shakespeare")


class Dataset(NamedTuple):
    """Examples for training, and examples held out.

    Attributes:
        train: pytree of arrays that share their leading axis; `{"x", "label"}` for classification,
            `{"x", "y"}` for regression and language models. Or a `Source` of such examples, which
            is read batch by batch.
        test: pytree of arrays, held out to report results.
        num_classes: number of classes; None if there are no labels.
        valid: pytree of arrays, held out to choose settings; None if there are none.
        vocabulary: token of each id; None if there are no tokens.
        class_names: name of each class, for reports; None if there are none.
        source_names: name of each source, for metrics; the training part then has the source of
            each example, [N] int, as "source". None if there are none.
    """

    train: Batch | Source
    test: Batch
    num_classes: int | None = None
    valid: Batch = None
    vocabulary: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    source_names: tuple[str, ...] | None = None


def from_arrays(
    train: Batch | Source,
    test: Batch,
    num_classes: int | None = None,
    valid: Batch = None,
    vocabulary: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    source_names: Sequence[str] | None = None,
) -> Dataset:
    """Makes a data set of your own arrays, and checks them.

    Args:
        train: pytree of arrays that share their leading axis N; or a `Source` of examples, of which
            only those that it holds in memory are checked.
        test: pytree of arrays, held out.
        num_classes: number of classes; every part then needs integers in [0, num_classes) under
            "label". None = no classes.
        valid: pytree of arrays to choose settings by, or None.
        vocabulary: token of each id, or None.
        class_names: name of each class, or None.
        source_names: name of each source, or None.

    Returns:
        The data set.

    Raises:
        ValueError: if a part is empty, its arrays differ in length or hold strings; if a number is
            NaN, infinite or beyond float32; if labels are missing, no integers or outside
            [0, num_classes); if a token is beyond the vocabulary; if the number of names is not
            that of the classes; or if a source has no name.
    """
    for name, part in (("train", train), ("test", test), ("valid", valid)):
        if name == "valid" and part is None:
            continue
        try:
            num_examples(part)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        _check_finite(name, part)
        if num_classes is not None:
            _check_labels(name, part, num_classes)
        if vocabulary is not None:
            _check_tokens(name, part, len(vocabulary))
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"class_names has {len(class_names)} names, but num_classes is {num_classes}; name "
            "each class once"
        )
    if source_names is not None:
        _check_sources(train, len(source_names))
    tokens, classes, sources = (
        None if x is None else tuple(x) for x in (vocabulary, class_names, source_names)
    )
    return Dataset(train, test, num_classes, valid, tokens, classes, sources)


def with_label_noise(dataset: Dataset, share: float, seed: int = 0) -> Dataset:
    """Gives wrong labels to a share of the training examples.

    It changes exactly round(share N) labels; every other class is equally likely. The validation
    and test parts stay as they are.

    Args:
        dataset: classification data in memory.
        share: share of the training examples, in [0, 1].
        seed: seed of NumPy's generator.

    Returns:
        A new data set; the arrays of the old one are not changed.

    Raises:
        ValueError: if there are fewer than two classes, the share lies outside [0, 1], or the
            examples are not in memory.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"label_noise is {share}; choose a share in [0, 1]")
    if dataset.num_classes is None or dataset.num_classes < 2:
        raise ValueError(f"label_noise is {share}, but the data set has no classes; leave it out")
    if isinstance(dataset.train, Source):
        raise ValueError(f"label_noise is {share}, but the labels are not in memory; leave it out")
    generator = np.random.default_rng(seed)
    label = np.array(dataset.train["label"])
    wrong = generator.permutation(len(label))[: round(share * len(label))]
    shift = generator.integers(1, dataset.num_classes, len(wrong))
    label[wrong] = (label[wrong] + shift) % dataset.num_classes
    return dataset._replace(train={**dataset.train, "label": label})


def _check_finite(name: str, part: Batch | Source) -> None:
    """Refuses numbers that are not finite in float32, by the first example that has one."""
    known = held(part)
    finite = finite_examples(known)
    if finite.all():
        return
    first = int(np.argmin(finite))
    number = int(held_ids(part)[first]) if isinstance(part, Source) else first
    leaves = jax.tree_util.tree_leaves_with_path(known)
    bad = next(path for path, x in leaves if not finite_examples(x[first : first + 1]).all())
    raise ValueError(
        f"{name}{jax.tree_util.keystr(bad)}: example {number} has a number that is NaN, infinite "
        f"or beyond float32, as have {np.sum(~finite)} of {len(finite)} examples; repair the data, "
        "or leave these examples out"
    )


def _check_labels(name: str, part: Batch | Source, num_classes: int) -> None:
    try:
        labels = held(part)["label"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            f'{name}: num_classes is {num_classes}, but there is no "label"; pass '
            '{"x": ..., "label": ...}, or leave num_classes out'
        ) from None
    if not np.issubdtype(np.result_type(labels), np.integer):
        raise ValueError(
            f"{name}: labels are of type {np.result_type(labels)}; give integers in "
            f"[0, {num_classes}), as np.unique(labels, return_inverse=True)[1] makes them"
        )
    low, high = int(np.min(labels)), int(np.max(labels))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name}: labels run from {low} to {high}, but num_classes is {num_classes}; "
            f"labels must lie in [0, {num_classes})"
        )


def _check_sources(train: Batch | Source, number: int) -> None:
    source = np.asarray(dict(held(train)).get("source", -1))
    if source.ndim != 1 or source.min() < 0 or source.max() >= number:
        raise ValueError(
            f'train: there are {number} source_names, but "source" is missing or not one integer '
            f"in [0, {number}) for each example; name each source once"
        )


def _check_tokens(name: str, part: Batch | Source, size: int) -> None:
    highest = max(int(np.max(tokens)) for tokens in jax.tree.leaves(held(part)))
    if highest >= size:
        raise ValueError(
            f"{name}: there is a token {highest}, but the vocabulary has {size}; tokens must lie "
            f"in [0, {size}), or be negative where they are padding"
        )


def cache_dir() -> pathlib.Path:
    """Folder of cached data sets: `$XDG_CACHE_HOME/isjax`, or `~/.cache/isjax`."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "isjax"


def save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes an npz file whole or not at all, so that no other run reads half of it.

    Args:
        path: file to write; its folder is made if needed.
        **arrays: arrays by name.
    """
    with write_whole(path) as file:
        np.savez(file, **arrays)  # ty: ignore[invalid-argument-type] (savez_compressed loads slowly)


def load(path: pathlib.Path, **shapes: tuple[int, ...]) -> dict[str, np.ndarray] | None:
    """Reads arrays of an npz file that can be made anew.

    Args:
        path: file that `save` wrote.
        **shapes: shape of each array to read, by its name.

    Returns:
        The arrays by name; None if there is no such file, or, with a note, if it is damaged, lacks
        an array, or has one of another shape.
    """

    def read(path: pathlib.Path) -> dict[str, np.ndarray]:
        with np.load(path) as file:
            arrays = {name: file[name] for name in shapes}
        if {name: array.shape for name, array in arrays.items()} != shapes:
            raise ValueError("an array has another shape")
        return arrays

    return read_or_none(path, read)
