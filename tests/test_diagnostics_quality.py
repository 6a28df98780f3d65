"""`make_gradient_quality` against closed forms, from per-example gradients written out in float64.

Each estimate of a variance or of a squared bias is unbiased at any number of draws, so that the
mean over `TRIALS` keys is compared with its closed form within 5 standard errors (`assert_mean`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_mean

import isjax
from isjax import recipes, resampling, scorers
from isjax.diagnostics import make_gradient_quality
from isjax.training import TrainState

pytestmark = pytest.mark.slow  # hundreds of gradients

POOL, FEATURES, CLASSES, BATCH = 12, 4, 3, 4
TRIALS, DRAWS = 40, 40
KEY = jax.random.key(0)
PLAIN = optax.identity()  # an update is the gradient

rng = np.random.default_rng(0)
X = (rng.normal(size=(POOL, FEATURES)) * np.geomspace(0.2, 3, POOL)[:, None]).astype(np.float32)
LABEL = (np.arange(POOL) % CLASSES).astype(np.int32)
PARAMS = {
    "b": jnp.asarray(0.3 * rng.normal(size=CLASSES), jnp.float32),
    "w": jnp.asarray(0.7 * rng.normal(size=(FEATURES, CLASSES)), jnp.float32),
}
DATA = {"x": jnp.asarray(X), "label": jnp.asarray(LABEL)}
SCORES = np.geomspace(0.3, 3.0, POOL)[np.random.default_rng(1).permutation(POOL)]


def score_fn(params, model_state, batch):
    del model_state
    return loss_fn(params, batch)


def loss_fn(params, batch):
    logits = batch["x"] @ params["w"] + params["b"][None, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def losses_and_gradients(params=PARAMS, x=X, label=LABEL):
    """Of each example, [B] and [B, parameters], the biases first as in a flattened dict."""
    x, w, b = (np.asarray(value, np.float64) for value in (x, params["w"], params["b"]))
    logits = x @ w + b
    logits = logits - logits.max(axis=1, keepdims=True)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    residual = probs - np.eye(CLASSES)[label]
    kernels = x[:, :, None] * residual[:, None, :]
    losses = -np.log(probs[np.arange(len(x)), label])
    return losses, np.concatenate([residual, kernels.reshape(len(x), -1)], axis=1)


LOSSES, GRADIENTS = losses_and_gradients()


def of_batches(probs, weights, gradients=GRADIENTS, batch_size=BATCH, whole=None):
    """Variance, squared bias and cosine of (1/b) sum w g, with independent draws by `probs`."""
    whole = gradients.mean(axis=0) if whole is None else whole
    mean = (probs * weights) @ gradients
    square = (probs * weights**2) @ np.sum(gradients**2, axis=1)
    variance = (square - mean @ mean) / batch_size
    cosine = mean @ whole / np.sqrt(mean @ mean * (whole @ whole))
    return variance, np.sum((mean - whole) ** 2), cosine


def proportional(scores):
    return np.asarray(scores, np.float64) / np.sum(scores)


UNIFORM = np.full(POOL, 1 / POOL)
NORMS = np.linalg.norm(GRADIENTS, axis=1)


def by_given(k=1.0, scores=SCORES, batch_size=BATCH, resample=resampling.categorical):
    scorer = scorers.given(jnp.asarray(scores, jnp.float32))
    return isjax.importance_sampler(scorer, batch_size=batch_size, k=k, resample=resample)


def train_state(sampler, tx=PLAIN, opt_state=None, state=None, model_state=None):
    return TrainState(
        step=jnp.int32(0),
        key=KEY,
        params=PARAMS,
        model_state=model_state,
        opt_state=tx.init(PARAMS) if opt_state is None else opt_state,
        sampler=sampler.init(KEY, POOL) if state is None else state,
    )


def measured_both(
    sampler,
    tx=PLAIN,
    opt_state=None,
    *,
    score_fn=score_fn,
    state=None,
    model_state=None,
    pool=DATA,
    ids=None,
    trials=TRIALS,
    num_draws=DRAWS,
    seed=0,
):
    """Of gradient and update, as measured with each of many keys: float64 arrays [trials]."""
    measure = make_gradient_quality(score_fn, tx, sampler, num_draws=num_draws)
    state = train_state(sampler, tx, opt_state, state, model_state)
    keys = jax.random.split(jax.random.key(seed), trials)
    qualities = jax.device_get([measure(key, state, pool, ids) for key in keys])
    return jax.tree.map(lambda *x: np.asarray(x, np.float64), *qualities)


def measured(sampler, **settings):
    """Of the gradient."""
    return measured_both(sampler, **settings)[0]


def assert_noise(noise, expected):
    """Variance and squared bias as in closed form. (Of few draws the cosine says little.)"""
    variance, bias, _ = expected
    assert_mean(noise.variance, variance)
    assert_mean(noise.bias, bias)


@pytest.fixture(scope="module")
def unbiased():
    return measured(by_given())


def test_the_references_are_what_jax_says():
    """The gradients written out are those that the library takes."""
    grads = jax.vmap(
        jax.grad(lambda p, x, y: loss_fn(p, {"x": x[None], "label": y[None]})[0]),
        in_axes=(None, 0, 0),
    )(PARAMS, DATA["x"], DATA["label"])
    flat = np.concatenate([np.asarray(g).reshape(POOL, -1) for g in jax.tree.leaves(grads)], axis=1)
    np.testing.assert_allclose(flat, GRADIENTS, rtol=1e-4, atol=1e-5)


def test_the_noise_of_uniform_draws(unbiased):
    """(mean ||g||^2 - ||G||^2) / b, and no bias."""
    mean = GRADIENTS.mean(axis=0)
    variance = (np.mean(NORMS**2) - mean @ mean) / BATCH
    assert of_batches(UNIFORM, 1.0)[0] == pytest.approx(variance)
    assert_noise(unbiased.uniform, (variance, 0.0, 1.0))


def test_the_noise_of_the_optimum(unbiased):
    """((mean ||g||)^2 - ||G||^2) / b, the least of all independent draws without bias."""
    mean = GRADIENTS.mean(axis=0)
    variance = (np.mean(NORMS) ** 2 - mean @ mean) / BATCH
    probs = proportional(NORMS)
    assert of_batches(probs, 1 / (POOL * probs))[0] == pytest.approx(variance)
    assert_noise(unbiased.optimum, (variance, 0.0, 1.0))
    assert variance < 0.7 * of_batches(UNIFORM, 1.0)[0]


@pytest.mark.parametrize("k", [1.0, 0.5, -1.0])
def test_the_noise_and_the_bias_of_a_sampler(k, unbiased):
    """Known probabilities, independent draws, weights (1 / (B p))^k."""
    quality = unbiased if k == 1 else measured(by_given(k))
    probs = proportional(SCORES)
    variance, bias, cosine = of_batches(probs, (POOL * probs) ** -k)
    assert_noise(quality.sampler, (variance, bias, cosine))
    if k == 1:
        assert bias == pytest.approx(0, abs=1e-20) and cosine == pytest.approx(1)
    else:  # told apart from no bias with the same confidence
        assert bias > 5 * quality.sampler.bias.std() / np.sqrt(TRIALS)


def test_estimates_do_not_depend_on_the_number_of_draws():
    """Nor are they biased where these are few: of 3, dividing by n would take a third away."""
    quality = measured(by_given(0.5), trials=400, num_draws=3, seed=1)
    probs = proportional(SCORES)
    variance, bias, _ = of_batches(probs, (POOL * probs) ** -0.5)
    assert_mean(quality.sampler.variance, variance)
    assert_mean(quality.sampler.bias, bias)


def test_all_three_schemes_draw_as_many_examples_as_the_sampler_does():
    quality = measured(by_given(batch_size=9), seed=2)
    probs = proportional(SCORES)
    expected = of_batches(probs, 1 / (POOL * probs), batch_size=9)[0]
    assert_mean(quality.sampler.variance, expected)
    assert_mean(quality.uniform.variance, of_batches(UNIFORM, 1.0, batch_size=9)[0])
    best = proportional(NORMS)
    assert_mean(quality.optimum.variance, of_batches(best, 1 / (POOL * best), batch_size=9)[0])


def test_the_optimum_itself_as_a_sampler_is_the_optimum():
    quality = measured(by_given(scores=NORMS), seed=3)
    probs = proportional(NORMS)
    expected = of_batches(probs, 1 / (POOL * probs))[0]
    assert_mean(quality.sampler.variance, expected)


def test_systematic_draws_have_less_variance_than_independent_ones():
    """By more than 5 standard errors, and no bias either."""
    noise = measured(by_given(resample=resampling.systematic), trials=80, seed=4).sampler
    probs = proportional(SCORES)
    independent, _, _ = of_batches(probs, 1 / (POOL * probs))
    error = noise.variance.std(ddof=1) / np.sqrt(len(noise.variance))
    assert noise.variance.mean() + 5 * error < independent
    assert_mean(noise.bias, 0.0)


def test_all_of_the_pool_without_replacement_has_no_noise_at_all():
    sampler = by_given(batch_size=POOL, resample=resampling.without_replacement)
    quality = measured(sampler, trials=3)
    total = np.sum(GRADIENTS.mean(axis=0) ** 2)
    np.testing.assert_allclose(quality.sampler.variance, 0, atol=1e-10 * total)
    np.testing.assert_allclose(quality.sampler.bias, 0, atol=1e-10 * total)
    np.testing.assert_allclose(quality.sampler.cosine, 1, rtol=1e-6)


# The pool, and what the sampler is given of it.


def test_the_pool_is_part_of_the_data_set():
    """`ids` say which: the scores are those of the ids, the gradient that of the pool."""
    ids = np.array([20, 3, 11, 7, 0, 29])
    state = by_given(scores=np.geomspace(0.1, 5, 30)).init(KEY, 30)
    pool = jax.tree.map(lambda x: x[:6], DATA)
    quality = measured(
        by_given(0.5, np.geomspace(0.1, 5, 30)), state=state, pool=pool, ids=jnp.asarray(ids)
    )
    probs = proportional(np.geomspace(0.1, 5, 30)[ids])
    variance, bias, cosine = of_batches(probs, (6 * probs) ** -0.5, GRADIENTS[:6])
    assert_noise(quality.sampler, (variance, bias, cosine))
    assert_mean(quality.uniform.variance, of_batches(np.full(6, 1 / 6), 1.0, GRADIENTS[:6])[0])


def test_the_state_of_the_sampler_is_what_it_draws_by():
    sampler = isjax.importance_sampler(
        scorers.last_loss(), batch_size=BATCH, resample=resampling.categorical
    )
    state = sampler.init(KEY, POOL)
    known = state.buffer._replace(losses=jnp.asarray(SCORES, jnp.float32))
    quality = measured(sampler, state=state._replace(buffer=known), seed=5)
    probs = proportional(SCORES)
    assert_mean(quality.sampler.variance, of_batches(probs, 1 / (POOL * probs))[0])


@pytest.mark.parametrize("stateful", [False, True])
def test_a_scorer_that_runs_the_model_gets_its_params_and_its_state_if_any(stateful):
    """The state here turns and shrinks the weights, of the scores as of the gradients."""

    def turned(params, factor):
        return jax.tree.map(lambda x: factor * jnp.roll(x, 1, axis=-1), params)

    def with_state(params, model_state, batch):
        return loss_fn(turned(params, model_state["factor"]), batch)

    def scores(variables, batch):
        return with_state(*variables, batch) if stateful else loss_fn(variables, batch)

    sampler = isjax.importance_sampler(
        scorers.loss(scores), batch_size=BATCH, k=0.5, resample=resampling.categorical
    )
    quality = measured(
        sampler,
        seed=6,
        score_fn=with_state if stateful else score_fn,
        model_state={"factor": jnp.float32(0.4)} if stateful else None,
    )
    losses, gradients = LOSSES, GRADIENTS
    if stateful:  # in other coordinates, but of the same lengths, times the factor
        losses, gradients = losses_and_gradients(turned(PARAMS, 0.4))
        gradients = 0.4 * gradients
    probs = proportional(losses)
    assert probs.min() > 5e-4  # each example is drawn often enough to be told from none
    assert_noise(quality.sampler, of_batches(probs, (POOL * probs) ** -0.5, gradients))
    assert_mean(quality.uniform.variance, of_batches(UNIFORM, 1.0, gradients)[0])


def test_weights_that_follow_the_losses_are_used():
    policy = lambda draw, losses: jnp.minimum(losses, 1.0)  # noqa: E731
    quality = measured(isjax.reweight(by_given(), policy), seed=7)
    probs = proportional(SCORES)
    assert_noise(quality.sampler, of_batches(probs, np.minimum(LOSSES, 1.0)))


def test_the_state_is_not_changed_and_the_key_decides():
    tx, sampler = optax.adam(0.01), recipes.last_loss(batch_size=BATCH)
    state = train_state(sampler, tx)
    before = jax.tree.map(np.array, state._replace(key=0))
    measure = make_gradient_quality(score_fn, tx, sampler, num_draws=3)
    first, again, other = (measure(jax.random.key(seed), state, DATA) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, before, state._replace(key=0))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first[0].sampler.variance != other[0].sampler.variance
    assert all(np.shape(value) == () for value in jax.tree.leaves(first))


def test_it_is_compiled_once():
    traced = []

    def noted(params, model_state, batch):
        traced.append(1)
        return score_fn(params, model_state, batch)

    sampler = recipes.last_loss(batch_size=BATCH)
    measure = make_gradient_quality(noted, PLAIN, sampler, num_draws=4)
    state = train_state(sampler)
    measure(KEY, state, DATA)
    number = len(traced)
    moved = state._replace(params=jax.tree.map(lambda x: 2 * x, PARAMS))
    first, second = (measure(jax.random.key(1), s, DATA)[0].sampler for s in (state, moved))
    assert len(traced) == number and first.variance != second.variance


@pytest.mark.parametrize("num_draws", [1, 0, -3])
def test_a_variance_takes_two_draws(num_draws):
    with pytest.raises(ValueError, match=f"num_draws is {num_draws}; a variance takes at least 2"):
        make_gradient_quality(score_fn, PLAIN, by_given(), num_draws=num_draws)


@pytest.mark.parametrize("method", [recipes.reshuffled, recipes.cached])
def test_a_sampler_with_a_pool_of_its_own_is_refused(method):
    with pytest.raises(ValueError, match="insists on a pool of its own"):
        make_gradient_quality(score_fn, PLAIN, method(batch_size=BATCH))


# What the optimiser leaves of it.


def warmed(tx, steps=4):
    """The optimiser's state after some gradients of other batches."""
    state = tx.init(PARAMS)
    for step in range(steps):
        grads = jax.tree.map(
            lambda x: 0.3 * jnp.cos(jnp.arange(x.size) + step).reshape(x.shape),  # noqa: B023
            PARAMS,
        )
        _, state = tx.update(grads, state, PARAMS)
    return state


