"""Recipes that go by how wrong the network has been about an example; see `isjax.recipes`.

By m, the mean over all visits of its error, 1 - p(true class), p = exp(-loss): for cross-entropy.
"""

from isjax import scorers
from isjax.base import Sampler, ScalarOrSchedule
from isjax.samplers import importance_sampler, tree_sampler
from isjax.transforms import smooth_by_mean

__all__ = ["c_sgd", "mean_error", "p_sgd"]


def mean_error(
    *,
    batch_size: int,
    k: ScalarOrSchedule = 0.5,
    smoothing: ScalarOrSchedule = 0.25,
    initial_loss: float = 1.0,
) -> Sampler:
    """`default` with m in place of the loss last seen: for a network that may overfit.

    An error is at most one where a loss has no limit, so that what is hardest is drawn less. Nearly
    the same gain in train loss, and less harm to test accuracy: benchmarks/ablation.py, whose
    figures are in docs/benchmarks.md. An example never seen scores `initial_loss`: first, if that
    is one or more.
    """
    return tree_sampler(
        scorers.difficulty(),
        batch_size=batch_size,
        k=k,
        smoothing=smoothing,
        initial_loss=initial_loss,
    )


def p_sgd(*, batch_size: int, smoothing: float = 1.0) -> Sampler:
    """By difficulty: p ~ m + mean of m over the pool, m the mean error 1 - p(true class) so far.

    Chang et al. 2017 (arXiv 1704.07433), as in the code of Arazo et al. 2021 (arXiv 2110.14283),
    which draws an epoch at a time. For cross-entropy; no correction.
    """
    return importance_sampler(
        scorers.difficulty(), smooth_by_mean(smoothing, decay=0.0), batch_size=batch_size, k=0.0
    )


def c_sgd(*, batch_size: int, smoothing: float = 1.0) -> Sampler:
    """By closeness to the decision threshold: p ~ m (1 - m) + its mean; else as `p_sgd`."""
    return importance_sampler(
        scorers.uncertainty(), smooth_by_mean(smoothing, decay=0.0), batch_size=batch_size, k=0.0
    )
