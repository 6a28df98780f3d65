"""Parts that several networks share."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

__all__ = ["dropout", "one_for_each_layer"]


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
