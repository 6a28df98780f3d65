"""Each recipe against its method in NumPy, float64.

The references follow the papers and the docstrings. Each computes its scores anew from the `log`,
the draws and losses of all steps so far. So they share no state with the samplers under test.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_binomial, compiled

from isjax import recipes, scorers

N, B, CLASSES, FEATURES = 24, 12, 3, 4
b = 6
TRIALS = 2000  # draws from each state
KEY = jax.random.key(0)
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0}

RNG = np.random.default_rng(7)
X = np.append(RNG.normal(size=(N, FEATURES - 1)), np.ones((N, 1)), axis=1).astype(np.float32)
LABEL = RNG.integers(0, CLASSES, N).astype(np.int32)
PARAMS = RNG.normal(size=(20, FEATURES, CLASSES)).astype(np.float32)  # one set for each step
LOSSES = (RNG.gamma(2, 0.5, (20, b)) + 0.05).astype(np.float32)  # observed at each step
POOLS = np.stack([RNG.permutation(N)[:B] for _ in range(20)])
GIVEN = RNG.gamma(2, 0.5, N).astype(np.float32)  # a number for each example


def logits_of(params, batch):
    return batch["x"] @ params


def losses_of(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, batch), batch["label"])


# --- References: scores [B] of the pool, from the log of past steps and the current model


class Step(NamedTuple):
    pool: np.ndarray  # [B] ids
    params: np.ndarray  # of the main model
    ids: np.ndarray  # [b] trained on
    probs: np.ndarray  # [b] per draw
    losses: np.ndarray  # [b] observed


def past(log, i):
    """The losses of example i, oldest first. Duplicates in a batch count once, as their mean."""
    return [step.losses[step.ids == i].mean() for step in log if i in step.ids]


def last_losses(log, pool, initial=1.0):
    return np.array([[initial, *past(log, i)][-1] for i in pool])


def softmax(pool, params):
    z = X[pool].astype(np.float64) @ params
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def model_losses(pool, params):
    return -np.log(softmax(pool, params)[np.arange(len(pool)), LABEL[pool]])


def errors(pool, params):
    """softmax - onehot [B, classes], the gradient by the logits."""
    return softmax(pool, params) - np.eye(CLASSES)[LABEL[pool]]


def uniform(log, pool, params):
    return np.ones(len(pool))


def last_loss(log, pool, params):
    return last_losses(log, pool)


def smoothed(score, share=0.5, decay=0.9):
    """s + c EMA(mean s), with the average corrected for its start at zero."""

    def scores(log, pool, params):
        now = score(log, pool, params)
        before = [score(log[:t], step.pool, step.params).mean() for t, step in enumerate(log)]
        means = np.array([*before, now.mean()])
        return now + share * np.average(means, weights=decay ** np.arange(len(means))[::-1])

    return scores


def powered(score, exponent):
    return lambda *args: score(*args) ** exponent


def main_loss(log, pool, params):
    return model_losses(pool, params)


def bound(log, pool, params):
    return np.linalg.norm(errors(pool, params), axis=1)


def gated_bound(log, pool, params):
    """arXiv 1803.00942: the bound while tau > (B + 3b) / (3b)."""
    tau = 1.0
    for step in log:
        share = (1 / step.probs) / np.sum(1 / step.probs)
        g = 1 - np.exp(-step.losses)
        tau = 0.9 * tau + 0.1 * np.sqrt(share @ g**2) / (share @ g)
    is_open = tau > (B + 3 * b) / (3 * b)
    return bound(log, pool, params) if is_open else np.ones(len(pool))


def gradient_norms(log, pool, params):
    gradients = X[pool][:, :, None] * errors(pool, params)[:, None, :]
    return np.sqrt(np.sum(gradients**2, axis=(1, 2)))


def ranks(scores):
    """1 for the highest."""
    return 1 + np.argsort(np.argsort(-scores))


def online_batch_selection(pressure, final=None, num_steps=None):
    def scores(log, pool, params):
        s = pressure
        if num_steps is not None:
            s *= np.exp(np.log(final / pressure) / num_steps) ** min(len(log), num_steps)
        return (1 / np.exp(np.log(s) / len(pool))) ** ranks(last_losses(log, pool))

    return scores


def priorities(log, pool, params, initial=0.5, epsilon=1e-6):
    """|delta| + epsilon (Schaul et al. 2015); an example never seen has the pool's highest."""
    known = last_losses(log, pool, initial)
    return np.where([past(log, i) == [] for i in pool], known.max(), known) + epsilon


