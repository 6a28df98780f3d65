"""Data sets larger than memory, read batch by batch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isjax import training
from isjax.base import Array, Batch

__all__ = ["Source", "finite_examples", "held", "held_ids", "in_memory", "num_examples"]

_HELD = 1000  # examples in memory, to know shapes, labels and the statistics of images
_SLICE = 10_000  # examples looked at at once


class Source:
    """Examples that are read when they are needed; replaces the arrays of a data set.

    `source[ids]` reads the examples `ids` [b], in any order, into NumPy arrays [b, ...], as
    `x[ids]` does for an array.
    """

    def __init__(self, examples: Sequence[Any], convert: Callable[[Any], Any] = lambda x: x):
        """Wraps the examples; nothing is read yet.

        Args:
            examples: sequence of examples, such as an array_record data source of
                tensorflow-datasets or grain, or a `grain.MapDataset`. An example is a pytree of
                numbers and arrays, with the same shapes in all. If there is a method
                `__getitems__(numbers)`, it reads several at once. Several threads read at the same
                time.
            convert: function from such an example to the one to train on, such as
                `{"x": ..., "label": ...}`.

        Raises:
            ValueError: if there are no examples.
        """
        if not len(examples):
            raise ValueError("the source has no examples; give it at least 1")
        self._examples, self._convert = examples, convert

    def __len__(self) -> int:
        """Number of examples, N."""
        return len(self._examples)

    def __getitem__(self, ids: Array | np.ndarray | slice) -> Batch:
        """Reads examples into a pytree of NumPy arrays [b, ...].

        Args:
            ids: [b] int in [0, N), or a slice.

        Raises:
            IndexError: if an id is outside [0, N).
            ValueError: if an example cannot be read, is None or holds strings, or if shapes differ.
        """
        size = len(self)
        numbers = list(range(size)[ids]) if isinstance(ids, slice) else np.asarray(ids).tolist()
        if beyond := [i for i in numbers if not 0 <= i < size]:
            raise IndexError(
                f"there is no example {beyond[0]} in a source of {size}; ids lie in [0, {size})"
            )
        return self._read(numbers)

    @functools.cached_property
    def held(self) -> Batch:
        """Up to 1,000 evenly spaced examples, read once and kept in memory."""
        return self[held_ids(self)]

    def _read(self, ids: list[int]) -> Batch:
        read = getattr(self._examples, "__getitems__", None)
        try:
            found = read(ids) if read else [self._examples[i] for i in ids]
            examples = [self._converted(example) for example in found]
        except Exception as error:
            raise ValueError(self._failure(ids, error)) from error
        try:
            batch = jax.tree.map(lambda *xs: np.stack(xs), *examples)
        except ValueError as error:
            raise ValueError(
                f"examples of the source differ in shape ({error}); have `convert` make them alike"
            ) from error
        try:
            training.require_numbers(batch)
        except ValueError as error:
            raise ValueError(
                f"examples of the source: {error}, or leave it out in `convert`"
            ) from None
        return batch

    def _converted(self, found: Any) -> Any:
        """The example to train on, of one as read."""
        example = None if found is None else self._convert(found)
        if example is None:
            raise ValueError(
                "it is None, as where a grain.MapDataset was filtered; make the source of those "
                "that are left, as in grain.MapDataset.source(kept).map(lambda i: dataset[i])"
            )
        return example

    def _failure(self, ids: Sequence[int], error: Exception) -> str:
        """Message that names the first example that cannot be read."""
        for i in ids:
            try:
                self._converted(self._examples[i])
            except Exception as own:
                return f"example {i} of the source cannot be read: {type(own).__name__}: {own}"
        return f"examples of the source could not be read at first: {type(error).__name__}: {error}"


def in_memory(part: Batch | Source) -> bool:
    """Tells whether examples are arrays, and not a `Source`.

    Args:
        part: a `Source`, or a pytree of arrays.
    """
    return not isinstance(part, Source)


def held(part: Batch | Source) -> Batch:
    """Returns arrays as they are; of a `Source`, the examples that it holds in memory.

    Args:
        part: a `Source`, or a pytree of arrays.
    """
    return part.held if isinstance(part, Source) else part


def held_ids(source: Source) -> np.ndarray:
    """Returns the ids of the examples that a source holds in memory, [<= 1000] int."""
    return np.linspace(0, len(source), min(len(source), _HELD), endpoint=False).astype(int)


def finite_examples(batch: Batch) -> np.ndarray:
    """Tells which examples have only numbers that are finite in float32.

    Args:
        batch: pytree of arrays [b, ...]; those of integers, booleans and text are finite.

    Returns:
        [b] bool.
    """
    leaves = jax.tree.leaves(batch)
    finite = np.ones(len(leaves[0]), bool)
    for x in leaves:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            wide = np.complex64 if jnp.issubdtype(x.dtype, jnp.complexfloating) else np.float32
            for start in range(0, len(x), _SLICE):  # np.isfinite takes a byte for each number
                part = slice(start, start + _SLICE)
                with np.errstate(over="ignore"):
                    numbers = np.asarray(x[part]).astype(wide)
                finite[part] &= np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    return finite


def num_examples(part: Batch | Source) -> int:
    """Counts the examples of a `Source` or of arrays.

    Args:
        part: a `Source`, or a pytree of arrays.

    Returns:
        N.

    Raises:
        ValueError: if the arrays have no common, non-empty leading axis.
    """
    return len(part) if isinstance(part, Source) else training.num_examples(part)
