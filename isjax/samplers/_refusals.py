"""Refusals that samplers share, each with the value, the limit and the remedy."""

import math
from typing import Any

import jax.numpy as jnp

from isjax._numerics.limits import violated
from isjax.base import Array, Sampler, require_integer


def refuse_wrong_sample(key: Any, state: Any) -> None:
    """Refuses arguments of `sample` that are of another kind."""
    if hasattr(state, "span"):
        return
    wrong = "key and state are swapped" if hasattr(key, "span") else _no_state(state)
    raise TypeError(
        f"sample: {wrong}; call sample(key, state, ids), with the state that init or update "
        "returned"
    )


def refuse_wrong_update(state: Any, draw: Any, losses: Any) -> None:
    """Refuses arguments of `update` that are of another kind."""
    if hasattr(state, "span") and hasattr(draw, "ids"):
        return
    swapped = hasattr(state, "ids") or hasattr(losses, "ids")
    raise TypeError(
        f"update: {'arguments are swapped' if swapped else _no_state(state)}; call "
        "update(state, draw, losses), with the state and the draw that sample returned"
    )


def _no_state(state: Any) -> str:
    return f"state is of type {type(state).__name__}, not the state of a sampler"


def require_kind(given: Any, kind: type, name: str) -> None:
    """Refuses what is no scorer or transform; `name` is the argument's."""
    if not isinstance(given, kind):
        raise TypeError(
            f"{name} is {getattr(given, '__name__', given)}, no isjax.{kind.__name__}; pass what "
            "its function returns, as in importance_sampler(scorers.last_loss(), "
            "transforms.smooth(0.1), batch_size=128)"
        )


def wrong_shape(who: str, found: Array, wanted: tuple[int, ...]) -> ValueError:
    """The error for what a caller's function returned."""
    return ValueError(
        f"{who} returned shape {jnp.shape(found)} for {wanted[0]} examples; return one number for "
        f"each, shape {wanted}"
    )


def require_batch_size(batch_size: int) -> None:
    """Refuses an empty batch, and a size that is no integer."""
    require_integer("batch_size", batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; draw at least 1 example")


def require_initial_loss(initial_loss: float, above: float = -math.inf) -> None:
    """Refuses a loss that is no float32 above `above`; one that is traced is not checked."""
    largest = float(jnp.finfo(jnp.float32).max)
    if violated(above < initial_loss, abs(initial_loss) <= largest):
        limit = "" if above == -math.inf else f" above {above}"
        raise ValueError(
            f"initial_loss is {initial_loss}; choose a finite number{limit}, such as the "
            "logarithm of the number of classes: it is the score of examples never seen"
        )


def require_pool(sampler: Sampler, pool_size: int | None, name: str) -> None:
    """Refuses a presample for a sampler that has a pool of its own, or none for one without."""
    if sampler.own_pool and pool_size is not None:
        raise ValueError(f"{name}: this sampler has a pool of its own; leave pool_size out")
    if not sampler.own_pool and pool_size is None:
        raise ValueError(f"{name}: give pool_size, of the presample to choose from")
    if pool_size is not None:
        require_integer(f"{name}: pool_size", pool_size)


def require_weights_of_the_draw(sampler: Sampler, name: str, remedy: str) -> None:
    """Refuses a sampler that is gated, or weighs by the losses of a batch."""
    if sampler.reweigh is not None:
        raise ValueError(
            f"{name}: this sampler is gated, or weighs by the losses of a batch; {remedy}"
        )
