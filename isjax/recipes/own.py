"""isjax's own recipes: scores by past losses that cost nothing, or little."""

import math
from typing import cast

import jax.numpy as jnp
import optax

from isjax import scorers, transforms
from isjax._numerics.limits import violated
from isjax.base import Array, Sampler, ScalarOrSchedule, Schedule
from isjax.samplers import importance_sampler, tree_sampler
from isjax.scorers import LabelFn
from isjax.transforms import chain, smooth_by_mean

__all__ = ["default", "last_loss", "mean_error", "predicted_loss"]


def default(
    *,
    batch_size: int,
    k: ScalarOrSchedule = 0.5,
    smoothing: ScalarOrSchedule = 0.25,
    exponent: float = 1.0,
    until: float = 0.5,
    num_steps: int | None = None,
    initial_loss: float = 1.0,
) -> Sampler:
    """Draws by the last loss, from the whole data set: the recipe to begin with.

    It is `last_loss` on a `tree_sampler`, with less smoothing. With `num_steps` it draws uniformly
    from halfway through the run on. Later, a network that memorises its data is left with examples
    that are hard because they are ambiguous, and drawing these costs accuracy on unseen data. Where
    the training objective itself is the goal, as in physics and fields, take `until=1`.
    benchmarks/ablation.py measures each part; docs/benchmarks.md has the figures. A step costs
    O(b log N), and no pass of the model.

    Args:
        batch_size: b, the examples drawn.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.
        smoothing: c >= 0, a number or a schedule of the step, as a share of the mean score of the
            data set.
        exponent: a >= 0 of the score loss^a; 0.5 suits squared losses, see `scorers.power`.
        until: share of `num_steps` after which draws are uniform, in [0, 1]; 1 = never.
        num_steps: of the run, which `isjax.experiment` fills in; None = unknown, and all draws are
            by importance.
        initial_loss: loss assumed for an example never seen.

    Returns:
        A `Sampler` that chooses by itself where to look: pass no ids.

    Raises:
        ValueError: if `until` lies outside [0, 1], and as `tree_sampler`.
    """
    if violated(until >= 0) or violated(until <= 1):
        raise ValueError(f"recipes.default: until is {until}; choose a share in [0, 1]")
    if num_steps is not None:
        smoothing = _until(until, num_steps, smoothing)
    return tree_sampler(
        scorers.power(scorers.last_loss(), exponent),
        batch_size=batch_size,
        k=k,
        smoothing=smoothing,
        initial_loss=initial_loss,
    )


def _until(share: float, num_steps: int, smoothing: ScalarOrSchedule) -> Schedule:
    """Smoothing that is infinite after a share of the run: draws are then uniform."""
    smooth = cast(Schedule, smoothing) if callable(smoothing) else lambda step: smoothing

    def schedule(step: Array) -> Array:
        before = (step < share * num_steps) | (share == 1)
        return jnp.where(before, jnp.asarray(smooth(step), jnp.float32), jnp.inf)

    return schedule


def last_loss(
    *,
    batch_size: int,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
    cap: float = math.inf,
    initial_loss: float = 1.0,
) -> Sampler:
    """Draws by the last loss seen, from a pool.

    Use it where a pool is given; `default` draws from the whole data set. Scores cost nothing, and
    are as stale as the last visit.

    Args:
        batch_size: b, the examples drawn.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.
        smoothing: c >= 0, as a share of the moving average of the mean score.
        cap: highest score, in units of the loss. It limits how often wrong labels are drawn.
        initial_loss: loss assumed for an example never seen.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    return importance_sampler(
        scorers.last_loss(),
        chain(transforms.clip(high=cap), smooth_by_mean(smoothing)),
        batch_size=batch_size,
        k=k,
        initial_loss=initial_loss,
    )


def mean_error(
    *,
    batch_size: int,
    k: ScalarOrSchedule = 0.5,
    smoothing: ScalarOrSchedule = 0.25,
    initial_loss: float = 1.0,
) -> Sampler:
    """Draws by the mean error over all visits, 1 - p(true class), from the whole data set.

    Use it with cross-entropy, for a network that may overfit. An error is at most one, but a loss
    has no limit, so the hardest examples are drawn less than by `default`. The gain in train loss
    is nearly the same, and the harm to test accuracy smaller: benchmarks/ablation.py, with figures
    in docs/benchmarks.md. A step costs O(b log N), and no pass of the model.

    Args:
        batch_size: b, the examples drawn.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.
        smoothing: c >= 0, a number or a schedule of the step, as a share of the mean score of the
            data set.
        initial_loss: score of an example never seen; at 1 or more these come first.

    Returns:
        A `Sampler` that chooses by itself where to look: pass no ids.
    """
    return tree_sampler(
        scorers.difficulty(),
        batch_size=batch_size,
        k=k,
        smoothing=smoothing,
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
    label_fn: LabelFn | None = None,
    initial_loss: float = 1.0,
) -> Sampler:
    """A small MLP predicts the loss from past losses, count, age and class.

    Use it as a cheap `learned_loss`: an MLP replaces the LSTM, and the pool is the whole data set.
    An example is scored again after each visit, and when the rolling refresh comes to it. A step
    costs the MLP on b + `refresh` examples, and its gradient in one step of `train_every`.

    Args:
        batch_size: b, the examples drawn.
        num_classes: classes, numbered from 0, that the MLP embeds; None = it reads no class.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.
        smoothing: c >= 0, a number or a schedule of the step, as a share of the mean score of the
            data set.
        refresh: examples scored again before each draw, in order of their ids; at most N.
        train_every: steps from one optimiser step of the MLP to the next.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        initial_loss: loss assumed for an example never seen.

    Returns:
        A `Sampler` that chooses by itself where to look: pass no ids. With `num_classes` its
        `sample` needs `batch`, the whole data set.
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
