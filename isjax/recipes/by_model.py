"""Recipes that score examples by a model: the main one, a reference, or a small proxy."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isjax import conditions, resampling, scorers, transforms
from isjax._numerics.limits import violated
from isjax.base import Array, Batch, Sampler, ScalarOrSchedule
from isjax.samplers import break_even, epochs, gate, importance_sampler
from isjax.scorers import Companion, LabelFn, LogitsFn, LossFn
from isjax.transforms import chain, smooth_by_mean

__all__ = [
    "companion_loss",
    "el2n",
    "grad_norm",
    "grad_norm_bound",
    "proxy_loss",
    "reducible_loss",
    "selective_backprop",
]


def grad_norm_bound(
    *,
    batch_size: int,
    logits_fn: LogitsFn,
    label_fn: LabelFn | None = None,
    pool_size: int = 1024,
    k: ScalarOrSchedule = 1.0,
) -> Sampler:
    """Draws by a bound on the gradient norm, while that pays (arXiv 1803.00942).

    The score is ||softmax(z) - y||_2. A gate opens while tau > (B + 3b) / (3b), and draws are
    uniform while it is closed. tau is estimated from the batch by 1 - p(true class), which the
    bound exceeds by a factor of 1 to sqrt(2).

    Use it for classification by cross-entropy with an unbiased gradient. A step costs B forward
    passes of the main model while the gate is open, and none while it is closed.

    Args:
        batch_size: b, the examples drawn.
        logits_fn: `(params, batch) -> logits [B, classes]` of the main model in evaluation mode;
            see `scorers.loss`.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        pool_size: B, for the gate's threshold alone; three batches in the authors' library.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    sampler = importance_sampler(
        scorers.grad_norm_bound(logits_fn, label_fn), batch_size=batch_size, k=k
    )
    threshold = break_even(pool_size, batch_size)
    return gate(sampler, conditions.tau(threshold, importance=lambda losses: -jnp.expm1(-losses)))


def grad_norm(
    *, batch_size: int, loss_fn: LossFn, k: ScalarOrSchedule = 1.0, stateful: bool = False
) -> Sampler:
    """Draws by the exact gradient norm of each example, which has the least variance.

    Use it in studies, as the best that any score can reach. A step costs a forward and a
    backward pass for each of the B examples, one by one.

    Args:
        batch_size: b, the examples drawn.
        loss_fn: `(params, batch) -> losses [B]` of the main model in evaluation mode; see
            `scorers.loss`.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.
        stateful: whether the params are the pair `(params, model_state)`; see `scorers.grad_norm`.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    scorer = scorers.grad_norm(loss_fn, stateful=stateful)
    return importance_sampler(scorer, batch_size=batch_size, k=k)


def selective_backprop(*, batch_size: int, loss_fn: LossFn, beta: float = 3.0) -> Sampler:
    """Keeps an example with probability percentile(loss)^beta (arXiv 1910.00762).

    Every example of an epoch is a candidate. A step looks at (beta + 1) b of them, of which the
    rule of Jiang et al. 2019 keeps b on average. This recipe keeps exactly b: it draws each
    candidate as often on average as the rule keeps it, and seldom draws one of them twice.

    Use it to skip examples that the model has mastered. A step costs (beta + 1) b forward passes.
    Weights are one: the bias is not corrected.

    Args:
        batch_size: b, the examples drawn.
        loss_fn: `(params, batch) -> losses [B]` of the main model in evaluation mode; see
            `scorers.loss`.
        beta: exponent of the percentile; larger values keep fewer examples.

    Returns:
        A `Sampler` that chooses by itself where to look: pass no ids.
    """
    sampler = importance_sampler(
        scorers.loss(loss_fn),
        chain(transforms.percentile(), transforms.power(beta)),
        batch_size=batch_size,
        k=0.0,
    )
    return epochs(sampler, pool_size=math.ceil((beta + 1) * batch_size))


def reducible_loss(
    *,
    batch_size: int,
    loss_fn: LossFn,
    reference: Array | Callable[[Batch], Array],
    sampled: bool = False,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
) -> Sampler:
    """Draws by the model's loss minus a reference model's loss: RHO-LOSS (arXiv 2206.07137).

    Mindermann et al. 2022 take the b highest differences of the pool. With `sampled`, examples are
    drawn by max(loss - reference, 0) + c EMA(mean).

    Use it where labels may be wrong: a wrong label costs the reference as much as the model. A step
    costs B forward passes; training the reference comes on top.

    Args:
        batch_size: b, the examples drawn.
        loss_fn: `(params, batch) -> losses [B]` of the main model in evaluation mode; see
            `scorers.loss`.
        reference: losses [N] of a model not trained on the example, or `(batch) -> losses [B]`. A
            run from a config computes them by cross-fitting.
        sampled: draw by the difference, instead of taking the highest.
        k: exponent of the weights if `sampled`, a number of at most 1 or a schedule of the step; 1
            is unbiased. Otherwise weights are one.
        smoothing: c >= 0 if `sampled`, as a share of the moving average of the mean score.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    scorer = scorers.reducible_loss(loss_fn, reference)
    if sampled:
        smoothed = chain(transforms.clip(), smooth_by_mean(smoothing))
        return importance_sampler(scorer, smoothed, batch_size=batch_size, k=k)
    return importance_sampler(
        scorer, transforms.percentile(), batch_size=batch_size, resample=resampling.top_k
    )


