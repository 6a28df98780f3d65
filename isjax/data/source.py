"""Examples that are not held in memory, but read one batch at a time."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from isjax import base
from isjax.base import Array, Batch

__all__ = ["Source", "held", "in_memory", "num_examples"]

_HELD = 1000  # examples, by which shapes, labels, and the statistics of images are known


class Source:
    """What takes the place of arrays where a data set is larger than memory.

    `source[ids]` reads the examples `ids` [b], whatever their order, into arrays with leading axis
    b, as `x[ids]` does of an array.
    """

    def __init__(self, examples: Sequence[Any], convert: Callable[[Any], Any] = lambda x: x):
        """Reads nothing yet.

        Args:
            examples: has `len`, and by number an example, a pytree of numbers and arrays that each
                has the same shape in all; such as an array_record data source of
                tensorflow-datasets or of grain, or a `grain.MapDataset`. Several are read at once
                where there is `__getitems__(numbers)`. Threads read from it at the same time.
            convert: from such an example to the one wanted, such as `{"x": ..., "label": ...}`.

        Raises:
            ValueError: if it is empty.
        """
        if not len(examples):
            raise ValueError("the source has no examples; give one that has")
        self._examples, self._convert = examples, convert

    def __len__(self) -> int:
        """N."""
        return len(self._examples)

    def __getitem__(self, ids: Array | np.ndarray | slice) -> Batch:
        """The examples `ids` [b], or those of a slice, as NumPy arrays [b, ...].

        Raises:
            IndexError: if there is no such example.
            ValueError: if one cannot be read, or those read are of different shapes.
        """
        size = len(self)
        numbers = list(range(size)[ids]) if isinstance(ids, slice) else np.asarray(ids).tolist()
        if beyond := [i for i in numbers if not 0 <= i < size]:
            raise IndexError(f"there is no example {beyond[0]} in a source of {size}")
        return self._read(numbers)

    @functools.cached_property
    def held(self) -> Batch:
        """Up to 1,000 examples, evenly spaced, kept once read."""
        return self[np.linspace(0, len(self), min(len(self), _HELD), endpoint=False).astype(int)]

    def _read(self, ids: list[int]) -> Batch:
        read = getattr(self._examples, "__getitems__", None)
        try:
            found = read(ids) if read else [self._examples[i] for i in ids]
            examples = [self._convert(example) for example in found]
        except Exception as error:
            raise ValueError(self._culprit(ids, error)) from error
        try:
            return jax.tree.map(lambda *xs: np.stack(xs), *examples)
        except ValueError as error:
            raise ValueError(
                f"examples of the source differ in shape ({error}); have `convert` make them alike"
            ) from error

    def _culprit(self, ids: Sequence[int], error: Exception) -> str:
        """Which of several examples is the one that cannot be read."""
        for i in ids:
            try:
                self._convert(self._examples[i])
            except Exception as its:
                return f"example {i} of the source cannot be read: {type(its).__name__}: {its}"
        return f"examples of the source could not be read at first: {type(error).__name__}: {error}"


def in_memory(part: Batch | Source) -> bool:
    """Whether these are arrays."""
    return not isinstance(part, Source)


def held(part: Batch | Source) -> Batch:
    """Arrays as they are; of a source, what it holds in memory to be known by."""
    return part.held if isinstance(part, Source) else part


def num_examples(part: Batch | Source) -> int:
    """N, of a source or of arrays.

    Raises:
        ValueError: if arrays have no common, non-empty leading axis.
    """
    return len(part) if isinstance(part, Source) else base.num_examples(part)
