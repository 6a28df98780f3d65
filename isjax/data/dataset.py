"""What a data set is, and where those that are made or decoded once are kept."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from isjax.base import Batch
from isjax.data.files import write_whole
from isjax.data.source import Source, held, num_examples

__all__ = ["SETS", "Dataset", "cache_dir", "from_arrays", "save", "with_label_noise"]

# The data sets that isjax makes itself, by name in isjax.data; other names are those of
# tensorflow-datasets.
SETS = ("friedman", "mnist1d", "ptb", "tiny_shakespeare")


class Dataset(NamedTuple):
    """Examples to train on, and examples held out.

    Attributes:
        train: pytree of arrays with one leading axis; for classification `{"x", "label"}`, for
            regression and language models `{"x", "y"}`. Or a `Source` of such, which is read one
            batch at a time.
        test: the same for the examples held out.
        num_classes: of the labels; None where there are no classes.
        valid: the same for examples to choose settings by; None where there are none.
        vocabulary: the token of each id; None where there are no tokens.
        class_names: of the labels, for those who look at examples; None if there are none.
    """

    train: Batch | Source
    test: Batch
    num_classes: int | None = None
    valid: Batch = None
    vocabulary: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None


def from_arrays(
    train: Batch | Source,
    test: Batch,
    num_classes: int | None = None,
    valid: Batch = None,
    vocabulary: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """A data set of one's own arrays.

    Args:
        train: any pytree of arrays that share their leading axis; or a `Source` of examples, of
            which only those that it holds are checked.
        test: arrays likewise.
        num_classes: if given, each part has integers in [0, num_classes) under "label".
        valid: the same as `train`, or None.
        vocabulary: the token of each id, or None.
        class_names: of the labels, one for each class, or None.

    Raises:
        ValueError: if a part is empty or ragged, has no labels where there are classes, or a label
            lies outside [0, num_classes), or a token beyond the vocabulary; or if there are more or
            fewer names than classes.
    """
    for name, part in (("train", train), ("test", test), ("valid", valid)):
        if name == "valid" and part is None:
            continue
        try:
            num_examples(part)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if num_classes is not None:
            _check_labels(name, part, num_classes)
        if vocabulary is not None:
            _check_tokens(name, part, len(vocabulary))
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"class_names has {len(class_names)} names, but num_classes is {num_classes}; name "
            "each class once"
        )
    tokens, names = (None if x is None else tuple(x) for x in (vocabulary, class_names))
    return Dataset(train, test, num_classes, valid, tokens, names)


def with_label_noise(dataset: Dataset, share: float, seed: int = 0) -> Dataset:
    """Gives a share of the training examples another label, each other class as likely.

    Exactly round(share N) examples, drawn by NumPy's generator; the valid and test parts stay as
    they are.

    Raises:
        ValueError: if there are no classes, or the share lies outside [0, 1], or the examples are
            not in memory.
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


def _check_labels(name: str, part: Batch | Source, num_classes: int) -> None:
    try:
        labels = held(part)["label"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            f'{name}: num_classes is {num_classes}, but there is no "label" in it; pass '
            '{"x": ..., "label": ...}, or leave num_classes out'
        ) from None
    low, high = int(np.min(labels)), int(np.max(labels))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name}: labels run from {low} to {high}, but num_classes is {num_classes}; "
            f"labels must lie in [0, {num_classes})"
        )


def _check_tokens(name: str, part: Batch | Source, size: int) -> None:
    highest = max(int(np.max(tokens)) for tokens in jax.tree.leaves(held(part)))
    if highest >= size:
        raise ValueError(
            f"{name}: there is a token {highest}, but the vocabulary has {size}; tokens must lie "
            f"in [0, {size}), or be negative where they are padding"
        )


def cache_dir() -> pathlib.Path:
    """Where data sets are kept for the next run: `$XDG_CACHE_HOME/isjax`, or `~/.cache/isjax`."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "isjax"


def save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes all of an npz file or nothing, so that no run reads half of what another writes."""
    with write_whole(path) as file:
        np.savez(file, **arrays)  # ty: ignore[invalid-argument-type] (compressed, it loads slowly)
