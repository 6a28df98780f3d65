"""Published recipes that score examples by their past losses, without a pass of the main model."""

import optax

from isjax import conditions, scorers, transforms, weights
from isjax.base import Sampler, ScalarOrSchedule
from isjax.samplers import gate, importance_sampler
from isjax.scorers import LabelFn
from isjax.transforms import chain, smooth_by_mean

__all__ = [
    "c_sgd",
    "cached",
    "infobatch",
    "p_sgd",
    "per_class_gaussian",
    "prioritized",
    "small_loss",
]


def small_loss(
    *,
    batch_size: int,
    exponent: float = -0.5,
    k: ScalarOrSchedule = 0.0,
    smoothing: float = 0.5,
    initial_loss: float = 1.0,
) -> Sampler:
    """Draws against the last loss: p ~ (loss + c EMA(mean))^a with a < 0.

    Use it where labels may be wrong: small losses are likely right, as in co-teaching (arXiv
    1804.06872), which selects by them. It costs no pass of the model.

    Args:
        batch_size: b, the examples drawn.
        exponent: a, negative; further from 0 prefers small losses more.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 0 leaves the
            bias as it is.
        smoothing: c >= 0, as a share of the moving average of the mean loss.
        initial_loss: loss assumed for an example never seen.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    return importance_sampler(
        scorers.last_loss(),
        chain(smooth_by_mean(smoothing), transforms.power(exponent)),
        batch_size=batch_size,
        k=k,
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
    """Prioritised replay, with the last loss as the priority (arXiv 1511.05952).

    p ~ (loss + 1e-6)^alpha or, with `rank`, (1 / rank)^alpha (Schaul et al. 2015). Ranks are within
    the pool. An example never seen has the highest priority of the pool. Weights are divided by the
    largest of the batch.

    Use it for the schedule of that paper, from little correction to full. It costs no pass of the
    model.

    Args:
        batch_size: b, the examples drawn.
        num_steps: steps of the run, over which the exponent of the weights grows from `k` to 1;
            None = it stays at `k`.
        rank: draw by the rank of the loss; the paper then has alpha = 0.7 and k = 0.5.
        alpha: power of the priority; 0 is uniform.
        k: exponent of the weights at the start, the paper's beta, at most 1.
        initial_loss: loss assumed for an example never seen, if above all others of the pool.

    Returns:
        A `Sampler` that chooses from the pool it is given.
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
    """Draws examples below the mean loss less often, with unbiased weights (arXiv 2303.04947).

    Qin et al. 2024 leave out a share r of the examples whose last loss is below the mean of the
    data set, and weigh the rest of these by 1 / (1 - r). As sampling: p ~ 1 - r below the mean of
    the pool, else 1.

    Use it to spend fewer steps on examples that the model has mastered. It costs no pass of the
    model.

    Args:
        batch_size: b, the examples drawn.
        num_steps: steps of the run; None = no annealing.
        rate: r in [0, 1).
        annealing: share of `num_steps`, at their end, that draws uniformly.
        initial_loss: loss assumed for an example never seen.

    Returns:
        A `Sampler` that chooses from the pool it is given.
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
    return gate(sampler, conditions.until((1 - annealing) * num_steps))


def p_sgd(*, batch_size: int, smoothing: float = 1.0) -> Sampler:
    """Draws by difficulty: p ~ m + c mean(m), m the mean error 1 - p(true class) so far.

    Chang et al. 2017 (arXiv 1704.07433), as in the code of Arazo et al. 2021 (arXiv 2110.14283),
    which draws an epoch at a time. Use it with cross-entropy. It costs no pass of the model.
    Weights are one: the bias is not corrected.

    Args:
        batch_size: b, the examples drawn.
        smoothing: c >= 0, as a share of the mean of m over the pool.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    return importance_sampler(
        scorers.difficulty(), smooth_by_mean(smoothing, decay=0.0), batch_size=batch_size, k=0.0
    )


def c_sgd(*, batch_size: int, smoothing: float = 1.0) -> Sampler:
    """Draws by closeness to the decision threshold: m (1 - m) in place of the m of `p_sgd`.

    Use it with cross-entropy. It costs no pass of the model. Weights are one: the bias is not
    corrected.

    Args:
        batch_size: b, the examples drawn.
        smoothing: c >= 0, as a share of the mean of m (1 - m) over the pool.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    return importance_sampler(
        scorers.uncertainty(), smooth_by_mean(smoothing, decay=0.0), batch_size=batch_size, k=0.0
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
    """Draws by the mean + standard deviation of the recent losses of the example's class.

    From the authors' library (github.com/idiap/importance-sampling). Use it where classes differ
    in difficulty: it remembers two numbers for each class, and nothing for each example. It costs
    no pass of the model.

    Args:
        batch_size: b, the examples drawn.
        num_classes: classes, numbered from 0.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        decay: of the moving averages, per observation, in [0, 1).
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.
        smoothing: c >= 0, as a share of the moving average of the mean score.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
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
    """Draws half of a batch by loss from the examples of the last batches, half from all.

    From the authors' library (github.com/idiap/importance-sampling). Use it where only fresh losses
    are to be trusted. A step costs O(N), since the pool is the whole data set, and no pass of the
    model.

    Args:
        batch_size: b, the examples drawn.
        staleness: a loss is in the cache for the next `staleness + 1` draws.
        cache_prob: share of draws from the cache, in [0, 1].
        smoothing: added to each loss in the cache, in units of the loss.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.

    Returns:
        A `Sampler` that chooses by itself where to look: pass no ids.
    """
    sampler = importance_sampler(
        scorers.cached(staleness, smoothing),
        transforms.mix_uniform(1 - cache_prob),
        batch_size=batch_size,
        k=k,
    )
    return sampler._replace(own_pool=True)