def test_without_an_optimiser_an_update_is_the_gradient():
    gradient, update = measured_both(by_given(0.5), trials=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), gradient, update)


def test_sgd_scales_the_noise_by_the_square_of_its_rate():
    """To the last digits: gradient and update are of the same batches."""
    gradient, update = measured_both(by_given(0.5), optax.sgd(0.03))
    for noise, plain in zip(update, gradient, strict=True):
        np.testing.assert_allclose(noise.variance, 0.03**2 * plain.variance, rtol=1e-4)
        np.testing.assert_allclose(noise.bias, 0.03**2 * plain.bias, rtol=0.01, atol=1e-8)
        np.testing.assert_allclose(noise.cosine, plain.cosine, rtol=1e-4)
    probs = proportional(SCORES)
    assert_mean(update.sampler.variance, 0.03**2 * of_batches(probs, (POOL * probs) ** -0.5)[0])


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_leaves_all_of_the_gain(nesterov):
    """What it remembers is no noise, and scales the noise of every scheme alike."""
    tx = optax.sgd(0.1, momentum=0.9, nesterov=nesterov)
    gradient, update = measured_both(by_given(), tx, warmed(tx), trials=5)
    scale = (0.1 * (1.9 if nesterov else 1.0)) ** 2
    for noise, plain in zip(update, gradient, strict=True):
        np.testing.assert_allclose(noise.variance, scale * plain.variance, rtol=1e-3)
    for scheme in ("sampler", "optimum"):
        ratios = [getattr(q, scheme).variance / q.uniform.variance for q in (update, gradient)]
        np.testing.assert_allclose(*ratios, rtol=2e-3)


