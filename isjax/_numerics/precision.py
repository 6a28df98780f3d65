"""A main model that computes in bfloat16, its parameters and losses kept in float32."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isjax.base import PyTree

__all__ = ["Model", "bfloat16", "float32"]


class Model(NamedTuple):
    """What a task asks of a Flax module.

    Attributes:
        init: `(key, x) -> variables`.
        apply: `(variables, x, **options) -> output`, as `flax.linen.Module.apply`.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Any]


def float32(network: Any) -> Model:
    """The network as it is."""
    return Model(network.init, network.apply)


def bfloat16(network: Any) -> Model:
    """The network on parameters and inputs rounded to bfloat16, its output in float32.

    The optimiser's parameters, gradients and the averages of batch norm stay in float32, as do
    losses and scores.
    """

    def apply(variables: Mapping[str, PyTree], x: PyTree, **options: Any) -> Any:
        rounded = {**variables, "params": cast(variables["params"], jnp.bfloat16)}
        return cast(network.apply(rounded, cast(x, jnp.bfloat16), **options), jnp.float32)

    return Model(network.init, apply)


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Floating point arrays as `dtype`; others, such as tokens, as they are."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
