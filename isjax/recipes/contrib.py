"""Recipes after papers that were not seen whole.

Each says in its docstring which part is the paper's and which part is our choice.
"""

import jax.numpy as jnp

from isjax import scorers, transforms
from isjax.base import Array, Sampler
from isjax.samplers import importance_sampler

__all__ = ["loss_change", "online_batch_selection"]


def online_batch_selection(
    *,
    batch_size: int,
    num_steps: int | None = None,
    pressure: float = 100.0,
    final_pressure: float = 1.0,
    initial_loss: float = 1.0,
) -> Sampler:
    """Draws exponentially in the rank of the last loss (arXiv 1511.06343).

    The highest loss of the pool is drawn nearly s times as often as the lowest. Use it where the
    order of losses is to be trusted more than their size. It costs no pass of the model. Weights
    are one: the bias is not corrected.

    Loshchilov & Hutter 2015 rank the data set; this recipe ranks the pool. Their values of s were
    not seen; the defaults are ours.

    Args:
        batch_size: b, the examples drawn.
        num_steps: steps of the run, over which s decays exponentially to `final_pressure`; None = s
            stays at `pressure`.
        pressure: s at the start, at least 1.
        final_pressure: s at the end, at least 1.
        initial_loss: loss assumed for an example never seen.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """

    def schedule(step: Array) -> Array | float:
        if num_steps is None:
            return pressure
        passed = jnp.minimum(step.astype(jnp.float32) / num_steps, 1.0)
        return pressure * jnp.power(final_pressure / pressure, passed)

    return importance_sampler(
        scorers.last_loss(),
        transforms.exponential_rank(schedule),
        batch_size=batch_size,
        k=0.0,
        initial_loss=initial_loss,
    )


def loss_change(
    *,
    batch_size: int,
    change: float = 0.7,
    decay: float = 0.9,
    initial_loss: float = 1.0,
) -> Sampler:
    """Draws by a moving average of an example's losses and by how they change.

    Use it where a loss that still moves matters more than one that stays high. It costs no pass of
    the model. Weights are one: the bias is not corrected.

    This follows the abstract of Evolved Sampling (Cheng, Li and Bian 2025, arXiv 2509.23461), which
    combines losses and loss differences. The paper's formula was not seen; that of
    `scorers.loss_change` is ours.

    Args:
        batch_size: b, the examples drawn.
        change: weight of the change, in [0, decay].
        decay: of the moving average, per visit of the example, in [0, 1).
        initial_loss: score of an example never seen.

    Returns:
        A `Sampler` that chooses from the pool it is given.

    Raises:
        ValueError: if `change` or `decay` is outside its range.
    """
    return importance_sampler(
        scorers.loss_change(change, decay),
        batch_size=batch_size,
        k=0.0,
        initial_loss=initial_loss,
    )