def prioritized_by_rank(log, pool, params):
    return (1 / ranks(priorities(log, pool, params))) ** 0.7


def class_gaussian(log, pool, params, label=LABEL, decay=0.9):
    mean = np.full(CLASSES, np.log(CLASSES))
    square = mean**2
    for step in log:
        for c in range(CLASSES):
            of_class = step.losses[label[step.ids] == c]
            if (n := len(of_class)) > 0:
                mean[c] += (1 - decay**n) * (of_class.mean() - mean[c])
                square[c] += (1 - decay**n) * ((of_class**2).mean() - square[c])
    return (mean + np.sqrt(np.maximum(square - mean**2, 0)))[label[pool]]


class CacheSampler:
    """The bookkeeping of the authors' class of this name (idiap/importance-sampling)."""

    def __init__(self, size, staleness=3, cache_prob=0.5, smooth=0.2):
        self.scores, self.cache = np.ones(size), {}
        self.staleness, self.alpha, self.smooth = staleness, cache_prob / (1 - cache_prob), smooth

    def update(self, ids, losses):
        for i, loss in zip(ids, losses, strict=True):
            self.cache[i] = (self.smooth + loss, 0)
        total = 0.0
        for i in list(self.cache):
            score, age = self.cache[i]
            if age > self.staleness:
                self.scores[i] = 1
                del self.cache[i]
            else:
                self.cache[i] = (score, age + 1)
                total += score
        for i, (score, _) in self.cache.items():
            self.scores[i] = 1 + self.alpha * len(self.scores) * score / total


def cached(**arguments):
    def scores(log, pool, params):
        sampler = CacheSampler(N, **arguments)
        for t, step in enumerate(log):
            ids = np.unique(step.ids)
            sampler.update(ids, [past(log[: t + 1], i)[-1] for i in ids])
        return sampler.scores[pool]

    return scores


def mean_errors(log, pool):
    """Means of 1 - p(true class), as `avg_probs` of Arazo et al.; -1 if never seen."""
    seen = [1 - np.exp(-np.array(past(log, i))) for i in pool]
    return np.array([error.mean() if len(error) else -1 for error in seen])


def errors_or(log, pool, initial):
    """Mean errors, with `initial` for an example never seen."""
    errors = mean_errors(log, pool)
    return np.where(errors == -1, initial, errors)


def smoothed_by_own_mean(scores, c=0.5):
    return scores + c * scores.mean()


def of_mean_error(transform, share=1.0):
    """Scores as in `select_samples` of Arazo et al. (EricArazo/ImportanceSampling)."""

    def scores(log, pool, params):
        m = mean_errors(log, pool)
        m = -m if m.max() == -1 else np.where(m == -1, m.max(), m)
        m = transform(m)
        m = m + share * m.mean()
        return m if m.sum() > 0 else np.ones(len(m))

    return scores


def infobatch(rate, num_steps=None, annealing=None, initial=1.0):
    def scores(log, pool, params):
        last = last_losses(log, pool, initial)
        prunes = num_steps is None or len(log) < num_steps * (1 - annealing)
        return np.where((last < last.mean()) & prunes, 1 - rate, 1.0)

    return scores


def reducible(log, pool, params):
    return np.maximum(model_losses(pool, params) - GIVEN[pool], 0)


def among_the_highest(number):
    kept = np.argsort(-GIVEN)[:number]
    return lambda log, pool, params: np.isin(pool, kept).astype(float)


def loss_change(change, decay, initial=1.0):
    def of(losses):
        if not losses:
            return initial
        average, difference = losses[0], 0.0
        for loss in losses[1:]:
            difference = loss - average
            average = decay * average + (1 - decay) * loss
        return average + change * difference

    return lambda log, pool, params: np.array([of(past(log, i)) for i in pool])


HISTORY, RATE, INITIAL = 3, 0.1, 0.8
WEIGHT, BIAS = np.array([0.5, -0.3, 0.2]), 0.1
NETWORK = scorers.Network(
    lambda key: {"w": jnp.float32(WEIGHT), "b": jnp.float32(BIAS)},
    lambda p, rows: rows.history @ p["w"] + p["b"],
)


