"""Published methods by name, each a few lines of composition. A recipe returns a `Sampler`."""

import math
from collections.abc import Callable

import optax

from isjax import scorers
from isjax.base import Array, Batch, Params, Sampler, ScalarOrSchedule
from isjax.sampler import importance_sampler
from isjax.transforms import smooth_by_mean

__all__ = ["biased_loss", "last_loss", "learned_loss", "uniform"]


def uniform(*, batch_size: int) -> Sampler:
    """Uniform draws: the baseline. Every weight is exactly one, which k = 0 says."""
    return importance_sampler(scorers.uniform(), batch_size=batch_size, k=0.0)


def biased_loss(
    *,
    batch_size: int,
    loss_fn: Callable[[Params, Batch], Array],
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
) -> Sampler:
    """The main model scores the pool by its loss (arXiv 1706.00043). B forward passes a step.

    `loss_fn` runs in evaluation mode; for a model with state see `scorers.loss`.
    """
    return importance_sampler(
        scorers.loss(loss_fn), smooth_by_mean(smoothing), batch_size=batch_size, k=k
    )


def last_loss(
    *,
    batch_size: int,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
    initial_loss: float = 1.0,
) -> Sampler:
    """The loss last seen stands for the loss: scores for free, as stale as the last visit."""
    return importance_sampler(
        scorers.last_loss(),
        smooth_by_mean(smoothing),
        batch_size=batch_size,
        k=k,
        initial_loss=initial_loss,
    )


def learned_loss(
    *,
    batch_size: int,
    num_classes: int | None = None,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
    network: scorers.Network | None = None,
    optimizer: optax.GradientTransformation | None = None,
    label_fn: Callable[[Batch], Array] | None = None,
    history: int = 10,
    log_losses: bool = False,
    initial_loss: float | None = None,
) -> Sampler:
    """An LSTM predicts the loss from past losses and class (arXiv 1706.00043).

    Its arguments are those of `scorers.learned` and `importance_sampler`; `initial_loss` is
    log(num_classes), the loss of a uniform guess, unless given (1 without classes).
    """
    scorer = scorers.learned(
        network,
        optimizer,
        num_classes=num_classes,
        label_fn=label_fn,
        history=history,
        log_losses=log_losses,
    )
    if initial_loss is None:
        initial_loss = math.log(num_classes) if num_classes else 1.0
    return importance_sampler(
        scorer, smooth_by_mean(smoothing), batch_size=batch_size, k=k, initial_loss=initial_loss
    )
