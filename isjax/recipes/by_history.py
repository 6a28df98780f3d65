"""Recipes that go by what is remembered of each example's past; see `isjax.recipes`."""

import math
from collections.abc import Callable

import optax

from isjax import conditions, scorers, transforms, weights
from isjax.base import Array, Batch, Sampler, ScalarOrSchedule
from isjax.samplers import gate, importance_sampler, tree_sampler
from isjax.scorers import LabelFn
from isjax.transforms import chain, smooth_by_mean

__all__ = [
    "cached",
    "default",
    "infobatch",
    "last_loss",
    "loss_change",
    "online_batch_selection",
    "per_class_gaussian",
    "predicted_loss",
    "prioritized",
    "small_loss",
]


def last_loss(
    *,
    batch_size: int,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
    cap: float = math.inf,
    initial_loss: float = 1.0,
) -> Sampler:
    """The loss last seen stands for the loss: scores for free, as stale as the last visit.

    `cap`, in units of the loss, is the most that an example scores: a wrong label loses much, and
    would else be drawn ever more.
    """
    return importance_sampler(
        scorers.last_loss(),
        chain(transforms.clip(high=cap), smooth_by_mean(smoothing)),
        batch_size=batch_size,
        k=k,
        initial_loss=initial_loss,
    )


def default(
    *,
    batch_size: int,
    k: ScalarOrSchedule = 0.5,
    smoothing: ScalarOrSchedule = 0.25,
    initial_loss: float = 1.0,
) -> Sampler:
    """The loss last seen, with the whole data set as the pool: what we recommend to begin with.

    `last_loss` by `tree_sampler`, with less smoothing. Why these parts: benchmarks/ablation.py,
    whose figures are in docs/benchmarks.md. On a network that overfits, a lower train loss is no
    gain on the test data.
    """
    return tree_sampler(
        scorers.last_loss(),
        batch_size=batch_size,
        k=k,
        smoothing=smoothing,
        initial_loss=initial_loss,
    )


def small_loss(
    *,
    batch_size: int,
    exponent: float = -0.5,
    k: ScalarOrSchedule = 0.0,
    smoothing: float = 0.5,
    initial_loss: float = 1.0,
) -> Sampler:
    """Prefers what loses little, p ~ (loss + c mean)^a with a < 0: for data with wrong labels.

    Small losses are likely right, as in co-teaching (arXiv 1804.06872), which selects by them.
    """
    return importance_sampler(
        scorers.last_loss(),
        chain(smooth_by_mean(smoothing), transforms.power(exponent)),
        batch_size=batch_size,
        k=k,
        initial_loss=initial_loss,
    )


def predicted_loss(
    *,
    batch_size: int,
    num_classes: int | None = None,
    k: ScalarOrSchedule = 0.5,
    smoothing: ScalarOrSchedule = 0.5,
    refresh: int = 512,
    train_every: int = 4,
    label_fn: Callable[[Batch], Array] | None = None,
    initial_loss: float = 1.0,
) -> Sampler:
    """`learned_loss` at next to no cost: a small MLP in place of the LSTM, and the whole data set.

    The MLP learns at one step in `train_every`; an example is scored anew when it has been trained
    on, and when the rolling refresh, of `refresh` examples a step, comes to it (at most the size of
    the data set).
    """
    scorer = scorers.learned(
        scorers.history_mlp(3, num_classes, label_fn),
        optax.adam(1e-2),
        history=3,
        train_every=train_every,
    )
    return tree_sampler(
        scorer,
        batch_size=batch_size,
        k=k,
        smoothing=smoothing,
        refresh=refresh,
        initial_loss=initial_loss,
    )


