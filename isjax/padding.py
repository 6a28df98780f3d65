"""Arrays with more rows than there are examples, so that devices divide them evenly.

The rows added have no mass: no draw from a pool or a tree ever comes to them, no loss is written
there, and they count in no mean.
"""

import jax
import jax.numpy as jnp

from isjax.base import Array, Batch, PyTree
from isjax.buffer import ScoreBuffer
from isjax.records import Record
from isjax.tree import Tree

__all__ = ["by_example", "pad", "pad_state"]


def pad(data: Batch, parts: int) -> Batch:
    """Data whose leading axis is the next multiple of `parts`; the rows added are zeros."""

    def extend(x: Array) -> Array:
        return jnp.pad(x, ((0, -x.shape[0] % parts), *((0, 0) for _ in x.shape[1:])))

    return jax.tree.map(extend, data)


def pad_state(state: PyTree, parts: int) -> PyTree:
    """A state of sampler or training in which what is kept by example divides into `parts`.

    That is each `ScoreBuffer`, the counts of a `Record`, and the lowest level of a `Tree`, which
    itself knows how many examples there are. The rest stays as it is.
    """

    def padded(part: PyTree) -> PyTree:
        if isinstance(part, Record):
            return part._replace(count=pad(part.count, parts))
        if isinstance(part, Tree):
            return part._replace(levels=(pad(part.levels[0], parts), *part.levels[1:]))
        return pad(part, parts) if isinstance(part, ScoreBuffer) else part

    return jax.tree.map(padded, state, is_leaf=by_example)


def by_example(part: PyTree) -> bool:
    """Whether it holds something of each example."""
    return isinstance(part, ScoreBuffer | Record | Tree)
