"""Leading axes: what they count in a state, padded for devices, cut into parts."""

import jax
import jax.numpy as jnp

from isjax.base import Array, Batch, PyTree

# Entries of a TPU's tile of a vector: a part of another size would be copied to be read.
_TILE = 1024


def split_rows(tree: PyTree, parts: int) -> PyTree:
    """Splits leading axes: [S n, ...] -> [S, n, ...]."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


def cut_rows(x: Array, parts: int) -> Array:
    """Equal stretches of an array, the last padded with zeros: [N, ...] -> [S, n, ...].

    Stretches of more than 1,024 rows are padded to a multiple of that.
    """
    rows = split_rows(pad(x, parts), parts)
    return jax.vmap(lambda part: pad(part, _TILE))(rows) if rows.shape[1] > _TILE else rows


def merge_parts(tree: PyTree) -> PyTree:
    """Merges the two leading axes: [S, n, ...] -> [S n, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def pad(data: Batch, multiple: int) -> Batch:
    """Pads leading axes with zeros, to the next multiple.

    The rows added are no examples: a sampler draws ids below N alone.

    Args:
        data: pytree of arrays with leading axis N.
        multiple: of which the leading axes are to be.
    """

    def extend(x: Array) -> Array:
        more = -x.shape[0] % multiple
        return jnp.pad(x, ((0, more), *((0, 0) for _ in x.shape[1:]))) if more else x

    return jax.tree.map(extend, data)


def leading_axes(state: PyTree) -> PyTree:
    """Names the leading axis of each array of a state.

    A type of its own says so by a method `leading_axes(self)` that returns the same structure with
    a string for each array: "examples" (a row for each of N; devices pad it), "parts" (a row for
    each part of the data set) or "whole".

    Args:
        state: of a sampler, of training, or any other pytree.

    Returns:
        The same structure, with a string for each array; "whole" where no type says otherwise.
    """
    says = lambda part: hasattr(part, "leading_axes")  # noqa: E731
    return jax.tree.map(
        lambda part: part.leading_axes() if says(part) else "whole", state, is_leaf=says
    )


def keeps_examples(state: PyTree) -> bool:
    """Tells whether a sampler's state has a row for each example; otherwise it serves streams, too.

    Args:
        state: of a sampler.
    """
    return "examples" in jax.tree.leaves(leading_axes(state))


def split(state: PyTree, parts: int) -> PyTree:
    """Cuts a sampler's state of the whole data set into states of equal stretches of it, stacked.

    Arrays whose leading axis counts "examples" (see `leading_axes`) are padded and cut; all others
    are repeated. A type for which that is wrong has a method `split(self, parts, size)` of its own.

    Args:
        state: of a sampler that was initialised for N examples.
        parts: S; each part is of ceil(N / S) examples, the last perhaps of fewer.

    Returns:
        The same structure, each array with a leading axis S. Parts of more than 1,024 rows are
        padded to a multiple of that.
    """

    def cut(x: Array, axis: str) -> Array:
        if axis == "examples":
            return cut_rows(x, parts)
        return jnp.broadcast_to(x, (parts, *jnp.shape(x)))

    def of_type(part: PyTree) -> PyTree:
        if hasattr(part, "split"):
            return part.split(parts, state.span.size)
        return jax.tree.map(cut, part, leading_axes(part))

    own = lambda part: hasattr(part, "split") or hasattr(part, "leading_axes")  # noqa: E731
    return jax.tree.map(of_type, state, is_leaf=own)


def extend(new: PyTree, old: PyTree) -> PyTree:
    """Carries what a sampler's state knows into one that was initialised for more examples.

    Rows of arrays whose leading axis counts "examples" are copied. Other arrays keep their old
    value, if their shape is still the same. A type for which that is wrong has a method
    `extend(self, old, size)` of its own.

    Args:
        new: state of N + n examples.
        old: state of N examples.

    Returns:
        The new state, in which the first N examples are known.
    """

    def carry(x: Array, known: Array, axis: str) -> Array:
        if axis == "examples":
            return x.at[: known.shape[0]].set(known)
        return known if jnp.shape(known) == jnp.shape(x) else x

    def of_type(part: PyTree, known: PyTree) -> PyTree:
        if hasattr(part, "extend"):
            return part.extend(known, old.span.size)
        return jax.tree.map(carry, part, known, leading_axes(part))

    own = lambda part: hasattr(part, "extend") or hasattr(part, "leading_axes")  # noqa: E731
    return jax.tree.map(of_type, new, old, is_leaf=own)
