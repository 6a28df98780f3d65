"""What a draw and a scorer are worth, from numbers that the step has at hand anyway.

And what a sampling scheme is worth, by drawing many batches: `gradient_quality`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from isjax import resampling
from isjax.base import Array, Batch, Draw, Params, PyTree, Sampler, SamplerState
from isjax.distributions import normalize
from isjax.gradients import per_example_grad_norms, weighted_value_and_grad
from isjax.weights import importance_weights

__all__ = [
    "Noise",
    "Quality",
    "correlation",
    "draw_metrics",
    "gradient_quality",
    "mean_absolute_error",
    "mean_loss",
    "unique_share",
]


def draw_metrics(draw: Draw, losses: Array, last_seen: Array | None = None) -> dict[str, Array]:
    """Diagnostics of one step, each a scalar; losses that are not finite are counted, not used.

    Args:
        draw: of b examples.
        losses: [b] just observed.
        last_seen: [b] the losses last observed before, where the sampler keeps them.

    Returns:
        `loss`: unbiased estimate of the data set's mean loss, at any k;
        `batch_loss`: mean loss of the batch as drawn;
        `ess`: effective sample size of the pool, as a share of it;
        `max_weight`: largest weight of the batch;
        `unique`: share of the batch that unique ids make up;
        `score_correlation`: between scores and losses (0 where either is constant);
        `score_error`: mean |score - loss|, which means something for scores that predict losses;
        `last_loss_error`: the same for the naive prediction, `last_seen` (if given);
        `nonfinite`: losses and pool scores that were NaN or infinite;
        `examples_forward`, `examples_backward`: of the main model, scoring included.
    """
    losses = losses.astype(jnp.float32)
    finite = jnp.isfinite(losses)
    metrics = {
        "loss": mean_loss(draw, losses),
        "batch_loss": _mean(losses, finite),
        "ess": draw.ess,
        "max_weight": jnp.max(draw.weights),
        "unique": unique_share(draw.ids),
        "score_correlation": correlation(draw.scores, losses),
        "score_error": mean_absolute_error(draw.scores, losses),
        "nonfinite": jnp.sum(~finite) + draw.nonfinite,
        "examples_forward": losses.shape[0] + jnp.asarray(draw.passes),
        "examples_backward": jnp.asarray(losses.shape[0]),
    }
    if last_seen is not None:
        metrics["last_loss_error"] = mean_absolute_error(last_seen, losses)
    return metrics


def mean_loss(draw: Draw, losses: Array) -> Array:
    """(1/b) sum L / (B draw_probs): unbiased for the pool's mean loss, whatever k is."""
    finite = jnp.isfinite(losses)
    return _mean(jnp.where(finite, losses, 0.0) / (draw.pool_size * draw.draw_probs), finite)


def unique_share(ids: Array) -> Array:
    """Share of distinct ids among the b drawn. [b] -> []."""
    ids = jnp.sort(ids)
    return (1 + jnp.sum(ids[1:] != ids[:-1])) / ids.shape[0]


def correlation(x: Array, y: Array) -> Array:
    """Pearson's r over the pairs that are finite; 0 where either is constant. [b], [b] -> []."""
    finite = jnp.isfinite(x) & jnp.isfinite(y)
    x, y = _centred(x, finite), _centred(y, finite)
    spread = jnp.sqrt(jnp.sum(jnp.square(x)) * jnp.sum(jnp.square(y)))
    return jnp.sum(x * y) / jnp.where(spread > 0, spread, 1.0)


