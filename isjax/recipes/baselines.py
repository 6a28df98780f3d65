"""Recipes that learn nothing: the baselines that a method has to beat, and given importances."""

from isjax import resampling, scorers
from isjax.base import Array, Sampler, ScalarOrSchedule
from isjax.samplers import epochs, importance_sampler, tree_sampler

__all__ = ["given", "reshuffled", "uniform"]


def uniform(*, batch_size: int, initial_loss: float = 1.0) -> Sampler:
    """Draws each batch uniformly from all examples, independently of earlier batches.

    Use it as the baseline that shares all but the scores with the other recipes. It costs nothing.
    Every weight is one.

    Args:
        batch_size: b, the examples drawn.
        initial_loss: unused; taken so that recipes can be swapped by name.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    del initial_loss
    return importance_sampler(scorers.uniform(), batch_size=batch_size, k=0.0)


def reshuffled(*, batch_size: int, initial_loss: float = 1.0) -> Sampler:
    """Visits all examples once an epoch, each epoch in a new order.

    Use it as the stronger baseline; under a budget it is also known as repeated random subsets. It
    costs nothing. Every weight is one.

    Args:
        batch_size: b, the examples drawn. The rest of an epoch, fewer than b, is left out.
        initial_loss: unused; taken so that recipes can be swapped by name.

    Returns:
        A `Sampler` that chooses by itself where to look.
    """
    del initial_loss
    everything = importance_sampler(
        scorers.uniform(),
        batch_size=batch_size,
        k=0.0,
        resample=resampling.without_replacement,
    )
    return epochs(everything, pool_size=batch_size)


def given(
    *,
    batch_size: int,
    importances: Array,
    k: ScalarOrSchedule = 1.0,
    initial_loss: float = 1.0,
) -> Sampler:
    """Draws examples in proportion to numbers that are known before training.

    Use it for static importances, such as one over the size of an example's class. A step costs
    O(b log N), and no pass of the model.

    Args:
        batch_size: b, the examples drawn.
        importances: [N] numbers >= 0, one for each example.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased,
            0 leaves the change of the distribution uncorrected.
        initial_loss: unused; taken so that recipes can be swapped by name.

    Returns:
        A `Sampler` that chooses by itself where to look.
    """
    return tree_sampler(
        scorers.given(importances),
        batch_size=batch_size,
        k=k,
        smoothing=0.0,
        initial_loss=initial_loss,
    )