def online_batch_selection(
    *,
    batch_size: int,
    num_steps: int | None = None,
    pressure: float = 100.0,
    final_pressure: float = 1.0,
    initial_loss: float = 1.0,
) -> Sampler:
    """Exponential in the rank of the loss last seen (Loshchilov & Hutter 2015, arXiv 1511.06343).

    Ranks are within the pool. The highest is drawn s times as often as the lowest; s decays from
    `pressure` to `final_pressure` over `num_steps`, or stays if that is None: not the paper's
    numbers, which were not seen. No correction.
    """
    schedule = optax.constant_schedule(pressure)
    if num_steps is not None:
        ratio = final_pressure / pressure
        schedule = optax.exponential_decay(pressure, num_steps, ratio, end_value=final_pressure)
    return importance_sampler(
        scorers.last_loss(),
        transforms.exponential_rank(schedule),
        batch_size=batch_size,
        k=0.0,
        initial_loss=initial_loss,
    )


def prioritized(
    *,
    batch_size: int,
    num_steps: int | None = None,
    rank: bool = False,
    alpha: float = 0.6,
    k: float = 0.4,
    initial_loss: float = 1.0,
) -> Sampler:
    """Prioritised replay (Schaul et al. 2015, arXiv 1511.05952), with the loss as the priority.

    p ~ (loss + 1e-6)^alpha or, with `rank`, (1 / rank within the pool)^alpha, for which the paper
    has alpha = 0.7 and k = 0.5. The correction, their beta, grows from `k` to 1 over `num_steps`,
    or stays if that is None; weights are divided by the batch's largest. What was never seen comes
    first.
    """
    by_rank = [transforms.inverse_rank()] if rank else []
    return importance_sampler(
        scorers.last_loss(unseen_first=True),
        chain(transforms.smooth(1e-6), *by_rank, transforms.power(alpha)),
        batch_size=batch_size,
        k=k if num_steps is None else optax.linear_schedule(k, 1.0, num_steps),
        initial_loss=initial_loss,
        rescale=weights.divide_by_largest,
    )


def infobatch(
    *,
    batch_size: int,
    num_steps: int | None = None,
    rate: float = 0.5,
    annealing: float = 0.125,
    initial_loss: float = 1.0,
) -> Sampler:
    """Of examples whose last loss is below the mean, r are left out; the rest weigh 1 / (1 - r).

    Qin et al. 2024 (arXiv 2303.04947), as sampling: p ~ 1 - r below the pool's mean, else 1, and
    unbiased weights. The last `annealing` share of `num_steps` draws uniformly.
    """
    sampler = importance_sampler(
        scorers.last_loss(),
        transforms.prune_below_mean(rate),
        batch_size=batch_size,
        k=1.0,
        initial_loss=initial_loss,
    )
    if num_steps is None:
        return sampler
    return gate(sampler, conditions.until(round((1 - annealing) * num_steps)))


def loss_change(
    *,
    batch_size: int,
    change: float = 0.7,
    decay: float = 0.9,
    initial_loss: float = 1.0,
) -> Sampler:
    """By a moving average of an example's losses and of how they change. No correction.

    After the abstract of Evolved Sampling (Cheng, Li and Bian 2025, arXiv 2509.23461), which
    combines losses and loss differences; how exactly was not seen.
    """
    return importance_sampler(
        scorers.loss_change(change, decay),
        batch_size=batch_size,
        k=0.0,
        initial_loss=initial_loss,
    )


def per_class_gaussian(
    *,
    batch_size: int,
    num_classes: int,
    label_fn: LabelFn | None = None,
    decay: float = 0.9,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.0,
) -> Sampler:
    """Mean + deviation of the recent losses of its class (the authors' library)."""
    return importance_sampler(
        scorers.class_gaussian(num_classes, label_fn, decay),
        smooth_by_mean(smoothing),
        batch_size=batch_size,
        k=k,
    )


def cached(
    *,
    batch_size: int,
    staleness: int = 3,
    cache_prob: float = 0.5,
    smoothing: float = 0.2,
    k: ScalarOrSchedule = 0.5,
) -> Sampler:
    """Half of the draws among the examples seen in the last batches, by loss (authors' library).

    The other half among all. Its pool is the whole data set: O(N) a step. `smoothing` is added to
    the loss, in its units.
    """
    sampler = importance_sampler(
        scorers.cached(staleness, smoothing),
        transforms.mix_uniform(1 - cache_prob),
        batch_size=batch_size,
        k=k,
    )
    return sampler._replace(own_pool=True)