def histories(log, ids):
    """The last losses of each example, newest first, after INITIAL for those not observed."""
    start = [INITIAL] * HISTORY
    return np.array([[*start, *past(log, i)][: -HISTORY - 1 : -1] for i in ids])


def learned_loss(log, pool, params):
    """softplus(w . history + b), w and b by gradient descent on the mean squared error."""
    w, bias = WEIGHT.copy(), BIAS
    for t, step in enumerate(log):
        rows = histories(log[:t], step.ids)
        z = rows @ w + bias
        slope = 2 * (np.logaddexp(0, z) - step.losses) / (1 + np.exp(-z)) / len(z)
        w, bias = w - RATE * slope @ rows, bias - RATE * slope.sum()
    predicted = np.logaddexp(0, histories(log, pool) @ w + bias)
    return np.where([past(log, i) == [] for i in pool], INITIAL, predicted)


def authors_loss(log, pool, params):
    """max(w . history + b, 0), of examples never seen too; w and b by the unclamped error."""
    w, bias = WEIGHT.copy(), BIAS
    for t, step in enumerate(log):
        rows = histories(log[:t], step.ids)
        slope = 2 * (rows @ w + bias - step.losses) / len(rows)
        w, bias = w - RATE * slope @ rows, bias - RATE * slope.sum()
    return np.maximum(histories(log, pool) @ w + bias, 0)


PROXY_RATE = 0.05


def proxy_loss(log, pool, params):
    """softplus of a line in x and class, by Adam on the mean squared error of each batch."""

    def features(ids):
        return np.hstack([X[ids], np.eye(CLASSES)[LABEL[ids]], np.ones((len(ids), 1))])

    layer = recipe("proxy_loss", **PROXY)().init(KEY, N).scorer.params["params"]["Dense_0"]
    w = np.append(np.asarray(layer["kernel"], np.float64), layer["bias"])
    mean = square = np.zeros(len(w))
    for t, step in enumerate(log, start=1):
        rows = features(step.ids)
        z = rows @ w
        slope = 2 * (np.logaddexp(0, z) - step.losses) / (1 + np.exp(-z)) @ rows / len(z)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        scale = np.sqrt(square / (1 - 0.999**t)) + 1e-8
        w = w - PROXY_RATE * mean / (1 - 0.9**t) / scale
    return np.logaddexp(0, features(pool) @ w)


PROXY = {
    "example": {"x": X, "label": LABEL},
    "num_classes": CLASSES,
    "hidden": (),
    "step_size": PROXY_RATE,
}


COMPANION_RATE, COMPANION_START = 0.03, np.linspace(0.4, -0.2, FEATURES)


def companion_loss(log, pool, params):
    """Squared errors of a line, by Adam on that of every second example of each batch."""
    w = COMPANION_START
    mean = square = np.zeros(len(w))
    for t, step in enumerate(log, start=1):
        ids = np.asarray(step.ids)[(t - 1) % 2 :: 2]
        slope = 2 * (X[ids] @ w - LABEL[ids]) @ X[ids] / len(ids)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        scale = np.sqrt(square / (1 - 0.999**t)) + 1e-8
        w = w - COMPANION_RATE * mean / (1 - 0.9**t) / scale
    return np.square(X[pool] @ w - LABEL[pool])


def squared_errors(params, batch):
    return jnp.square(batch["x"] @ params - batch["label"].astype(jnp.float32))


COMPANION = {
    "companion": scorers.Companion(
        lambda key: (jnp.float32(COMPANION_START), None),
        lambda params, model_state, batch, key: (squared_errors(params, batch), None),
        lambda params, model_state, batch: squared_errors(params, batch),
    ),
    "every": 2,
    "step_size": COMPANION_RATE,
}


SOURCE = np.repeat([0, 1, 2], [12, 8, 4])


def of_source(shares):
    """Scores that draw each source in its share; `shares` is of the log."""
    return lambda log, pool, params: (np.array(shares(log)) / np.bincount(SOURCE))[SOURCE[pool]]


def learned_shares(log, rate=1.0, floor=0.1):
    """A softmax of moving averages of each source's losses, mixed with equal shares."""
    reward = np.zeros(3)
    for step in log:
        for s in set(SOURCE[step.ids]):
            mean = step.losses[SOURCE[step.ids] == s].mean()
            reward[s] = 0.9 * reward[s] + 0.1 * mean if reward[s] else mean
    return (1 - floor) * np.exp(rate * reward) / np.exp(rate * reward).sum() + floor / 3


