"""Published methods by name, each a few lines of composition. A recipe returns a `Sampler`.

Here are those that need the main model or nothing at all; `isjax.recipes.by_history` and `isjax.recipes.by_error`
have those that go by past losses and errors, under the same names.

Common arguments: `batch_size`, b; `k`, the exponent of the weights (1 corrects the bias fully, 0 is
no correction); `smoothing`, the share of the mean score that is added to each; `loss_fn` and
`logits_fn`, `(params, batch) -> losses [B]` or `logits [B, classes]` of the main model in
evaluation mode, see `scorers.loss`; `label_fn`, `(batch) -> classes [B]`, by default
`batch["label"]`; `num_steps`, of the run, which some schedules need; `initial_loss`, of an example
never seen.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isjax import conditions, resampling, scorers, transforms
from isjax.base import Array, Batch, Sampler, ScalarOrSchedule
from isjax.recipes.by_error import c_sgd, mean_error, p_sgd
from isjax.recipes.by_history import (
    cached,
    default,
    infobatch,
    last_loss,
    loss_change,
    online_batch_selection,
    per_class_gaussian,
    predicted_loss,
    prioritized,
    small_loss,
)
from isjax.recipes.paper import biased_loss, learned_loss
from isjax.samplers import break_even, epochs, gate, importance_sampler
from isjax.scorers import LabelFn, LogitsFn, LossFn
from isjax.transforms import chain, smooth_by_mean

__all__ = [
    "biased_loss",
    "c_sgd",
    "cached",
    "default",
    "el2n",
    "grad_norm",
    "grad_norm_bound",
    "infobatch",
    "last_loss",
    "learned_loss",
    "loss_change",
    "mean_error",
    "online_batch_selection",
    "p_sgd",
    "per_class_gaussian",
    "predicted_loss",
    "prioritized",
    "proxy_loss",
    "reducible_loss",
    "reshuffled",
    "selective_backprop",
    "small_loss",
    "uniform",
]


def uniform(*, batch_size: int) -> Sampler:
    """Each batch drawn from all examples alike, whatever came before. Every weight is one."""
    return importance_sampler(scorers.uniform(), batch_size=batch_size, k=0.0)


def reshuffled(*, batch_size: int) -> Sampler:
    """Epochs without replacement, each in a new order: the stronger baseline.

    Under a budget also known as repeated random subsets.
    """
    everything = importance_sampler(
        scorers.uniform(),
        batch_size=batch_size,
        k=0.0,
        resample=resampling.without_replacement,
    )
    return epochs(everything, pool_size=batch_size)


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
    """A small network predicts the loss from the example alone: for a stream, without a buffer.

    It sees the class, and `x` from afar (`scorers.coarse_features`), and is trained by Adam on the
    b losses of each step. `example`: one or more, as arrays or their shapes, for the size of the
    network's input.
    """
    features = scorers.coarse_features(num_classes, label_fn)
    num_features = jax.eval_shape(features, example).shape[1]
    scorer = scorers.learned(
        scorers.features_mlp(features, num_features, hidden),
        optax.adam(step_size),
        history=0,
    )
    return importance_sampler(scorer, smooth_by_mean(smoothing), batch_size=batch_size, k=k)


def grad_norm_bound(
    *,
    batch_size: int,
    logits_fn: LogitsFn,
    label_fn: LabelFn | None = None,
    pool_size: int = 1024,
    k: ScalarOrSchedule = 1.0,
) -> Sampler:
    """By a bound on the gradient norm, while that pays (arXiv 1803.00942).

    The gate opens at tau > (B + 3b) / (3b), with the bound in tau taken as 1 - p(true class), of
    which it is between 1 and sqrt(2) times. B forward passes a step while open; `pool_size` is B,
    three batches in the authors' library.
    """
    sampler = importance_sampler(
        scorers.grad_norm_bound(logits_fn, label_fn), batch_size=batch_size, k=k
    )
    threshold = break_even(pool_size, batch_size)
    return gate(sampler, conditions.tau(threshold, importance=lambda losses: -jnp.expm1(-losses)))


def grad_norm(
    *, batch_size: int, loss_fn: LossFn, k: ScalarOrSchedule = 1.0, stateful: bool = False
) -> Sampler:
    """By the exact gradient norm of each example, which has the least variance: an oracle.

    B forward and backward passes a step, one by one. `stateful`: see `scorers.grad_norm`.
    """
    scorer = scorers.grad_norm(loss_fn, stateful=stateful)
    return importance_sampler(scorer, batch_size=batch_size, k=k)


def selective_backprop(*, batch_size: int, loss_fn: LossFn, beta: float = 3.0) -> Sampler:
    """Keeps an example with probability percentile(loss)^beta (Jiang et al. 2019, 1910.00762).

    Every example of an epoch is a candidate, (beta + 1) b of them a step, of which that rule keeps
    b on average. Here it is b exactly: each candidate is drawn as often on average as the rule
    keeps it, now and then one of them twice. (beta + 1) b forward passes a step; no correction.
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
    """RHO-LOSS (Mindermann et al. 2022, arXiv 2206.07137): what the model loses, a reference not.

    The b highest of the pool or, if `sampled`, p ~ max(loss - reference, 0) + c mean. `reference`:
    see `scorers.reducible_loss`; a run from a config makes it by cross-fitting. B forward passes a
    step, and what the reference cost.
    """
    scorer = scorers.reducible_loss(loss_fn, reference)
    if sampled:
        smoothed = chain(transforms.clip(), smooth_by_mean(smoothing))
        return importance_sampler(scorer, smoothed, batch_size=batch_size, k=k)
    return importance_sampler(
        scorer, transforms.percentile(), batch_size=batch_size, resample=resampling.top_k
    )


def el2n(*, batch_size: int, scores: Array, keep: float = 0.5) -> Sampler:
    """Uniform among the share `keep` of highest EL2N early in training: the rest is pruned.

    Paul et al. 2021 (arXiv 2107.07075). `scores`, [N], are computed before training: by a run from
    a config, see `references.early_el2n`. No correction: data are pruned, not resampled. From a
    pool that holds none of those kept it draws uniformly: choose a pool well above 1 / keep.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"recipes.el2n: keep is {keep}; choose a share above 0, at most 1")
    if np.isnan(scores).any():
        raise ValueError(
            f"recipes.el2n: {np.isnan(scores).sum()} scores are NaN; give those examples a number"
        )
    kept = np.asarray(scores) >= np.quantile(scores, 1 - keep)
    return importance_sampler(scorers.given(jnp.float32(kept)), batch_size=batch_size, k=0.0)
