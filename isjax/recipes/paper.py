"""The paper's two methods, by a learned loss and by the loss itself (arXiv 1706.00043).

`learned_loss` states the algorithm step by step, and names the function behind each step.
"""

import math

import optax

from isjax import resampling, scorers
from isjax.base import Resampler, Sampler, ScalarOrSchedule
from isjax.samplers import importance_sampler
from isjax.scorers import LabelFn, LossFn, views
from isjax.transforms import smooth_by_mean

__all__ = ["biased_loss", "learned_loss"]


def learned_loss(
    *,
    batch_size: int,
    num_classes: int | None = None,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
    network: scorers.Network | None = None,
    optimizer: optax.GradientTransformation | None = None,
    label_fn: LabelFn | None = None,
    history: int = 10,
    log_losses: bool = False,
    linear: bool = False,
    initial_observed: bool = False,
    initial_loss: float | None = None,
    resample: str = "systematic",
) -> Sampler:
    """An LSTM predicts the loss from past losses and class (arXiv 1706.00043).

    The data set has N examples, the pool B, the batch b; L_i is the loss of example i. One step:

    1. Presample: B distinct ids, all examples equally likely. `isjax.presample`
    2. Score: s_i, the loss that the LSTM predicts, plus c EMA(mean s). `isjax.scorers.learned`,
       whose LSTM is `isjax.scorers.HistoryLSTM`; `isjax.smooth_by_mean`
    3. Normalise: p_i = s_i / sum_pool s. `isjax.distributions.normalize`
    4. Draw: b of the pool, p_i per draw. `isjax.resampling.systematic`; independent draws, as in
       the authors' code, are `resample="categorical"`
    5. Weight: w_i = (1 / (B p_i))^k. `isjax.importance_weights`
    6. Train: the gradient of (1/b) sum w_i L_i. `isjax.weighted_value_and_grad`
    7. Learn: one optimiser step of the LSTM on the squared error between prediction and L_i. It
       reads the history from before step 8, else its target leaks into its input. `Scorer.update`
    8. Write back: each L_i, in front of its example's history. `isjax.buffer.write`

    `Sampler.sample` runs steps 2 to 5, `Sampler.update` 7 and 8, and
    `isjax.training.make_train_step` all of them.

    At k = 1 the gradient is unbiased: E[(1/b) sum w_i grad L_i] = (1/B) sum_pool grad L_i. For
    s = L + c any other k follows the objective sum (L + c)^(2-k) / (2-k), up to a positive factor
    that varies from step to step: the sum of L^1.5 at k = 0.5 and c = 0, and the largest loss as
    k -> -inf. This is exact for draws with replacement and for systematic draws.

    Use it to reproduce the paper: `default` costs nothing, and `predicted_loss` less. A step costs
    the LSTM on the pool, and its gradient on the batch; the main model makes no pass for it.

    Args:
        batch_size: b.
        num_classes: classes, numbered from 0, that the LSTM embeds; None = it reads losses alone.
        k: exponent of the weights, a number of at most 1 or a schedule of the step.
        smoothing: c >= 0, as a share of the moving average of the mean score.
        network: replaces the LSTM, see `scorers.Network`; leave out `num_classes` and `label_fn`.
        optimizer: of the LSTM; by default `optax.adam(1e-3)`.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        history: H, the past losses that the LSTM reads.
        log_losses: predict log losses, so that errors count in proportion to the loss.
        linear: predict by a linear output, clamped at 0 as a score, instead of a softplus.
        initial_observed: `initial_loss` counts as the first loss observed of each example.
        initial_loss: score of an example never seen; by default log(num_classes), the loss of a
            uniform guess, or 1 without classes.
        resample: name of a function in `isjax.resampling`.

    Returns:
        A `Sampler` that chooses from the pool it is given.

    Raises:
        ValueError: if there is no such resampling, and as `scorers.learned` and
            `importance_sampler`.
    """
    draw = _resampler("learned_loss", resample)
    scorer = scorers.learned(
        network,
        optimizer,
        num_classes=num_classes,
        label_fn=label_fn,
        history=history,
        log_losses=log_losses,
        linear=linear,
        initial_observed=initial_observed,
    )
    if initial_loss is None:
        initial_loss = math.log(num_classes) if num_classes else 1.0
    return importance_sampler(
        scorer,
        smooth_by_mean(smoothing),
        batch_size=batch_size,
        k=k,
        resample=draw,
        initial_loss=initial_loss,
    )


def biased_loss(
    *,
    batch_size: int,
    loss_fn: LossFn,
    view: str | None = None,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
    resample: str = "systematic",
) -> Sampler:
    """The main model scores the pool by its loss (arXiv 1706.00043).

    The steps are those of `learned_loss`, with `isjax.scorers.loss` in step 2 and nothing to learn
    or to write back. Use it where no history is kept, as for a stream, or to measure the gain from
    exact losses. A step costs B forward passes of the main model; B / 4 at half resolution.

    Args:
        batch_size: b.
        loss_fn: `(params, batch) -> losses [B]` of the main model in evaluation mode; see
            `scorers.loss`.
        view: scores by a cheaper view of the model, named in `isjax.scorers.views`:
            "half_resolution" for a network that takes images of any size, or "in_bfloat16", which
            makes as many passes at lower precision. None = the model itself.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.
        smoothing: c >= 0, as a share of the moving average of the mean score.
        resample: name of a function in `isjax.resampling`.

    Returns:
        A `Sampler` that chooses from the pool it is given.

    Raises:
        ValueError: if there is no such view or resampling.
    """
    draw = _resampler("biased_loss", resample)
    if view is not None and view not in views.PASSES:
        raise ValueError(
            f"recipes.biased_loss: view is {view!r}; choose one of {', '.join(views.PASSES)}, or "
            "leave it out"
        )
    scorer = scorers.loss(loss_fn)
    if view is not None:
        scorer = scorers.loss(getattr(views, view)(loss_fn), views.PASSES[view])
    return importance_sampler(
        scorer, smooth_by_mean(smoothing), batch_size=batch_size, k=k, resample=draw
    )


def _resampler(recipe: str, name: str) -> Resampler:
    """The resampler of this name."""
    names = sorted(set(resampling.__all__) - {"presample"})
    if name not in names:
        raise ValueError(
            f"recipes.{recipe}: resample is {name!r}; choose one of {', '.join(names)}"
        )
    return getattr(resampling, name)