# --- References: weights [B], from the probabilities and the step


def ones(p, t):
    return np.ones(len(p))


def power_of_unbiased(k):
    return lambda p, t: (len(p) * np.where(p > 0, p, np.nan)) ** -k


def annealed(k, num_steps):
    return lambda p, t: power_of_unbiased(k + (1 - k) * min(t / num_steps, 1))(p, t)


def infobatch_weights(rate):
    """1 / (1 - r) for prunable examples, one for the rest, scaled so that no bias is left."""

    def weights(p, t):
        w = np.where(p < p.max(), 1 / (1 - rate), 1.0)
        return w / (p @ w)

    return weights


# --- Each recipe, step by step


class Case(NamedTuple):
    sampler: Callable[[], Any]
    scores: Callable[..., np.ndarray]  # (log, pool, params) -> [B]
    weights: Callable[..., np.ndarray]  # (probabilities [B], step) -> [B]
    steps: int = 7
    losses: np.ndarray = LOSSES
    primed: bool = False  # whether each example is observed once first, so that none are tied
    largest: bool = False  # whether weights are divided by the largest of the batch


def recipe(name, **arguments):
    return functools.partial(getattr(recipes, name), batch_size=b, **arguments)


HALF, FULL = power_of_unbiased(0.5), power_of_unbiased(1.0)
UNEVEN = np.full((20, b), 0.01, np.float32)  # losses that open a gate, then close it
UNEVEN[:9, 2], UNEVEN[9:] = 4.0, 1.0
SOME_ZERO = np.where(np.arange(b) % 3 == 1, 0, LOSSES).astype(np.float32)

