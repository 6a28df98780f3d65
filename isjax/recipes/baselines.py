"""Recipes without scores: the baselines that a method has to beat."""

from isjax import resampling, scorers
from isjax.base import Sampler
from isjax.samplers import epochs, importance_sampler

__all__ = ["reshuffled", "uniform"]


def uniform(*, batch_size: int) -> Sampler:
    """Draws each batch uniformly from all examples, independently of earlier batches.

    Use it as the baseline that shares all but the scores with the other recipes. It costs nothing.
    Every weight is one.

    Args:
        batch_size: b, the examples drawn.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    return importance_sampler(scorers.uniform(), batch_size=batch_size, k=0.0)


def reshuffled(*, batch_size: int) -> Sampler:
    """Visits all examples once an epoch, each epoch in a new order.

    Use it as the stronger baseline; under a budget it is also known as repeated random subsets. It
    costs nothing. Every weight is one.

    Args:
        batch_size: b, the examples drawn. The rest of an epoch, fewer than b, is left out.

    Returns:
        A `Sampler` that chooses by itself where to look: pass no ids.
    """
    everything = importance_sampler(
        scorers.uniform(),
        batch_size=batch_size,
        k=0.0,
        resample=resampling.without_replacement,
    )
    return epochs(everything, pool_size=batch_size)
