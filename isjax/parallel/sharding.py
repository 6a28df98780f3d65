"""Where the arrays of a train state and of a data set lie on a mesh."""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from isjax._numerics.leading_axis import leading_axes
from isjax.base import Array, Batch, FlatRows, PyTree
from isjax.parallel.mesh import DATA, MODEL
from isjax.parallel.padding import pad

__all__ = ["bounds", "build", "flat_rows", "last_axis", "place", "replicated", "shardings"]

Rule = Callable[[Array, Mesh], P]
_LANES = 128  # of a TPU's registers


def replicated(x: Array, mesh: Mesh) -> P:
    """The rule by which each device has all parameters."""
    del x, mesh
    return P()


def last_axis(x: Array, mesh: Mesh) -> P:
    """The rule by which the last axis of each matrix is divided over the model axis, if it can."""
    if x.ndim > 1 and x.shape[-1] % mesh.shape[MODEL] == 0:
        return P(*[None] * (x.ndim - 1), MODEL)
    return P()


def shardings(state: PyTree, mesh: Mesh, rule: Rule = replicated) -> PyTree:
    """The `NamedSharding` of each array of a train state, or of a part of one.

    What is kept by example, padded by `padding.pad_state`, and by stratum, is divided over the data
    axis; all else, parameters and moments of the optimiser, by the rule.

    Args:
        state: arrays, or their shapes as `jax.eval_shape` has them.
        mesh: of `make_mesh`.
        rule: `(array, mesh) -> PartitionSpec`, such as `last_axis`.
    """
    divided = NamedSharding(mesh, P(DATA))
    return jax.tree.map(
        lambda x, axis: NamedSharding(mesh, rule(x, mesh)) if axis == "whole" else divided,
        state,
        leading_axes(state),
    )


def build(
    make: Callable[..., PyTree], inputs: tuple, mesh: Mesh, rule: Rule = replicated
) -> PyTree:
    """The state that `make(*inputs)` returns, each device making its own part."""
    shapes = jax.eval_shape(make, *inputs)
    return jax.jit(make, out_shardings=shardings(shapes, mesh, rule))(*inputs)


def place(data: Batch, mesh: Mesh, parts: int = 1) -> Batch:
    """NumPy arrays on a mesh, each device getting its part of the leading axis.

    A process reads of `data` only what its devices are to hold. On a TPU, images become `FlatRows`:
    gather examples by `isjax.base.take`.

    Args:
        data: pytree of arrays with leading axis N.
        mesh: of `make_mesh`.
        parts: the leading axis is padded with zeros, as by `padding.pad`, until both this and the
            data axis divide it: S of `strata.stratified`.
    """
    if mesh.devices.flat[0].platform == "tpu":
        data = jax.tree.map(flat_rows, data)
    if mesh.size == 1:
        return pad(jax.device_put(data), parts)
    sharding = NamedSharding(mesh, P(DATA))

    def of_array(x: np.ndarray) -> Array:
        rows = x.shape[0] + -x.shape[0] % math.lcm(mesh.shape[DATA], parts)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop = bounds(index, rows)
            held = np.asarray(x[start:stop])
            return np.pad(held, ((0, stop - start - len(held)), *((0, 0) for _ in x.shape[1:])))

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)

    return jax.tree.map(of_array, data)


def flat_rows(x: np.ndarray) -> np.ndarray | FlatRows:
    """An array of images as `FlatRows`, and any other as it is.

    Args:
        x: [N, ...]. Rows of fewer than 64 entries stay, since padding would more than double them.
    """
    shape, size = x.shape[1:], math.prod(x.shape[1:])
    if size < _LANES // 2 or (len(shape) == 1 and size % _LANES == 0):
        return x
    rows = np.reshape(x, (len(x), size))
    return FlatRows(np.pad(rows, ((0, 0), (0, -size % _LANES))) if size % _LANES else rows, shape)  # type: ignore


def bounds(index: tuple[slice, ...] | None, size: int) -> tuple[int, int]:
    """Where a device's part of `size` rows begins and ends, by JAX's index of it; None = all."""
    start, stop, _ = (index or (slice(None),))[0].indices(size)
    return start, stop
