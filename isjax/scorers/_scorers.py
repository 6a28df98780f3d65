"""Scorers: how important is each example?

Those that run the main model on the pool cost forward passes and need the pool's `batch` and
`params`; those that remember losses cost nothing and are as stale as the last visit; one learns to
predict losses, and costs a small model.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from isjax.base import Array, Batch, Params, PyTree, Rows, Scorer
from isjax.gradients import check_losses, el2n, per_example_grad_norms
from isjax.scorers._learned import (
    Network,
    coarse_features,
    features_mlp,
    history_lstm,
    history_mlp,
    learned,
)
from isjax.scorers._rows import labels_of, require_model

__all__ = [
    "Network",
    "cached",
    "class_gaussian",
    "coarse_features",
    "difficulty",
    "features_mlp",
    "given",
    "grad_norm",
    "grad_norm_bound",
    "history_lstm",
    "history_mlp",
    "last_loss",
    "learned",
    "loss",
    "loss_change",
    "reducible_loss",
    "uncertainty",
    "uniform",
]

LossFn = Callable[[Params, Batch], Array]
LogitsFn = Callable[[Params, Batch], Array]
LabelFn = Callable[[Batch], Array]


def uniform() -> Scorer:
    """Every example is as important as any other."""
    return _fixed(lambda rows: jnp.ones(rows.count.shape, jnp.float32), history=0)


def given(scores: Array) -> Scorer:
    """Scores known beforehand, one for each example of the data set.

    Args:
        scores: [N]. An id beyond them scores NaN, and is not drawn.
    """
    return _by_id(scores, lambda known, rows: known)


# What the main model says of the pool.


def loss(loss_fn: LossFn, passes: float = 1.0) -> Scorer:
    """The loss itself: the main model runs on the whole pool (arXiv 1706.00043).

    Args:
        loss_fn: `(params, batch) -> losses [B]`, in evaluation mode: with dropout or batch
            statistics of the pool the scores would be noise. Negative losses count as zero. Its
            `params` are what `sampler.sample` was given: in `training.make_train_step`, for a model
            with state, the pair `(params, model_state)`.
        passes: what it costs an example, in forward passes of the main model: less for a cheap
            view of it, see `isjax.scorers.views`.
    """

    def score(rows: Rows) -> Array:
        return jnp.maximum(_losses(loss_fn, rows, "scorers.loss"), 0.0)

    return _fixed(score, history=0, passes=passes)


def grad_norm_bound(logits_fn: LogitsFn, label_fn: LabelFn | None = None) -> Scorer:
    """||softmax(z) - y||_2, an upper bound on the gradient norm up to a constant factor.

    One forward pass of the main model on the pool (arXiv 1803.00942), for cross-entropy. The same
    number is known as `el2n` (arXiv 2107.07075).

    Args:
        logits_fn: `(params, batch) -> logits [B, classes]`, in evaluation mode, with params as in
            `scorers.loss`.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
    """

    def score(rows: Rows) -> Array:
        require_model(rows, "scorers.grad_norm_bound")
        logits = logits_fn(rows.params, rows.batch).astype(jnp.float32)
        if logits.ndim != 2:
            raise ValueError(
                f"scorers.grad_norm_bound: logits_fn returned shape {logits.shape}; "
                "return one row of logits per example, shape (examples, classes)"
            )
        return el2n(logits, labels_of(rows, label_fn, "scorers.grad_norm_bound"))

    return _fixed(score, history=0, passes=1)


def grad_norm(loss_fn: LossFn, microbatch: int = 32, *, stateful: bool = False) -> Scorer:
    """||grad L||_2 exactly, the score of least variance: an oracle for studies.

    A forward and a backward pass for each example of the pool, without the savings of a batch.

    Args:
        loss_fn: as in `scorers.loss`, differentiable by its params.
        microbatch: gradients held in memory at once.
        stateful: the params are `(params, model_state)`, and the gradient is by the first alone.
    """

    def score(rows: Rows) -> Array:
        require_model(rows, "scorers.grad_norm")
        if not stateful:
            return per_example_grad_norms(loss_fn, rows.params, rows.batch, microbatch=microbatch)
        params, state = rows.params
        of_params = lambda params, batch: loss_fn((params, state), batch)  # noqa: E731
        return per_example_grad_norms(of_params, params, rows.batch, microbatch=microbatch)

    return _fixed(score, history=0, passes=3)


def reducible_loss(loss_fn: LossFn, reference: Array | Callable[[Batch], Array]) -> Scorer:
    """The loss less what a reference model, not trained on the example, loses (arXiv 2206.07137).

    Large where there is something left to learn; a wrong label costs the reference as much as the
    model. May be negative: chain `percentile` or `clip`.

    Args:
        loss_fn: as in `scorers.loss`.
        reference: losses [N] of the data set's examples, or `(batch) -> losses [B]`.
    """
    if not callable(reference):
        name = "scorers.reducible_loss"
        return _by_id(reference, lambda known, rows: _losses(loss_fn, rows, name) - known, passes=1)
    reference_fn = cast(Callable[[Batch], Array], reference)

    def score(rows: Rows) -> Array:
        return _losses(loss_fn, rows, "scorers.reducible_loss") - reference_fn(rows.batch)

    return _fixed(score, history=0, passes=1)


# What is remembered of past visits.


def last_loss(unseen_first: bool = False) -> Scorer:
    """The loss last observed, and `initial_loss` before that; negative losses count as zero.

    Args:
        unseen_first: an example never seen scores as the highest of the pool, if that is more.
    """

    def score(rows: Rows) -> Array:
        losses = jnp.maximum(rows.history[:, 0], 0.0)
        return jnp.where((rows.count == 0) & unseen_first, jnp.max(losses), losses)

    return _fixed(score, history=1)


def cached(staleness: int = 3, smoothing: float = 0.2) -> Scorer:
    """The loss + c for examples seen in the last `staleness` + 1 draws, zero for all others.

    The authors' `CacheSampler` (github.com/idiap/importance-sampling), with `mix_uniform` over the
    whole data set behind it.

    Args:
        staleness: draws for which a loss stays in the cache after the next one.
        smoothing: c, in units of the loss.
    """

    def score(rows: Rows) -> Array:
        if rows.age is None:
            raise ValueError("scorers.cached needs rows.age, to know what is stale")
        fresh = (rows.count > 0) & (rows.age <= staleness + 1)
        return jnp.where(fresh, smoothing + jnp.maximum(rows.history[:, 0], 0.0), 0.0)

    return _fixed(score, history=1)


def difficulty() -> Scorer:
    """The mean over all visits of 1 - p, p = exp(-loss) the probability of the true class.

    For cross-entropy; by Chang et al. 2017 (arXiv 1704.07433), as in the code of Arazo et al. 2021
    (arXiv 2110.14283). What was never seen counts as the most difficult of the pool.
    """
    return _of_mean_error(lambda error: error)


def uncertainty() -> Scorer:
    """By m (1 - m), largest near the decision threshold, with m as `difficulty` has it."""
    return _of_mean_error(lambda error: error * (1 - error))


def _of_mean_error(score: Callable[[Array], Array]) -> Scorer:
    def remember(history: Array, count: Array, losses: Array) -> Array:
        error = -jnp.expm1(-jnp.maximum(losses, 0.0))
        # The first observation takes the place of what was there before.
        return history + (error[:, None] - history) / (count[:, None] + 1)

    def of_rows(rows: Rows) -> Array:
        seen = rows.count > 0
        error = jnp.where(seen, rows.history[:, 0], 0.0)
        return score(jnp.where(seen, error, jnp.max(error)))

    return _fixed(of_rows, history=1, remember=remember)


def loss_change(change: float = 0.7, decay: float = 0.9) -> Scorer:
    """A moving average s of the losses, + c d, how far the last one lay from it before.

    s <- a s + (1 - a) loss, from the first loss on; d = loss - s is a sum of the loss's changes,
    each older one discounted by a.

    Args:
        change: c, the weight of the changes; at most a, so that no score is negative.
        decay: a, in [0, 1).
    """
    if not 0 <= change <= decay < 1:
        raise ValueError(
            f"scorers.loss_change: (change, decay) is {(change, decay)}; choose "
            "0 <= change <= decay < 1"
        )

    def remember(history: Array, count: Array, losses: Array) -> Array:
        before = jnp.where(count > 0, history[:, 1], losses)
        average = decay * before + (1 - decay) * losses
        return jnp.stack([average + change * (losses - before), average], axis=1)

    return _fixed(lambda rows: jnp.maximum(rows.history[:, 0], 0.0), 2, remember=remember)


class ClassState(NamedTuple):
    """Moving averages of each class's losses and squared losses, [classes] float32."""

    mean: Array
    square: Array