def el2n(*, batch_size: int, scores: Array, keep: float = 0.5) -> Sampler:
    """Draws uniformly among the examples with the highest EL2N early in training.

    The others are pruned (Paul et al. 2021, arXiv 2107.07075). From a pool with none of those kept,
    draws are uniform: choose a pool well above 1 / keep.

    Use it to train on fewer examples. A step costs nothing, but the scores cost several short runs
    beforehand. Weights are one: data are pruned, so nothing is corrected.

    Args:
        batch_size: b, the examples drawn.
        scores: [N] EL2N scores, such as the mean of `gradients.el2n` over short runs. A run from a
            config computes them before training.
        keep: share of the examples kept, in (0, 1].

    Returns:
        A `Sampler` that chooses from the pool it is given.

    Raises:
        ValueError: if `keep` is outside its range, or scores are NaN.
    """
    if violated(keep > 0, keep <= 1):
        raise ValueError(f"recipes.el2n: keep is {keep}; choose a share above 0, at most 1")
    if np.isnan(scores).any():
        raise ValueError(
            f"recipes.el2n: {np.isnan(scores).sum()} scores are NaN; give those examples a number"
        )
    scores = jnp.asarray(scores, jnp.float32)
    kept = scores >= jnp.quantile(scores, 1 - keep)
    return importance_sampler(scorers.given(jnp.float32(kept)), batch_size=batch_size, k=0.0)


def proxy_loss(
    *,
    batch_size: int,
    example: Batch,
    num_classes: int,
    label_fn: LabelFn | None = None,
    hidden: tuple[int, ...] = (64,),
    step_size: float = 1e-3,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
) -> Sampler:
    """A small MLP predicts the loss from the example itself, without a buffer.

    It reads a coarse version of `batch["x"]` and the class (`scorers.coarse_features`). Adam trains
    it on the b losses of each step.

    Use it for a stream, whose examples come once. A step costs the MLP on the pool, and its
    gradient on the batch; the main model makes no pass for it.

    Args:
        batch_size: b, the examples drawn.
        example: one example or more, as a batch of arrays or of their shapes; it sets the size of
            the MLP's input.
        num_classes: classes, numbered from 0.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        hidden: sizes of the hidden layers.
        step_size: of Adam.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.
        smoothing: c >= 0, as a share of the moving average of the mean score.

    Returns:
        A `Sampler` that chooses from the pool it is given.
    """
    features = scorers.coarse_features(num_classes, label_fn)
    num_features = jax.eval_shape(features, example).shape[1]
    scorer = scorers.learned(
        scorers.features_mlp(features, num_features, hidden),
        optax.adam(step_size),
        history=0,
    )
    return importance_sampler(scorer, smooth_by_mean(smoothing), batch_size=batch_size, k=k)


def companion_loss(
    *,
    batch_size: int,
    companion: Companion,
    pool_size: int = 256,
    every: int = 4,
    step_size: float = 1e-3,
    k: ScalarOrSchedule = 0.5,
    smoothing: float = 0.5,
) -> Sampler:
    """Draws by the loss of a companion, a small model of the same task that is trained beside.

    Use it for a stream, or where the main model is too dear to run on a pool. A step costs the
    companion on the pool, and its gradient on one in `every` examples of the batch.

    Args:
        batch_size: b, the examples drawn.
        companion: the small model. Runs make it of the network that `config.companion` names.
        pool_size: B, to count the cost of training the companion as one of scoring.
        every: the companion trains on one in this many examples of the batch.
        step_size: of Adam, which trains the companion.
        k: exponent of the weights, a number of at most 1 or a schedule of the step; 1 is unbiased.
        smoothing: c >= 0, as a share of the moving average of the mean score.

    Returns:
        A `Sampler` that chooses from the pool it is given.

    Raises:
        ValueError: as `scorers.companion`.
    """
    scorer = scorers.companion(companion, optax.adam(step_size), every=every)
    trained = 3 * (batch_size // every) / pool_size  # a gradient costs three forward passes
    scorer = scorer._replace(passes=scorer.passes * (1 + trained))
    return importance_sampler(scorer, smooth_by_mean(smoothing), batch_size=batch_size, k=k)