@pytest.mark.parametrize("k", [1.0, 0.5])
def test_a_diagonal_preconditioner_in_closed_form(k):
    """Each coordinate is scaled by a factor of its own."""
    factors = jax.tree.map(
        lambda x: jnp.asarray(np.geomspace(0.1, 3, x.size).reshape(x.shape), jnp.float32), PARAMS
    )
    tx = optax.stateless(lambda grads, _: jax.tree.map(lambda g, f: g * f, grads, factors))
    gradient, update = measured_both(by_given(k), tx, seed=9)
    probs, best = proportional(SCORES), proportional(NORMS)  # the optimum is by plain norms
    for quality, each in ((gradient, GRADIENTS), (update, GRADIENTS * flat64(factors))):
        assert_noise(quality.sampler, of_batches(probs, (POOL * probs) ** -k, each))
        assert_noise(quality.uniform, of_batches(UNIFORM, 1.0, each))
        assert_noise(quality.optimum, of_batches(best, 1 / (POOL * best), each))


def flat64(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def adam_by_hand(gradient, mean, square, count, rate=0.01):
    """Adam's update, float64: of the old moments and one more gradient."""
    mean = 0.9 * mean + 0.1 * gradient
    square = 0.999 * square + 0.001 * gradient**2
    mean, square = mean / (1 - 0.9 ** (count + 1)), square / (1 - 0.999 ** (count + 1))
    return -rate * mean / (np.sqrt(square) + 1e-8)


@pytest.mark.parametrize("k", [1.0, 0.5])
def test_the_noise_of_adam_over_the_same_draws(k):
    """Adam is not linear: its update of each batch is written out for the batches drawn."""
    tx, sampler, num_draws = optax.adam(0.01), by_given(k), 200
    opt_state = warmed(tx)
    measure = make_gradient_quality(score_fn, tx, sampler, num_draws=num_draws)
    qualities = measure(KEY, train_state(sampler, tx, opt_state), DATA)
    probs, best = proportional(SCORES), proportional(NORMS)
    keys = jax.random.split(KEY, num_draws)
    with_step = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)  # as a sampler draws
    adam = functools.partial(
        adam_by_hand,
        mean=flat64(opt_state[0].mu),
        square=flat64(opt_state[0].nu),
        count=int(opt_state[0].count),
    )
    for quality, made in zip(qualities, (lambda gradient: gradient, adam), strict=True):
        wanted = made(GRADIENTS.mean(axis=0))
        for noise, p, weights, used in (
            (quality.sampler, probs, (POOL * probs) ** -k, with_step),
            (quality.uniform, UNIFORM, np.ones(POOL), keys),
            (quality.optimum, best, 1 / (POOL * best), keys),
        ):
            p32 = jnp.asarray(p, jnp.float32)
            draw = lambda key, p32=p32: resampling.categorical(key, p32, BATCH)[0]  # noqa: E731
            index = np.asarray(jax.vmap(draw)(used))
            gradients = (weights[index][:, :, None] * GRADIENTS[index]).mean(axis=1)
            updates = np.stack([made(gradient) for gradient in gradients])
            mean = updates.mean(axis=0)
            variance = np.sum(updates.var(axis=0, ddof=1))
            bias = np.sum((mean - wanted) ** 2) - variance / num_draws
            cosine = mean @ wanted / np.sqrt(mean @ mean * (wanted @ wanted))
            assert float(noise.variance) == pytest.approx(variance, rel=2e-3)
            assert float(noise.bias) == pytest.approx(bias, rel=1e-2, abs=1e-3 * variance)
            assert float(noise.cosine) == pytest.approx(cosine, abs=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_of_an_update_of_nothing_there_is_no_noise_and_no_angle(rate):
    """Where the rate has decayed to zero, or where nothing is left to learn."""
    params = jax.tree.map(jnp.zeros_like, PARAMS)
    sampler, tx = recipes.uniform(batch_size=BATCH), optax.sgd(rate)
    nothing = lambda params, model_state, batch: 0 * score_fn(params, model_state, batch)  # noqa: E731
    measure = make_gradient_quality(nothing if rate else score_fn, tx, sampler, num_draws=4)
    _, update = measure(KEY, train_state(sampler, tx)._replace(params=params), DATA)
    for noise in update:
        assert noise == (0, 0, 0)


def test_the_cosine_tells_a_turned_mean_from_a_longer_one():
    """With one class ten times as often E g points elsewhere; with weights of 3 it does not."""
    draws, mean = 60, GRADIENTS.mean(axis=0)
    often = np.where(LABEL == 0, 10.0, 1.0)
    turned = measured(by_given(0.0, often), num_draws=draws).sampler
    expected = of_batches(proportional(often), np.ones(POOL))[2]
    assert expected < 0.9
    assert turned.cosine.mean() == pytest.approx(expected, abs=0.05)

    tripled = lambda draw, losses: jnp.full(losses.shape, 3.0)  # noqa: E731
    uniform = isjax.importance_sampler(
        scorers.uniform(), batch_size=BATCH, resample=resampling.categorical
    )
    longer = measured(isjax.reweight(uniform, tripled), num_draws=draws).sampler
    # The direction of a mean of n draws is off by an angle of some sqrt(variance / n) / length.
    angle = np.sqrt(of_batches(UNIFORM, 1.0)[0] / draws / (mean @ mean))
    assert np.all(longer.cosine > 1 - (5 * angle) ** 2 / 2)
    assert_mean(longer.bias, 4 * mean @ mean)
