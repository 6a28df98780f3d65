"""Precision of the main model: float32, or bfloat16 with float32 parameters and losses."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isjax.base import PyTree

__all__ = ["Model", "bfloat16", "float32"]


class Model(NamedTuple):
    """Functions of a Flax module that a task uses.

    Attributes:
        init: `(key, x) -> variables`.
        apply: `(variables, x, **options) -> output`, as `flax.linen.Module.apply`.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Any]


def float32(network: Any) -> Model:
    """Leaves the precision of a network as it is.

    Args:
        network: a Flax module.

    Returns:
        Its `init` and `apply`.
    """
    return Model(network.init, network.apply)


def bfloat16(network: Any) -> Model:
    """Makes a network compute in bfloat16.

    Parameters and inputs are rounded to bfloat16 and outputs converted back to float32. The
    optimiser's parameters, gradients, batch norm averages, losses and scores stay in float32.

    Args:
        network: a Flax module.
    """

    def apply(variables: Mapping[str, PyTree], x: PyTree, **options: Any) -> Any:
        rounded = {**variables, "params": cast(variables["params"], jnp.bfloat16)}
        return cast(network.apply(rounded, cast(x, jnp.bfloat16), **options), jnp.float32)

    return Model(network.init, apply)


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Converts floating point arrays and leaves others, such as tokens, as they are.

    Args:
        tree: pytree of arrays.
        dtype: a floating point type.
    """
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