def mean_absolute_error(predicted: Array, losses: Array) -> Array:
    """Mean |predicted - loss| over the pairs that are finite. [b], [b] -> []."""
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
        sampler: what was asked about.
        uniform: p = 1/B.
        optimum: p proportional to the norm of each example's gradient, which has the least
            variance of all that draw independently; systematic draws may have less.
    """

    sampler: Noise
    uniform: Noise
    optimum: Noise


def gradient_quality(
    key: Array,
    loss_fn: Callable[[Params, Batch], Array],
    params: Params,
    pool: Batch,
    sampler: Sampler,
    state: SamplerState,
    ids: Array | None = None,
    *,
    optimizer: Callable[[Params], PyTree] | None = None,
    num_draws: int = 100,
    scored_with: PyTree = None,
) -> Quality:
    """What a sampler's gradients are worth on one pool, for one state of model and sampler.

    Draws `num_draws` batches by each scheme and takes their gradients: num_draws 3 b gradients, and
    B of single examples for the optimum. Lahire (arXiv 2303.16529) asks this question of adaptive
    optimisers; of that work only the abstract has been seen.

    Args:
        key: of the draws.
        loss_fn: `(params, batch) -> losses [b]`, without randomness.
        params: the model's.
        pool: pytree with leading axis B: what the samplers choose from, and the gradient of whose
            mean loss is G.
        sampler: any that takes the pool it is given.
        state: the sampler's; it is not changed.
        ids: [B] int32 of the pool's examples in the data set; None = the pool is the data set.
        optimizer: makes an update of a gradient, `lambda g: tx.update(g, opt_state, params)[0]`:
            then the noise is the update's, and shows what the optimiser leaves of the gain.
            (Momentum alone leaves all of it: it scales the noise of every scheme alike.)
        num_draws: the more, the surer; each noise is estimated without bias but for the cosine.
        scored_with: what the sampler's scorer takes as its params; None = `params`.

    Raises:
        ValueError: when traced, if the sampler insists on a pool of its own.
    """
    size = jax.tree.leaves(pool)[0].shape[0]
    value_and_grad = weighted_value_and_grad(loss_fn)
    made = (lambda g: g) if optimizer is None else optimizer
    _, whole = value_and_grad(params, pool, jnp.ones((size,)))
    wanted = made(whole)
    scored_with = params if scored_with is None else scored_with

    def by_sampler(key):
        draw, drawn = sampler.sample(key, state, ids, pool, scored_with)
        return draw.index, functools.partial(sampler.weigh, drawn, draw)

    batch_size = jax.eval_shape(lambda: by_sampler(key)[0]).shape[0]

    def by(scores):
        def choose(key):
            index, draw_probs = resampling.categorical(key, normalize(scores), batch_size)
            return index, importance_weights(draw_probs, size)

        return choose

    def noise(choose):
        def add(sums, key):
            index, weights = choose(key)
            batch = jax.tree.map(lambda x: x[index], pool)
            _, grads = value_and_grad(params, batch, weights)
            error = optax.tree.sub(made(grads), wanted)  # centred: sums lose few digits
            return (optax.tree.add(sums[0], error), sums[1] + _squared(error)), None

        start = (optax.tree.zeros_like(wanted), jnp.zeros(()))
        (total, squares), _ = jax.lax.scan(add, start, jax.random.split(key, num_draws))
        mean = optax.tree.scale(1 / num_draws, total)
        variance = (squares - num_draws * _squared(mean)) / (num_draws - 1)
        expected = optax.tree.add(wanted, mean)
        length = jnp.sqrt(_squared(expected) * _squared(wanted))
        return Noise(
            variance=variance,
            bias=_squared(mean) - variance / num_draws,
            cosine=optax.tree.vdot(expected, wanted) / length,
        )

    norms = per_example_grad_norms(loss_fn, params, pool)
    return Quality(noise(by_sampler), noise(by(jnp.ones((size,)))), noise(by(norms)))


def _squared(tree: PyTree) -> Array:
    return jnp.asarray(optax.tree.vdot(tree, tree))


def _mean(values: Array, where: Array) -> Array:
    """Mean over `where`; 0 where that is empty."""
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)


def _centred(values: Array, where: Array) -> Array:
    """Deviations from the mean, the largest scaled to 1; exactly 0 where all are equal."""
    values = values - values[jnp.argmax(where)]  # a constant leaves no rounding error
    deviations = jnp.where(where, values - _mean(values, where), 0.0)
    largest = jnp.max(jnp.abs(deviations))
    return deviations / jnp.where(largest > 0, largest, 1.0)
