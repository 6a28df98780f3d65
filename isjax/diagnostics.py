"""Diagnostics of draws and scorers, from numbers that a step has anyway.

`make_gradient_quality` measures a sampler itself, by drawing many batches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax import resampling
from isjax.base import Array, Batch, Draw, Params, PyTree, Sampler, take
from isjax.buffer import PAIRS_UP_TO
from isjax.distributions import normalize
from isjax.gradients import per_example_grad_norms, weighted_value_and_grad
from isjax.weights import importance_weights

__all__ = [
    "Noise",
    "Quality",
    "correlation",
    "draw_metrics",
    "make_gradient_quality",
    "mean_absolute_error",
    "mean_loss",
    "unique_share",
]


def draw_metrics(draw: Draw, losses: Array) -> dict[str, Array]:
    """Diagnostics of one step, each a scalar; losses that are not finite are counted, not used.

    Args:
        draw: of b examples.
        losses: [b] just observed.

    Returns:
        A scalar by each name.

        - `loss`: estimate of the data set's mean loss, see `mean_loss`;
        - `batch_loss`: mean loss of the batch as drawn, which holds mostly hard examples;
        - `ess`: effective sample size of the pool, as a share of it;
        - `max_weight`: largest weight of the batch;
        - `unique`: share of the batch that unique ids make up;
        - `score_correlation`: between scores and losses (0 where either is constant);
        - `score_error`: mean `|score - loss|`, of meaning for scores that predict losses;
        - `last_loss_error`: the same for the naive prediction, `draw.last_loss`, if there is one;
        - `nonfinite`: losses and pool scores that were NaN or infinite;
        - `negative`: losses below zero, which scorers by the loss count as zero;
        - `invalid_ids`: ids of the pool that are of no example;
        - `examples_forward`, `examples_backward`: of the main model, scoring included; one scored
          by a cheap view of the model counts as its share, see `Scorer.passes`.
    """
    losses = losses.astype(jnp.float32)
    finite = jnp.isfinite(losses)
    metrics = {
        "loss": mean_loss(draw, losses),
        "batch_loss": _mean(losses, finite),
        "ess": draw.info.ess,
        "max_weight": jnp.max(draw.weights),
        "unique": unique_share(draw.ids),
        "score_correlation": correlation(draw.scores, losses),
        "score_error": mean_absolute_error(draw.scores, losses),
        "nonfinite": jnp.sum(~finite) + draw.info.nonfinite,
        "negative": jnp.sum(losses < 0),
        "invalid_ids": draw.info.invalid_ids,
        "examples_forward": losses.shape[0] + draw.info.passes,
        "examples_backward": jnp.asarray(losses.shape[0]),
    }
    if draw.last_loss is not None:
        metrics["last_loss_error"] = mean_absolute_error(draw.last_loss, losses)
    return metrics


def mean_loss(draw: Draw, losses: Array) -> Array:
    """Estimates the mean loss of the pool without bias, for every k: (1/b) sum L / (B draw_probs).

    Show this loss, and compare methods by it: that of `weighted_value_and_grad` is biased unless
    k = 1, and the plain mean of a batch is that of hard examples.

    Args:
        draw: of b examples.
        losses: [b]; those that are not finite are left out.

    Returns:
        [] float32. The expectation is the mean loss of the data set where the pool is that, or a
        uniform presample of it, and every example of the pool has a positive probability: not
        where the highest are taken (`resampling.top_k`) or some examples are never drawn.
    """
    finite = jnp.isfinite(losses)
    inverse = jnp.asarray(draw.info.pool_size, jnp.float32) * draw.draw_probs
    return _mean(jnp.where(finite, losses, 0.0) / inverse, finite)


def unique_share(ids: Array) -> Array:
    """Share of distinct ids among the b drawn. [b] -> []."""

    def by_sort(ids: Array) -> Array:
        ids = jnp.sort(ids)
        return 1 + jnp.sum(ids[1:] != ids[:-1], dtype=jnp.int32)

    def by_pairs(ids: Array) -> Array:
        position = jnp.arange(ids.shape[0])
        same = ids[:, None] == ids[None, :]
        first = jnp.min(jnp.where(same, position[None, :], ids.shape[0]), axis=1)
        return jnp.sum(first == position, dtype=jnp.int32)

    if ids.shape[0] > PAIRS_UP_TO:
        return by_sort(ids) / ids.shape[0]
    # On an accelerator a sort takes many small kernels.
    return jax.lax.platform_dependent(ids, cpu=by_sort, default=by_pairs) / ids.shape[0]


def correlation(x: Array, y: Array) -> Array:
    """Pearson's r over the pairs that are finite; 0 where either is constant. [b], [b] -> []."""
    finite = jnp.isfinite(x) & jnp.isfinite(y)
    x, y = _centred(x, finite), _centred(y, finite)
    spread = jnp.sqrt(jnp.sum(jnp.square(x)) * jnp.sum(jnp.square(y)))
    return jnp.sum(x * y) / jnp.where(spread > 0, spread, 1.0)