CASES = {
    "uniform": Case(recipe("uniform"), uniform, ones),
    "given": Case(
        recipe("given", importances=GIVEN),
        lambda log, pool, params: GIVEN[pool].astype(np.float64),
        FULL,
    ),
    "biased_loss": Case(recipe("biased_loss", loss_fn=losses_of), smoothed(main_loss), HALF),
    "biased_loss, k and smoothing": Case(
        recipe("biased_loss", loss_fn=losses_of, k=-1.0, smoothing=0.1),
        smoothed(main_loss, 0.1),
        power_of_unbiased(-1.0),
    ),
    "grad_norm_bound": Case(
        recipe("grad_norm_bound", logits_fn=logits_of, pool_size=B),
        gated_bound,
        FULL,
        steps=14,
        losses=UNEVEN,
    ),
    "grad_norm": Case(recipe("grad_norm", loss_fn=losses_of), gradient_norms, FULL),
    "reducible_loss, sampled": Case(
        recipe("reducible_loss", loss_fn=losses_of, reference=GIVEN, sampled=True),
        smoothed(reducible),
        HALF,
    ),
    "reducible_loss, sampled, unsmoothed": Case(
        recipe(
            "reducible_loss",
            loss_fn=losses_of,
            reference=lambda batch: batch["given"],
            sampled=True,
            smoothing=0.0,
            k=1.0,
        ),
        reducible,
        FULL,
    ),
    "el2n": Case(recipe("el2n", scores=GIVEN), among_the_highest(N // 2), ones),
    "el2n, a quarter": Case(
        recipe("el2n", scores=GIVEN, keep=0.25), among_the_highest(N // 4), ones
    ),
    "default": Case(
        recipe("default"),
        lambda log, pool, params: smoothed_by_own_mean(last_losses(log, pool), 0.25),
        HALF,
        steps=9,
    ),
    "last_loss": Case(recipe("last_loss"), smoothed(last_loss), HALF, steps=9),
    "last_loss, capped": Case(
        recipe("last_loss", cap=0.7, initial_loss=0.4),
        smoothed(lambda log, pool, params: np.minimum(last_losses(log, pool, 0.4), 0.7)),
        HALF,
    ),
    "small_loss": Case(recipe("small_loss"), powered(smoothed(last_loss), -0.5), ones),
    "small_loss, with options": Case(
        recipe("small_loss", exponent=-1.5, k=0.5, smoothing=0.2, initial_loss=0.4),
        powered(smoothed(lambda log, pool, params: last_losses(log, pool, 0.4), 0.2), -1.5),
        HALF,
    ),
    "learned_loss": Case(
        recipe(
            "learned_loss",
            network=NETWORK,
            optimizer=optax.sgd(RATE),
            history=HISTORY,
            initial_loss=INITIAL,
        ),
        smoothed(learned_loss),
        HALF,
        steps=9,
    ),
    "learned_loss, as in the authors' code": Case(
        recipe(
            "learned_loss",
            network=NETWORK,
            optimizer=optax.sgd(RATE),
            history=HISTORY,
            initial_loss=INITIAL,
            smoothing=0.0,
            linear=True,
            initial_observed=True,
            resample="categorical",
        ),
        authors_loss,
        HALF,
        steps=9,
    ),
    "companion_loss": Case(
        recipe("companion_loss", **COMPANION), smoothed(companion_loss), HALF, steps=9
    ),
    "by_source": Case(
        recipe("by_source", source=SOURCE, proportions=(2, 1, 3)),
        of_source(lambda log: (2, 1, 3)),
        ones,
    ),
    "by_source, to others": Case(
        recipe(
            "by_source",
            source=SOURCE,
            proportions=(4, 4, 0),
            final_proportions=np.array([0.0, 1.0, 1.0]),
            num_steps=5,
            k=0.5,
        ),
        of_source(lambda log: (0.5 - min(len(log) / 5, 1) / 2, 0.5, min(len(log) / 5, 1) / 2)),
        HALF,
    ),
    "by_source, by a schedule": Case(
        recipe("by_source", source=SOURCE, proportions=lambda step: jnp.array([1, 2, 0]) + step),
        of_source(lambda log: np.array([1, 2, 0]) + len(log)),
        ones,
    ),
    "by_source, learned": Case(
        recipe("by_source", source=SOURCE, rate=2.0, floor=0.2),
        of_source(functools.partial(learned_shares, rate=2.0, floor=0.2)),
        ones,
        steps=9,
    ),
    "proxy_loss": Case(recipe("proxy_loss", **PROXY), smoothed(proxy_loss), HALF, steps=9),
    "online_batch_selection": Case(
        recipe("online_batch_selection"), online_batch_selection(100.0), ones, primed=True
    ),
    "online_batch_selection, relaxed": Case(
        recipe("online_batch_selection", num_steps=8, pressure=50.0, final_pressure=2.0),
        online_batch_selection(50.0, 2.0, 8),
        ones,
        steps=9,
        primed=True,
    ),
    "online_batch_selection, beyond its steps": Case(
        recipe("online_batch_selection", num_steps=5, pressure=50.0, final_pressure=2.0),
        online_batch_selection(50.0, 2.0, 5),
        ones,
        steps=8,
        primed=True,
    ),
    "prioritized": Case(
        recipe("prioritized", num_steps=6, initial_loss=0.5),
        powered(priorities, 0.6),
        annealed(0.4, 6),
        steps=9,
        losses=SOME_ZERO,
        largest=True,
    ),
    "prioritized, by rank": Case(
        recipe("prioritized", rank=True, alpha=0.7, k=0.5),
        prioritized_by_rank,
        HALF,
        primed=True,
        largest=True,
    ),
    "per_class_gaussian": Case(
        recipe("per_class_gaussian", num_classes=CLASSES), class_gaussian, HALF, steps=9
    ),
    "per_class_gaussian, with options": Case(
        recipe(
            "per_class_gaussian",
            num_classes=CLASSES,
            label_fn=lambda batch: jnp.int32(batch["x"][:, 0] > 0),
            decay=0.6,
            smoothing=0.3,
        ),
        smoothed(
            functools.partial(class_gaussian, label=(X[:, 0] > 0).astype(int), decay=0.6), 0.3
        ),
        HALF,
    ),
    "cached": Case(recipe("cached"), cached(), HALF, steps=9),
    "cached, with options": Case(
        recipe("cached", staleness=1, cache_prob=0.8, smoothing=0.05),
        cached(staleness=1, cache_prob=0.8, smooth=0.05),
        HALF,
    ),
    "mean_error": Case(
        recipe("mean_error"),
        lambda log, pool, params: smoothed_by_own_mean(errors_or(log, pool, 1.0), 0.25),
        HALF,
        steps=9,
    ),
    "mean_error, the unseen first": Case(
        recipe("mean_error", initial_loss=2.3, k=0.0, smoothing=1.0),
        lambda log, pool, params: smoothed_by_own_mean(errors_or(log, pool, 2.3), 1.0),
        ones,
    ),
    "p_sgd": Case(recipe("p_sgd"), of_mean_error(lambda m: m), ones, steps=9),
    "p_sgd, less smoothed": Case(
        recipe("p_sgd", smoothing=0.1), of_mean_error(lambda m: m, 0.1), ones
    ),
    "c_sgd": Case(recipe("c_sgd"), of_mean_error(lambda m: m * (1 - m)), ones, steps=9),
    "c_sgd, less smoothed": Case(
        recipe("c_sgd", smoothing=0.1), of_mean_error(lambda m: m * (1 - m), 0.1), ones
    ),
    "infobatch": Case(recipe("infobatch"), infobatch(0.5), infobatch_weights(0.5)),
    "infobatch, annealed": Case(
        recipe("infobatch", num_steps=16, rate=0.3, initial_loss=0.7),
        infobatch(0.3, 16, 0.125, 0.7),
        infobatch_weights(0.3),
        steps=17,
    ),
    "loss_change": Case(recipe("loss_change"), loss_change(0.7, 0.9), ones, steps=9),
    "loss_change, with options": Case(
        recipe("loss_change", change=0.3, decay=0.5, initial_loss=0.6),
        loss_change(0.3, 0.5, 0.6),
        ones,
    ),
}
# Compared in tests of their own, below.
ELSEWHERE = {"predicted_loss", "reshuffled", "selective_backprop", "reducible_loss"}


def test_every_recipe_is_compared_with_its_method():
    assert {name.split(",")[0] for name in CASES} | ELSEWHERE == set(recipes.__all__)


def replay(case):
    """Yields at each step the log so far, the pool, the params, and TRIALS draws of one state."""
    sampler = case.sampler()
    everything = {"x": X, "label": LABEL, "given": GIVEN}
    taught = np.full((case.steps, b), -1)
    if case.primed:
        taught[: N // b] = np.arange(N).reshape(-1, b)

    @functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
    def step(keys, state, ids, batch, params, losses, taught):
        many = jax.vmap(sampler.sample, (0, None, None, None, None))
        draws, states = many(keys, state, ids, batch, params)
        draw, state = jax.tree.map(lambda x: x[0], (draws, states))
        draw = draw._replace(ids=jnp.where(taught >= 0, taught, draw.ids))
        trained = jax.tree.map(lambda x: x[draw.ids], everything_on_device)
        return draws, sampler.update(state, draw, losses, trained), draw

    everything_on_device = jax.tree.map(jnp.asarray, everything)
    state, log = jax.jit(lambda: sampler.init(KEY, N))(), []
    for t in range(case.steps):
        pool = np.arange(N) if sampler.own_pool else POOLS[t]
        batch = jax.tree.map(lambda x: x[pool], everything)  # noqa: B023
        ids = None if sampler.own_pool else jnp.asarray(pool, jnp.int32)
        keys = jax.random.split(jax.random.fold_in(KEY, t), TRIALS)
        draws, state, draw = step(keys, state, ids, batch, PARAMS[t], case.losses[t], taught[t])
        draws, draw = jax.tree.map(np.asarray, (draws, draw))
        if t == 0 or taught[t, 0] < 0:
            yield log, pool, PARAMS[t].astype(np.float64), draws
        losses, probs = case.losses[t].astype(np.float64), draw.draw_probs.astype(np.float64)
        log = [*log, Step(pool, PARAMS[t].astype(np.float64), draw.ids, probs, losses)]


@pytest.mark.parametrize("name", CASES)
def test_recipe_draws_and_weighs_as_its_method(name):
    case = CASES[name]
    uneven = []
    for log, pool, params, draws in replay(case):
        scores = case.scores(log, pool, params)
        p = scores / scores.sum()
        w = case.weights(p, len(log))[draws.index]
        np.testing.assert_array_equal(draws.ids, pool[draws.index])
        if case.primed and not log:  # all are tied, and ranked in any order
            np.testing.assert_allclose(np.unique(draws.draw_probs), np.sort(p), rtol=1e-4)
            continue
        np.testing.assert_allclose(draws.draw_probs, p[draws.index], rtol=1e-4)
        w = w / w.max(axis=1, keepdims=True) if case.largest else w
        np.testing.assert_allclose(draws.weights, w, rtol=1e-4)
        # Systematic draws spread less than independent ones. Zero mass is never drawn.
        counts = np.bincount(draws.index.ravel(), minlength=len(pool))
        assert_binomial(counts, TRIALS * b, p)
        uneven.append(np.ptp(p) > 1e-3)
    assert any(uneven) == (name != "uniform")
    if name == "grad_norm_bound":  # closed, open, and closed again
        assert (uneven[0], uneven[8], uneven[-1]) == (False, True, False)
    if name == "infobatch, annealed":
        assert uneven[13] and not any(uneven[14:])


@pytest.mark.parametrize("reference", [GIVEN, lambda batch: batch["given"]], ids=["array", "fn"])
@pytest.mark.parametrize("shift", [0.0, 9.0], ids=["some negative", "all negative"])
def test_reducible_loss_takes_the_highest_differences(reference, shift):
    def loss_fn(params, batch):
        return losses_of(params, batch) - shift

    sampler = recipes.reducible_loss(batch_size=b, loss_fn=loss_fn, reference=reference)
    sampler = compiled(sampler)
    state = sampler.init(KEY, N)
    for t, pool in enumerate(POOLS[:5]):
        batch = {"x": X[pool], "label": LABEL[pool], "given": GIVEN[pool]}
        draw, state = sampler.sample(jax.random.key(t), state, jnp.asarray(pool), batch, PARAMS[t])
        differences = model_losses(pool, PARAMS[t].astype(np.float64)) - GIVEN[pool]
        assert differences.min() < 0
        np.testing.assert_array_equal(np.sort(draw.ids), np.sort(pool[ranks(differences) <= b]))
        np.testing.assert_allclose(draw.draw_probs, np.full(b, 1 / B), rtol=1e-6)
        np.testing.assert_allclose(draw.weights, np.ones(b), rtol=1e-6)
        state = sampler.update(state, draw, jnp.ones(b))


RESHUFFLED = compiled(recipes.reshuffled(batch_size=4))


@pytest.mark.parametrize("size", [12, 14])
def test_reshuffled_visits_each_example_once_an_epoch(size):
    state, epochs = RESHUFFLED.init(KEY, size), []
    for epoch in range(8):
        visited = []
        for t in range(size // 4):
            draw, state = RESHUFFLED.sample(jax.random.fold_in(KEY, 10 * epoch + t), state)
            np.testing.assert_array_equal(draw.weights, np.ones(4, np.float32))
            np.testing.assert_allclose(draw.draw_probs, np.full(4, 0.25), rtol=1e-6)
            state = RESHUFFLED.update(state, draw, LOSSES[t, :4])
            visited.append(frozenset(draw.ids.tolist()))
        assert len(frozenset.union(*visited)) == 12  # of 14, two are left out
        epochs.append(tuple(visited))
    assert len(set(epochs)) == 8  # each in a new order
    assert set().union(*(ids for epoch in epochs for ids in epoch)) == set(range(size))


def test_reshuffled_begins_with_every_example_alike():
    state, keys = RESHUFFLED.init(KEY, 14), jax.random.split(KEY, TRIALS)
    ids = jax.jit(jax.vmap(lambda key: RESHUFFLED.sample(key, state)[0].ids))(keys)
    assert_binomial(np.bincount(ids.ravel(), minlength=14), TRIALS, 4 / 14)


def stretches(beta, size):
    """Yields at each step the candidates [TRIALS, B], the places of the draws, and the draws.

    The place is by loss: the lowest loss of the candidates has place 0.
    """
    rng = np.random.default_rng(1)
    data = {
        "x": jnp.asarray(rng.normal(size=(size, FEATURES)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32),
    }
    sampler = recipes.selective_backprop(batch_size=b, loss_fn=losses_of, beta=beta)
    many = jax.vmap(sampler.sample, (0, None, None, None, None))
    many = jax.jit(many, compiler_options=QUICK_TO_COMPILE)
    sampler, losses_at = compiled(sampler), jax.jit(losses_of)
    state, candidates = sampler.init(KEY, size), round((beta + 1) * b)
    for t in range(6):
        keys = jax.random.split(jax.random.fold_in(KEY, t), TRIALS)
        draws, states = jax.tree.map(np.asarray, many(keys, state, None, data, PARAMS[t]))
        start = t % (size // candidates) * candidates
        stretch = states.order[:, start : start + candidates]
        losses = np.asarray(losses_at(PARAMS[t], data))
        places = np.argsort(np.argsort(losses[stretch], axis=1), axis=1)
        yield stretch, np.take_along_axis(places, draws.index, axis=1), draws
        draw, state = jax.tree.map(lambda x: x[0], (draws, states))
        state = sampler.update(state, draw, LOSSES[t])


def chances(beta, candidates):
    """Probability to be kept, by place: percentile^beta, scaled to keep b on average."""
    percentile = np.arange(1, candidates + 1) / candidates
    return b * percentile**beta / np.sum(percentile**beta)


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "candidates"), [(3.0, 24), (1.0, 12)])
def test_selective_backprop_draws_by_the_power_of_the_percentile(beta, candidates):
    chance, looked_at = chances(beta, candidates), []
    for stretch, drawn, draws in stretches(beta, 3 * candidates + 5):
        looked_at.append(stretch[0])
        np.testing.assert_array_equal(draws.ids, np.take_along_axis(stretch, draws.index, 1))
        np.testing.assert_allclose(draws.draw_probs, chance[drawn] / b, rtol=1e-4)
        np.testing.assert_array_equal(draws.weights, np.ones((TRIALS, b), np.float32))
        assert_binomial(np.bincount(drawn.ravel(), minlength=candidates), TRIALS * b, chance / b)
    # All but five are candidates once in each epoch of three steps, in a new order.
    first, second = np.concatenate(looked_at[:3]), np.concatenate(looked_at[3:])
    assert len(np.unique(first)) == len(np.unique(second)) == 3 * candidates
    assert np.any(first != second)


@pytest.mark.slow
def test_selective_backprop_seldom_draws_an_example_twice():
    """Of independent draws, four of five batches would hold a duplicate."""
    for _, drawn, _ in stretches(3.0, 24):
        times = (drawn[:, :, None] == np.arange(24)).sum(axis=1)
        assert times.max() <= 2 and np.mean(np.any(times == 2, axis=1)) < 0.25


def test_selective_backprop_keeps_about_as_one_by_one():
    """One by one, the rule keeps b (1 + 1/B)^2 of B = 4b distinct losses on average."""
    percentile = np.arange(1, 25) / 24
    np.testing.assert_allclose(chances(3.0, 24) * (1 + 1 / 24) ** 2, percentile**3, rtol=1e-9)


def mlp_output(params, history, count, age, label):
    """Output of the scorer's network in NumPy, for histories with the newest loss first."""
    layer = {
        name: {k: np.asarray(v, np.float64) for k, v in p.items()} for name, p in params.items()
    }
    seen = np.arange(history.shape[1]) < count[:, None]
    past = np.where(seen, np.log(np.maximum(history, 0) + 0.01), 0)
    visits = np.stack([np.log1p(count), np.log1p(age)], axis=1) / 4
    x = np.hstack([past, seen, visits, layer["Embed_0"]["embedding"][label]])
    hidden = np.maximum(x @ layer["Dense_0"]["kernel"] + layer["Dense_0"]["bias"], 0)
    return (hidden @ layer["Dense_1"]["kernel"] + layer["Dense_1"]["bias"])[:, 0]


@pytest.mark.slow
def test_predicted_loss_draws_by_what_its_network_says_of_every_example():
    sampler = compiled(recipes.predicted_loss(batch_size=b, num_classes=CLASSES, refresh=N))
    data = {"label": jnp.asarray(LABEL)}
    state, log = sampler.init(KEY, N), []
    for t in range(12):
        age = np.array([t - max((s for s, ids in enumerate(log) if i in ids), default=0)
                        for i in range(N)])  # fmt: skip
        history, count = (
            np.asarray(x, np.float64) for x in (state.buffer.losses, state.buffer.count)
        )
        output = mlp_output(state.scorer.params["params"], history, count, age, LABEL)
        scores = np.where(count > 0, np.logaddexp(0, output), 1.0)
        draw, state = sampler.sample(jax.random.fold_in(KEY, t), state, None, data)
        p = smoothed_by_own_mean(scores)
        p = p / p.sum()
        np.testing.assert_allclose(draw.scores, scores[draw.ids], rtol=1e-4)
        np.testing.assert_allclose(draw.draw_probs, p[draw.ids], rtol=1e-4)
        np.testing.assert_allclose(draw.weights, (N * p[draw.ids]) ** -0.5, rtol=1e-4)
        log.append(set(np.asarray(draw.ids).tolist()))
        batch = {"label": data["label"][draw.ids]}
        state = sampler.update(state, draw, jnp.asarray(LOSSES[t % len(LOSSES)]), batch)
