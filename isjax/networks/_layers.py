"""Parts that several networks share."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["at_last_token", "dropout", "one_for_each_layer"]


def at_last_token(activations: jax.Array, tokens: jax.Array) -> jax.Array:
    """Activations at the last token of each sequence.

    Args:
        activations: [b, T, features].
        tokens: [b, T] int; negative ones are padding at the end of a sequence.

    Returns:
        [b, features]; at the first place, of a sequence of padding alone.
    """
    last = jnp.maximum(jnp.sum(tokens >= 0, axis=1) - 1, 0)
    return jnp.take_along_axis(activations, last[:, None, None], axis=1)[:, 0]


def dropout(rate: float, train: bool) -> Callable[[jax.Array], jax.Array]:
    """Makes a function that applies dropout if `train`, with another mask at each call.

    Args:
        rate: share of the activations dropped, in [0, 1).
        train: whether dropout acts.

    Returns:
        `(x) -> x`, for activations of any shape.

    Raises:
        ValueError: if `rate` is outside its range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout is {rate}; choose a share in [0, 1)")
    return lambda x: nn.Dropout(rate, deterministic=not train)(x)


def one_for_each_layer(name: str, sizes: Sequence[int]) -> Sequence[int]:
    """Returns the sizes of layers.

    Args:
        name: of the argument.
        sizes: a sequence.

    Raises:
        TypeError: if it is a single number.
    """
    if isinstance(sizes, int):
        raise TypeError(f"{name} is {sizes}; give a size for each layer, such as ({sizes},)")
    return sizes
