"""Recipes after papers that were not seen whole.

Each says in its docstring which part is the paper's and which part is our choice.
"""

import math
from collections.abc import Sequence
from typing import cast

import jax.numpy as jnp
import numpy as np

from isjax import scorers, transforms
from isjax._numerics.limits import violated
from isjax.base import Array, Sampler, ScalarOrSchedule, Schedule
from isjax.samplers import importance_sampler

__all__ = ["by_source", "loss_change", "online_batch_selection"]


def by_source(
    *,
    batch_size: int,
    source: Array,
    proportions: Sequence[float] | Array | Schedule | None = None,
    final_proportions: Sequence[float] | Array | None = None,
    num_steps: int | None = None,
    pool_size: int | None = None,
    rate: float = 1.0,
    floor: float = 0.1,
    k: ScalarOrSchedule = 0.0,
) -> Sampler:
    """Draws each source of the data in a proportion: given, by a schedule, or by its losses.

    Within a source draws are uniform. Use it for text from several sources. It costs no pass of the
    model. At k = 0 weights are one; a higher k undoes the proportions, and k = 1 undoes them fully.

    Without `proportions` a bandit learns them from the losses of each source, after online data
    mixing (Albalak et al. 2023, arXiv 2312.02406). The paper's formulas were not seen; those of
    `scorers.learned_sources` are ours. Compare it with proportions that are given, which are often
    as good.

    Args:
        batch_size: b, the examples drawn.
        source: [N] int, the source of each example, numbered from 0 to S - 1. Runs take it from the
            data set.
        proportions: [S] numbers >= 0, in the order of `dataset.source_names`, of which only ratios
            matter; or a schedule `(step) -> [S]`; None = learned.
        final_proportions: [S] numbers, that the given proportions reach linearly at the end of the
            run; None = they stay.
        num_steps: of the run, for `final_proportions`.
        pool_size: B, to refuse one without examples of the smallest source; None = not checked. A
            pool with some ten of each source keeps the proportions closely.
        rate: by which losses count if learned, >= 0, per nat; 0 = equal proportions.
        floor: share of the draws that all sources divide equally if learned, in [0, 1].
        k: exponent of the weights, a number of at most 1 or a schedule of the step.

    Returns:
        A `Sampler` that chooses from the pool it is given.

    Raises:
        ValueError: if there are not S proportions, one is negative or all are zero; if
            `final_proportions` lacks those to begin with, or `num_steps`; if a source has fewer
            than one example in a pool; and as `scorers.learned_sources`.
    """
    if proportions is None and final_proportions is None:
        scorer = scorers.learned_sources(source, rate=rate, floor=floor)
    else:
        shares = _schedule_of_proportions(source, proportions, final_proportions, num_steps)
        scorer = scorers.sources(source, shares)
    sizes = np.bincount(source)
    smallest = np.where(sizes > 0, sizes, len(source)).argmin()
    if pool_size is not None and pool_size * sizes[smallest] < len(source):
        raise ValueError(
            f"recipes.by_source: source {smallest} has {sizes[smallest]} of {len(source)} "
            f"examples, fewer than one in a pool of {pool_size}; choose a pool of at least "
            f"{math.ceil(len(source) / sizes[smallest])}"
        )
    return importance_sampler(scorer, batch_size=batch_size, k=k)


def _schedule_of_proportions(
    source: Array,
    first: Sequence[float] | Array | Schedule | None,
    last: Sequence[float] | Array | None,
    num_steps: int | None,
) -> Schedule:
    if last is None and callable(first):
        return cast(Schedule, first)
    if last is not None and (first is None or callable(first) or num_steps is None):
        raise ValueError(
            f"recipes.by_source: final_proportions is {last}; give numbers to begin with as "
            "proportions, and num_steps"
        )
    start = _normalised("proportions", cast(Array, first), source)
    end = start if last is None else _normalised("final_proportions", last, source)
    return lambda step: (
        start + (end - start) * jnp.minimum(step.astype(jnp.float32) / (num_steps or 1), 1.0)
    )


def _normalised(name: str, given: Sequence[float] | Array, source: Array) -> Array:
    shares, number = jnp.asarray(given, jnp.float32), int(np.max(source, initial=0)) + 1
    if shares.shape != (number,) or violated(jnp.all(shares >= 0), jnp.sum(shares) > 0):
        raise ValueError(
            f"recipes.by_source: {name} is {given}; give {number} numbers of 0 or more, one for "
            "each source, and one above 0"
        )
    return shares / jnp.sum(shares)


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