def class_gaussian(num_classes: int, label_fn: LabelFn | None = None, decay: float = 0.9) -> Scorer:
    """Mean + standard deviation of the class's recent losses.

    The authors' `PerClassGaussian` (github.com/idiap/importance-sampling). There a batch's losses
    enter the averages one by one, here the n of a class at once, as their mean with the weight of
    n. Averages start at log(classes), the loss of a uniform guess, without deviation.

    Args:
        num_classes: classes, numbered from 0.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        decay: of the averages, per observation, in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"scorers.class_gaussian: decay is {decay}; choose one in [0, 1)")

    def init(key: Array) -> ClassState:
        mean = jnp.full((num_classes,), jnp.log(num_classes), jnp.float32)
        return ClassState(mean, jnp.square(mean))

    def score(state: ClassState, rows: Rows) -> Array:
        deviation = jnp.sqrt(jnp.maximum(state.square - jnp.square(state.mean), 0.0))
        labels = labels_of(rows, label_fn, "scorers.class_gaussian")
        return jnp.maximum(state.mean + deviation, 0.0)[labels]

    def update(state: ClassState, rows: Rows, losses: Array) -> ClassState:
        labels = labels_of(rows, label_fn, "scorers.class_gaussian")
        finite = jnp.isfinite(losses)
        losses = jnp.where(finite, losses, 0.0)

        def total(values: Array) -> Array:
            return jax.ops.segment_sum(values, labels, num_classes)

        number = total(finite.astype(jnp.float32))
        kept = jnp.power(decay, number)

        def average(old: Array, values: Array) -> Array:
            return kept * old + (1 - kept) * total(values) / jnp.maximum(number, 1)

        return ClassState(average(state.mean, losses), average(state.square, jnp.square(losses)))

    return Scorer(init, score, update, history=0)


def _losses(loss_fn: LossFn, rows: Rows, name: str) -> Array:
    """Of the main model on the pool, [B] float32."""
    require_model(rows, name)
    return check_losses(loss_fn(rows.params, rows.batch), rows.count.shape[0]).astype(jnp.float32)


def _fixed(score: Callable[[Rows], Array], history: int, passes: float = 0.0, **more) -> Scorer:
    """A scorer that learns nothing."""
    return Scorer(
        init=lambda key: (),
        score=lambda state, rows: score(rows),
        update=lambda state, rows, losses: state,
        history=history,
        passes=passes,
        **more,
    )


def _by_id(known: Array, score: Callable[[Array, Rows], Array], passes: float = 0.0) -> Scorer:
    """A scorer that knows a number for each example of the data set; they are its state."""

    def of_rows(state: PyTree, rows: Rows) -> Array:
        if rows.ids is None:
            raise ValueError("scorers: numbers known by example need rows.ids to look them up")
        return score(state.at[rows.ids].get(mode="fill", fill_value=jnp.nan), rows)

    return Scorer(
        init=lambda key: jnp.array(known, jnp.float32),  # a copy, since steps donate it
        score=of_rows,
        update=lambda state, rows, losses: state,
        history=0,
        passes=passes,
    )
