"""A mesh of devices: over one axis the examples are spread, over another perhaps the parameters.

Within `jax.set_mesh(mesh)` the functions here say where arrays lie, and XLA finds the
communication. Without a mesh they do nothing, nor with an axis "data" that is not `AxisType.Auto`:
inside of `jax.pmap` and `jax.shard_map`, and on JAX's default meshes, the caller places arrays.
"""

import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from isjax.base import Array, Batch, PyTree, take

__all__ = ["DATA", "MODEL", "gathered", "make_mesh", "shards", "spread", "take_by_part"]

DATA, MODEL = "data", "model"


def make_mesh(data: int = 0, model: int = 1) -> Mesh:
    """Devices, of all processes, as a mesh of `data` times `model`.

    Args:
        data: devices along the axis of that name; 0 = all there are.
        model: devices along the axis of that name.

    Raises:
        ValueError: if there are fewer devices, or if one is left out although there are several
            processes.
    """
    devices = jax.devices()
    size = (data or len(devices) // max(model, 1)) * model
    if not 0 < size <= len(devices) or (jax.process_count() > 1 and size < len(devices)):
        raise ValueError(
            f"a mesh of data={data} times model={model} was asked for, but there are "
            f"{len(devices)} devices, in {jax.process_count()} processes; choose two numbers of "
            "which the product is at most that, and just that for several processes"
        )
    return jax.make_mesh(
        (size // model, model),
        (DATA, MODEL),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[:size],
    )


def shards() -> int:
    """Devices along the data axis of the mesh that is set; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape[DATA] if _has_data_axis() else 1


def spread(batch: PyTree) -> PyTree:
    """The leading axis of each array over the data axis, where that divides it."""
    divides = lambda x: x.ndim and x.shape[0] % shards() == 0  # noqa: E731
    return jax.tree.map(lambda x: _constrained(x, P(DATA) if divides(x) else P()), batch)


def take_by_part(data: Batch, ids: Array, parts: int = 1) -> Batch:
    """Gathers examples; on a mesh that divides the parts, each device reads its own part alone.

    Args:
        data: pytree of arrays, or of `FlatRows`, with leading axis N, which `parts` divides.
        ids: [b] int32, b / parts of them from each part of the data set, in its order.
        parts: stretches of the data set, of equal size; 1 = ids are of any example.

    Returns:
        The same pytree of arrays with leading axis b.
    """

    def of_device(data: Batch, ids: Array) -> Batch:
        return take(data, ids % jax.tree.leaves(data)[0].shape[0])

    if shards() == 1 or parts % shards():
        return take(data, ids)
    divided = jax.shard_map(
        of_device, in_specs=(P(DATA), P(DATA)), out_specs=P(DATA), axis_names={DATA}
    )
    return divided(data, ids)


def gathered(tree: PyTree) -> PyTree:
    """All of each array on each device."""
    return jax.tree.map(lambda x: _constrained(x, P()), tree)


def _constrained(x: Array, spec: P) -> Array:
    return jax.lax.with_sharding_constraint(x, spec) if _has_data_axis() else x


def _has_data_axis() -> bool:
    """Whether the mesh that is set has an axis "data", along which XLA may spread arrays."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return types.get(DATA) == AxisType.Auto