def mean_absolute_error(predicted: Array, losses: Array) -> Array:
    """Mean `|predicted - loss|` over the pairs that are finite. [b], [b] -> []."""
    error = jnp.abs(predicted - losses)
    return _mean(error, jnp.isfinite(error))


class Noise(NamedTuple):
    """How an estimate g from a batch, drawn anew each time, lies about the pool's own value G.

    Attributes:
        variance: [] trace of its covariance, E ||g - E g||^2.
        bias: [] ||E g - G||^2; 0 is expected at k = 1.
        cosine: [] between E g and G: a biased estimate may still point the same way.
    """

    variance: Array
    bias: Array
    cosine: Array


class Quality(NamedTuple):
    """The noise of a sampler beside that of two schemes with replacement, of weights 1 / (B p).

    Attributes:
        sampler: the sampler that was measured.
        uniform: p = 1/B.
        optimum: p proportional to the norm of each example's gradient, which has the least
            variance of all that draw independently; systematic draws may have less.
    """

    sampler: Noise
    uniform: Noise
    optimum: Noise


def make_gradient_quality(
    score_fn: Callable[[Params, PyTree, Batch], Array],
    tx: optax.GradientTransformation,
    sampler: Sampler,
    *,
    num_draws: int = 100,
) -> Callable[..., tuple[Quality, Quality]]:
    """Measures bias and variance of a sampler's gradient, and of the optimiser's update.

    Lahire (arXiv 2303.16529) asks this question of adaptive optimisers; of that work only the
    abstract has been seen.

    Args:
        score_fn: `(params, model_state, batch) -> losses [b]`, evaluation mode: the only randomness
            is to be that of the draws.
        tx: the optimiser.
        sampler: any that takes the pool it is given.
        num_draws: batches drawn by each scheme, at least 2. Variance and bias are estimated without
            bias: a bias of 0 comes out as often below it as above.

    Returns:
        `measure(key, state, pool, ids=None) -> (of the gradient, of the update)`, compiled once,
        for a `TrainState`, which it leaves alone; a pool, a pytree with leading axis B, whose mean
        gradient is G; and the `ids` [B] of the pool in the data set, None = the pool is the data
        set. The update is what `tx` makes of the gradient in its present state: Adam's with its
        preconditioner. Momentum leaves the ratios as they are, since it adds what does not depend
        on the draw. Costs 3 num_draws batches, and B gradients of single examples for the optimum.

    Raises:
        ValueError: if num_draws < 2, or the sampler insists on a pool of its own.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws is {num_draws}; a variance takes at least 2")
    if sampler.own_pool:
        raise ValueError("this sampler insists on a pool of its own; measure the one inside of it")

    def loss_fn(params: Params, batch: Batch, model_state: PyTree) -> Array:
        return score_fn(params, model_state, batch)

    value_and_grad, optimizer = weighted_value_and_grad(loss_fn), optax.with_extra_args_support(tx)

    def estimates(state: Any, batch: Batch, weights: Any) -> tuple[PyTree, PyTree]:
        (loss, _), grads = value_and_grad(state.params, batch, weights, state.model_state)
        return grads, optimizer.update(grads, state.opt_state, state.params, value=loss)[0]

    @jax.jit
    def of_pool(state: Any, pool: Batch) -> tuple[tuple[PyTree, PyTree], Array]:
        norms = per_example_grad_norms(loss_fn, state.params, pool, state.model_state)
        return estimates(state, pool, jnp.ones(norms.shape)), norms

    def by_sampler(key: Array, state: Any, pool: Batch, ids: Array | None, norms: Array):
        stateful = bool(jax.tree.leaves(state.model_state))
        variables = (state.params, state.model_state) if stateful else state.params
        draw, drawn = sampler.sample(key, state.sampler, ids, pool, variables)
        return draw.index, functools.partial(sampler.weigh, drawn, draw)

    def by_scores(scores_of: Callable[[Array], Array]):
        def choose(key: Array, state: Any, pool: Batch, ids: Array | None, norms: Array):
            probs = normalize(scores_of(norms))
            index, draw_probs = resampling.categorical(key, probs, sampler.batch_size)
            return index, importance_weights(draw_probs, norms.shape[0])

        return choose

    def adder(choose: Callable):
        @functools.partial(jax.jit, donate_argnums=0)
        def add(sums, key, state, pool, ids, norms, wanted):
            index, weights = choose(key, state, pool, ids, norms)
            batch = take(pool, index)
            # Centred, so that little is lost in the sums.
            errors = optax.tree.sub(estimates(state, batch, weights), wanted)
            squares = jnp.stack([_squared(error) for error in errors])
            return optax.tree.add(sums[0], errors), sums[1] + squares

        return add

    schemes = (by_sampler, by_scores(jnp.ones_like), by_scores(lambda norms: norms))
    adders = [adder(choose) for choose in schemes]

    def measure(
        key: Array, state: Any, pool: Batch, ids: Array | None = None
    ) -> tuple[Quality, Quality]:
        wanted, norms = of_pool(state, pool)
        noises = []
        for add in adders:
            sums = (optax.tree.zeros_like(wanted), jnp.zeros((2,)))
            # Not a loop on the device: on a CPU a convolution is many times slower inside of one.
            for draw_key in jax.random.split(key, num_draws):
                sums = add(sums, draw_key, state, pool, ids, norms, wanted)
            noises.append(
                [_noise(*view, num_draws) for view in zip(sums[0], sums[1], wanted, strict=True)]
            )
        gradient, update = zip(*noises, strict=True)
        return Quality(*gradient), Quality(*update)

    return measure


@functools.partial(jax.jit, static_argnums=3)
def _noise(total: PyTree, squares: Array, wanted: PyTree, num_draws: int) -> Noise:
    """From the sum of errors, that of their squared norms, and what they are errors of."""
    mean = optax.tree.scale(1 / num_draws, total)
    variance = (squares - num_draws * _squared(mean)) / (num_draws - 1)
    expected = optax.tree.add(wanted, mean)
    length = jnp.sqrt(_squared(expected) * _squared(wanted))
    inner = jnp.asarray(optax.tree.vdot(expected, wanted))
    return Noise(
        variance=variance,
        bias=_squared(mean) - variance / num_draws,
        cosine=inner / jnp.where(length > 0, length, 1.0),
    )


def _squared(tree: PyTree) -> Array:
    return jnp.asarray(optax.tree.vdot(tree, tree))


def _mean(values: Array, where: Array) -> Array:
    """Mean over `where`; 0 where that is empty."""
    number = jnp.maximum(jnp.sum(where), 1).astype(values.dtype)
    # Divided first: a division of the sum would be a kernel of its own on an accelerator.
    return jnp.sum(jnp.where(where, values / number, 0.0))


def _centred(values: Array, where: Array) -> Array:
    """Deviations from the mean, in units of the range; exactly 0 where all are equal."""
    low = jnp.min(jnp.where(where, values, jnp.inf))
    length = jnp.max(jnp.where(where, values, -jnp.inf)) - low
    scaled = (values - low) / jnp.where(length > 0, length, 1.0)
    return jnp.where(where, scaled - _mean(scaled, where), 0.0)
