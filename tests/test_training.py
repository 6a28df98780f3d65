import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import accelerator

import isjax
from isjax import buffer, recipes, resampling, scorers
from isjax.training import (
    TrainState,
    init_train_state,
    make_eval_step,
    make_loaded_step,
    make_train_step,
    num_examples,
)

KEY = jax.random.key(0)
N, B, b = 10, 6, 5
RATE, MOMENTUM, NOISE, SCORER_RATE = 0.05, 0.9, 0.1, 5e-4
SGD = optax.sgd(RATE, momentum=MOMENTUM)


def regression(seed=0, outlier=True):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(N, 3)), rng.normal(size=N)
    y[3] += 6.0 * outlier  # drawn several times whenever it is in the pool
    return {"x": jnp.float32(x), "y": jnp.float32(y)}


def noisy_loss(params, model_state, batch, key):
    """Squared error to a target that is augmented, so that duplicates differ in their losses."""
    target = batch["y"] + NOISE * jax.random.normal(key, batch["y"].shape)
    return 0.5 * jnp.square(batch["x"] @ params["w"] - target), model_state


def plain_loss(params, model_state, batch, key):
    return 0.5 * jnp.square(batch["x"] @ params["w"] - batch["y"]), model_state


def zeros():
    return {"w": jnp.zeros(3)}


def start(sampler, params=None, tx=SGD, model_state=None, seed=0, size=N):
    params = zeros() if params is None else params
    return init_train_state(jax.random.key(seed), params, tx, sampler, size, model_state)


def copy(state):
    return jax.tree.map(jnp.copy, state)


def run(step, state, data, number):
    metrics = []
    for _ in range(number):
        state, now = step(state, data)
        metrics.append(jax.device_get(now))
    return state, metrics


def assert_same_bits(tree, other):
    def bits(x):
        typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if typed else x)

    jax.tree.map(lambda a, c: np.testing.assert_array_equal(bits(a), bits(c)), tree, other)


def assert_finite(tree):
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


# --- a whole step, recomputed in float64


def step_keys(state):
    return jax.random.split(jax.random.fold_in(state.key, state.step), 3)


class Reference:
    """Sections 3 and 5 of the design in NumPy; only which items are drawn comes from outside."""

    def __init__(self, data, history, initial_loss, learned=None):
        self.x, self.y = (np.asarray(data[name], float) for name in ("x", "y"))
        self.w, self.velocity = np.zeros(3), np.zeros(3)
        self.losses = np.full((N, history), initial_loss)
        self.count = np.zeros(N, int)
        self.average, self.age = 0.0, 0
        self.learned = learned

    def scores(self, ids):
        if self.learned is None:
            return self.losses[ids, 0]
        predicted = np.log1p(np.exp(self.learned_outputs(ids)))
        return np.where(self.count[ids] > 0, predicted, self.losses[ids, 0])

    def learned_outputs(self, ids):
        return self.losses[ids] @ self.learned["w"] + self.learned["c"] * self.count[ids]

    def probabilities(self, scores):
        self.age += 1
        self.average = 0.9 * self.average + 0.1 * scores.mean()
        smooth = scores + 0.5 * self.average / (1 - 0.9**self.age)
        return smooth / smooth.sum()

    def step(self, pool, index, noise, k):
        scores = self.scores(pool)
        p = self.probabilities(scores)
        ids, weights = pool[index], (1 / (len(pool) * p[index])) ** k
        error = self.x[ids] @ self.w - self.y[ids] - noise
        losses = 0.5 * error**2
        self.velocity = (weights * error) @ self.x[ids] / len(ids) + MOMENTUM * self.velocity
        self.w = self.w - RATE * self.velocity
        if self.learned is not None:
            self.learn(ids, losses)
        self.write(ids, losses)
        return {
            "loss": np.mean(losses / (len(pool) * p[index])),
            "batch_loss": np.mean(losses),
            "ess": 1 / np.sum(p**2) / len(pool),
            "max_weight": weights.max(),
            "unique": len(np.unique(ids)) / len(ids),
            "score_error": np.mean(np.abs(scores[index] - losses)),
        }

    def learn(self, ids, losses):
        z = self.learned_outputs(ids)
        slope = 2 * (np.log1p(np.exp(z)) - losses) / (1 + np.exp(-z)) / len(ids)
        self.learned = {
            "w": self.learned["w"] - SCORER_RATE * slope @ self.losses[ids],
            "c": self.learned["c"] - SCORER_RATE * slope @ self.count[ids],
        }

    def write(self, ids, losses):
        for i in np.unique(ids):
            self.losses[i] = [losses[ids == i].mean(), *self.losses[i, :-1]]
            self.count[i] += 1


LEARNED = {"w": np.array([0.3, 0.1, 0.05]), "c": 0.02}
NETWORK = scorers.Network(
    lambda key: {"w": jnp.float32(LEARNED["w"]), "c": jnp.float32(LEARNED["c"])},
    lambda params, rows: rows.history @ params["w"] + params["c"] * rows.count,
)


def method(name, k):
    if name == "last_loss":
        return recipes.last_loss(batch_size=b, k=k), (1, 1.0, None)
    sampler = recipes.learned_loss(
        batch_size=b,
        k=k,
        network=NETWORK,
        optimizer=optax.sgd(SCORER_RATE),
        history=3,
        initial_loss=1.5,
    )
    return sampler, (3, 1.5, LEARNED)


@pytest.mark.parametrize(
    ("name", "k", "pool_size"),
    [("last_loss", 0.5, B), ("learned", 0.5, B), ("learned", -0.5, None)],
)
def test_steps_equal_a_float64_recomputation(name, k, pool_size):
    sampler, arguments = method(name, k)
    data, state = regression(), start(sampler)
    reference = Reference(data, *arguments)
    step = make_train_step(noisy_loss, SGD, sampler, pool_size=pool_size)
    sample, unique = jax.jit(sampler.sample), []
    for _ in range(12):
        pool_key, draw_key, loss_key = step_keys(state)
        pool = jnp.arange(N) if pool_size is None else isjax.presample(pool_key, N, B)
        draw, _ = sample(draw_key, state.sampler, pool)
        noise = NOISE * np.asarray(jax.random.normal(loss_key, (b,)), float)
        want = reference.step(np.array(pool), np.array(draw.index), noise, k)
        state, metrics = step(state, data)
        got = {name: float(metrics[name]) for name in want}
        assert got == pytest.approx(want, rel=2e-4, abs=1e-5)
        unique.append(want["unique"])
    assert step._cache_size() == 1
    assert min(unique) < 1, "no duplicates: the data no longer force them"
    assert_matches(state, reference)


def assert_matches(state, reference):
    def close(value, want):
        np.testing.assert_allclose(value, want, rtol=5e-4, atol=2e-5)

    close(state.params["w"], reference.w)
    close(state.opt_state[0].trace["w"], reference.velocity)
    close(buffer.read(state.sampler.buffer, jnp.arange(N))[0], reference.losses)
    np.testing.assert_array_equal(state.sampler.buffer.count, reference.count)
    smoothing = state.sampler.transform
    if reference.learned is None:
        smoothing = smoothing[-1]  # last_loss clips before
    close(smoothing.average, reference.average)
    assert int(state.step) == int(state.sampler.step) == int(smoothing.step) == 12
    if reference.learned is not None:
        for name, want in reference.learned.items():
            assert np.all(np.abs(want / LEARNED[name] - 1) > 0.005), "learned too little to tell"
            close(state.sampler.scorer.params[name], want)


class Tanh(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(x)))[:, 0]


def tanh_losses(params, batch):
    return jnp.square(Tanh().apply(params, batch["x"]) - batch["y"])


def test_uniform_recipe_is_plain_sgd_to_the_last_bit():
    data, sampler = regression(), recipes.uniform(batch_size=b)
    params = jax.jit(Tanh().init)(KEY, data["x"])
    state, opt_state = start(sampler, params), SGD.init(params)
    step = make_train_step(
        lambda p, s, batch, key: (tanh_losses(p, batch), s), SGD, sampler, pool_size=B
    )

    @jax.jit
    def draw(state):
        pool_key, draw_key, _ = step_keys(state)
        return sampler.sample(draw_key, state.sampler, isjax.presample(pool_key, N, B))[0].ids

    @jax.jit
    def plain_step(params, opt_state, data, ids):
        batch = jax.tree.map(lambda x: x[ids], data)
        grads = jax.grad(lambda p: jnp.mean(tanh_losses(p, batch)))(params)
        updates, opt_state = SGD.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(60):
        params, opt_state = plain_step(params, opt_state, data, draw(state))
        state, metrics = step(state, data)
        assert float(metrics["max_weight"]) == 1
    assert_same_bits((state.params, state.opt_state), (params, opt_state))


# --- model state and randomness


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))[:, 0]


def train_view(params, model_state, batch, key):
    out, model_state = Normed().apply(
        {"params": params, **model_state},
        batch["x"],
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    return jnp.square(out - batch["y"]), model_state


def eval_view(params, model_state, batch):
    out = Normed().apply({"params": params, **model_state}, batch["x"], train=False)
    return jnp.square(out - batch["y"])


@pytest.mark.slow
def test_scoring_is_in_evaluation_mode_and_training_alone_moves_the_batch_statistics():
    data = regression()
    variables = jax.jit(Normed().init, static_argnames="train")(KEY, data["x"], train=False)
    model_state = {"batch_stats": variables["batch_stats"]}
    sampler = recipes.biased_loss(
        batch_size=b, loss_fn=lambda variables, batch: eval_view(*variables, batch)
    )
    state = start(sampler, variables["params"], model_state=model_state)
    step = make_train_step(train_view, SGD, sampler, pool_size=B)
    sample, by_hand = jax.jit(sampler.sample), jax.jit(train_view)
    for _ in range(3):
        pool_key, draw_key, loss_key = step_keys(state)
        ids = isjax.presample(pool_key, N, B)
        pool = jax.tree.map(lambda x: x[ids], data)  # noqa: B023
        draw, _ = sample(draw_key, state.sampler, ids, pool, (state.params, state.model_state))
        batch = jax.tree.map(lambda x: x[draw.ids], data)  # noqa: B023
        losses, want = by_hand(state.params, state.model_state, batch, loss_key)
        scores = eval_view(state.params, state.model_state, batch)
        before = copy(state.model_state)
        state, metrics = step(state, data)
        jax.tree.map(
            lambda a, c: np.testing.assert_allclose(a, c, rtol=1e-4), state.model_state, want
        )
        error = float(jnp.mean(jnp.abs(scores - losses)))
        assert float(metrics["score_error"]) == pytest.approx(error, rel=1e-3)
        assert not np.allclose(jax.tree.leaves(before)[0], jax.tree.leaves(want)[0])


@pytest.mark.parametrize("model_state", [None, {}], ids=["none", "empty"])
def test_without_model_state_the_scorer_gets_the_bare_params(model_state):
    seen = []

    def score(params, batch):
        seen.append(params)
        return plain_loss(params, None, batch, None)[0]

    sampler = recipes.biased_loss(batch_size=b, loss_fn=score)
    step = make_train_step(plain_loss, SGD, sampler)
    jax.eval_shape(step, start(sampler, model_state=model_state), regression())
    assert seen and all(set(params) == {"w"} for params in seen)


def test_evaluation_step_gives_the_functions_values_and_leaves_the_state():
    state = start(recipes.uniform(batch_size=b), {"w": jnp.ones(3)}, model_state={"s": jnp.ones(1)})
    evaluate = make_eval_step(lambda p, s, batch: {"out": batch["x"] @ p["w"] + s["s"]})
    data = regression()
    want = np.sum(np.asarray(data["x"]), axis=1) + 1
    for _ in range(2):
        np.testing.assert_allclose(evaluate(state, data)["out"], want, rtol=1e-5)


# --- reproducible, compiled once, donated


@pytest.fixture(scope="module")
def trainer():
    """A sampler and its compiled step, shared by tests that need no more than one."""
    sampler = recipes.last_loss(batch_size=b)
    return sampler, make_train_step(noisy_loss, SGD, sampler, pool_size=B)


def test_same_seed_same_training_and_another_seed_another(trainer):
    sampler, step = trainer
    runs = [run(step, start(sampler, seed=seed), regression(), 6) for seed in (1, 1, 2)]
    assert_same_bits(runs[0], runs[1])
    assert [m["loss"] for m in runs[0][1]] != [m["loss"] for m in runs[2][1]]


def test_steps_differ_in_their_randomness():
    sampler = recipes.uniform(batch_size=1)
    step = make_train_step(
        lambda p, s, c, key: (c["x"] @ p["w"] + jax.random.normal(key), s), SGD, sampler
    )
    _, metrics = run(step, start(sampler), regression(), 8)
    assert len({float(m["batch_loss"]) for m in metrics}) == 8


def test_resuming_from_a_copy_is_bit_identical(trainer):
    sampler, step = trainer
    state, _ = run(step, start(sampler), regression(), 3)
    saved = copy(state)
    through = run(step, state, regression(), 4)
    assert_same_bits(run(step, saved, regression(), 4), through)


def test_many_steps_compile_once():
    method = recipes.last_loss(batch_size=b, k=optax.linear_schedule(1.0, 0.0, 5))
    sampler = isjax.gate(method, 1.1)
    step = make_train_step(noisy_loss, SGD, sampler, pool_size=B)
    run(step, start(sampler), regression(), 8)
    assert step._cache_size() == 1


def test_scalar_params_do_not_compile_twice():
    def loss_fn(params, model_state, batch, key):
        return jnp.square(params["bias"] - batch["y"]), model_state

    sampler = recipes.uniform(batch_size=b)
    step = make_train_step(loss_fn, SGD, sampler)
    run(step, start(sampler, {"bias": jnp.array(0.0)}), regression(), 3)
    assert step._cache_size() == 1


def test_the_old_states_buffers_are_donated_and_the_users_params_are_not(trainer):
    sampler, step = trainer
    params = {"w": jnp.ones(3)}
    state = start(sampler, params)
    step(state, regression())
    assert state.params["w"].is_deleted()
    assert state.sampler.buffer.losses.is_deleted() and state.opt_state[0].trace["w"].is_deleted()
    np.testing.assert_array_equal(params["w"], np.ones(3))


def test_step_copies_nothing_between_host_and_device(trainer):
    sampler, step = trainer
    state, data = start(sampler), regression()
    with jax.transfer_guard("disallow"):
        state, _ = step(state, data)
        state, _ = step(state, data)
        with pytest.raises(Exception, match="transfer"):  # the guard does watch
            step(state, jax.device_get(data))


def test_step_inside_scan_equals_a_loop(trainer):
    sampler, step = trainer
    data = regression()
    looped, metrics = run(step, start(sampler), data, 10)
    scanned, stacked = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, data), s, length=10))(
        start(sampler)
    )
    np.testing.assert_allclose(scanned.params["w"], looped.params["w"], rtol=1e-4, atol=1e-6)
    assert_same_bits(scanned.sampler.buffer.count, looped.sampler.buffer.count)
    np.testing.assert_allclose(stacked["loss"], [m["loss"] for m in metrics], rtol=1e-4)


def test_data_of_any_structure_trains_alike(trainer):
    sampler, step = trainer
    data = regression()

    def loss_fn(params, model_state, batch, key):
        batch = {"x": batch[0]["in"][0], "y": batch[1]}
        return noisy_loss(params, model_state, batch, key)

    other = make_train_step(loss_fn, SGD, sampler, pool_size=B)
    want, _ = run(step, start(sampler), data, 3)
    got, _ = run(other, start(sampler), ({"in": [data["x"]]}, data["y"]), 3)
    np.testing.assert_allclose(got.params["w"], want.params["w"], rtol=1e-5)
    assert_same_bits(got.sampler.buffer.count, want.sampler.buffer.count)


# --- losses that are not finite


def damaged_loss(params, model_state, batch, key):
    """Model state follows the inputs; the loss is what `batch["damage"]` adds to it."""
    losses, _ = plain_loss(params, model_state, batch, key)
    moved = {"mean": 0.9 * model_state["mean"] + 0.1 * jnp.mean(losses + batch["damage"])}
    return losses + batch["damage"], moved


def with_damage(value, ids):
    damage = np.zeros(N, np.float32)
    damage[ids] = value
    return regression(outlier=False) | {"damage": jnp.asarray(damage)}


@pytest.fixture(scope="module")
def damaged():
    sampler = recipes.learned_loss(
        batch_size=N, network=NETWORK, optimizer=optax.adam(0.01), history=3, initial_loss=1.0
    )
    return sampler, make_train_step(damaged_loss, optax.adam(0.1), sampler)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_changes_nothing_but_the_counters(damaged, bad):
    sampler, step = damaged
    state = start(sampler, tx=optax.adam(0.1), model_state={"mean": jnp.ones(())})
    state, _ = run(step, state, with_damage(0, []), 2)
    before = copy(state)
    draw, _ = jax.jit(sampler.sample)(step_keys(state)[1], state.sampler)
    ids = np.asarray(draw.ids)
    broken = [ids[0], ids[-1]]
    state, metrics = step(state, with_damage(bad, broken))
    kept = [(s.params, s.model_state, s.opt_state) for s in (before, state)]
    assert_same_bits(*kept)
    assert float(metrics["skipped"]) == 1
    assert int(metrics["nonfinite"]) == np.sum(np.isin(ids, broken))
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert int(state.step) == int(state.sampler.step) == 3
    seen = np.isin(np.arange(N), ids) & ~np.isin(np.arange(N), broken)
    np.testing.assert_array_equal(state.sampler.buffer.count - before.sampler.buffer.count, seen)
    now, then = (buffer.read(s.sampler.buffer, jnp.arange(N))[0] for s in (state, before))
    same_rows = np.all(now == then, axis=1)
    np.testing.assert_array_equal(same_rows, ~seen)
    assert_finite(state.sampler)

    state, metrics = run(step, state, with_damage(0, []), 3)
    assert [m["skipped"] for m in metrics] == [m["nonfinite"] for m in metrics] == [0, 0, 0]
    assert_finite((state.params, state.opt_state, state.model_state, state.sampler))
    assert not np.allclose(state.params["w"], before.params["w"])
    assert not np.allclose(state.model_state["mean"], before.model_state["mean"])


def rough_loss(params, model_state, batch, key):
    """The damaged loss, of a slope that is not finite where `batch["edge"]` is zero."""
    losses, moved = damaged_loss(params, model_state, batch, key)
    return losses + jnp.sqrt(jnp.abs(batch["edge"] * params["w"][0])), moved


def rough_steps():
    """What is trained, before and after steps of damage or edges, and which were skipped."""
    sampler, tx = recipes.uniform(batch_size=b), optax.adam(0.1)
    step = make_train_step(rough_loss, tx, sampler)
    state = start(sampler, {"w": jnp.ones(3)}, tx=tx, model_state={"mean": jnp.ones(())})

    def parts():
        return jax.tree.map(np.array, (state.params, state.model_state, state.opt_state))

    trained, skipped = [parts()], []
    for damage, edge in ((0, 1), (np.nan, 1), (0, 0), (np.inf, 1), (0, 1)):
        edges = {"edge": jnp.full(N, edge, jnp.float32)}
        state, metrics = step(state, with_damage(damage, np.arange(N)) | edges)
        trained.append(parts())
        skipped.append(float(metrics["skipped"]))
    return trained, skipped


@pytest.mark.slow
def test_an_accelerator_takes_the_steps_that_a_cpu_takes_and_skips_the_same():
    trained, skipped = rough_steps()
    with accelerator():
        elsewhere, also_skipped = rough_steps()
    assert skipped == also_skipped == [0, 1, 1, 1, 0]
    for before, after, skip in zip(elsewhere, elsewhere[1:], skipped, strict=False):
        if skip:
            assert_same_bits(before, after)
        else:
            assert np.all(before[0]["w"] != after[0]["w"])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), elsewhere, trained
    )


def test_a_gradient_that_is_not_finite_is_skipped_though_its_losses_are():
    def root_loss(params, model_state, batch, key):
        return jnp.sqrt(jnp.abs(batch["x"] @ params["w"])), model_state  # infinite slope at zero

    sampler = recipes.last_loss(batch_size=b)
    state, metrics = make_train_step(root_loss, SGD, sampler)(start(sampler), regression())
    np.testing.assert_array_equal(state.params["w"], np.zeros(3))
    assert float(metrics["skipped"]) == 1 and int(metrics["nonfinite"]) == 0
    assert int(jnp.sum(state.sampler.buffer.count)) > 0


def test_bad_scores_of_the_pool_are_counted_in_the_metrics():
    def score(params, batch):
        return jnp.where(batch["y"] > jnp.sort(batch["y"])[-3], jnp.nan, 1.0)

    # Bad scores are two of the pool; they are not drawn, so training goes on.
    sampler = recipes.biased_loss(batch_size=b, loss_fn=score, smoothing=0.0)
    state, metrics = make_train_step(plain_loss, SGD, sampler)(start(sampler), regression())
    assert int(metrics["nonfinite"]) == 2 and float(metrics["skipped"]) == 0
    assert np.any(state.params["w"] != 0)


# --- the weights that the gradient uses, and what is drawn

PLAIN_SGD = optax.sgd(RATE)


def unequal(k=0.5, **arguments):
    """Scores by the model's loss, smoothed: weights of all sizes, and duplicates."""
    scorer = scorers.loss(lambda params, batch: plain_loss(params, None, batch, None)[0])
    return isjax.importance_sampler(scorer, isjax.smooth(0.2), batch_size=b, k=k, **arguments)


def by_hand(state, data, draw, weigh):
    """One step of SGD in float64, given what was drawn: params, losses and weights."""
    x, y = (np.asarray(data[name], float)[np.asarray(draw.ids)] for name in ("x", "y"))
    w = np.asarray(state.params["w"], float)
    error = x @ w - y
    weights = weigh(draw, 0.5 * error**2)
    return w - RATE * (weights * error) @ x / b, 0.5 * error**2, weights


def adjusted_by_hand(draw, losses):
    """(1 / (B q))^0.5, rescaled to the mean of the unbiased ones; see isjax.weights.adjusted."""
    index, p = np.asarray(draw.index), np.asarray(draw.draw_probs, float)
    ratio = losses / np.asarray(draw.scores, float)
    once = np.array([1 / np.sum(index == i) for i in index])
    q = p * ratio / (1 - np.sum(once * p) + np.sum(once * p * ratio))
    unbiased = 1 / (B * q)
    return np.sqrt(unbiased) * np.sum(unbiased * losses) / np.sum(np.sqrt(unbiased) * losses)


def correcting_by_hand(draw, losses):
    ratio = np.clip(np.asarray(draw.scores, float) / losses, 0, 2)
    return (B * np.asarray(draw.draw_probs, float)) ** -0.5 * ratio


STALE = jnp.float32([0.1, 0.4, 0.2, 3.0, 1.0, 0.3, 2.0, 0.6, 0.8, 0.5])


def stale(k):
    """Scores that are not the losses, so that policies have something to correct."""
    return isjax.importance_sampler(scorers.given(STALE), isjax.smooth(0.2), batch_size=b, k=k)


WEIGHED = {
    "k = 1": (stale(1.0), lambda draw, losses: 1 / (B * np.asarray(draw.draw_probs, float))),
    "adjusted": (isjax.reweight(stale(0.5), isjax.weights.adjusted()), adjusted_by_hand),
    "correcting": (isjax.reweight(stale(0.5), isjax.weights.correcting()), correcting_by_hand),
    "none": (isjax.reweight(stale(1.0), isjax.weights.none()), lambda draw, losses: np.ones(b)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHED)
def test_the_gradient_uses_the_weights_that_the_sampler_says(name):
    sampler, weigh = WEIGHED[name]
    data, state = regression(), start(sampler, {"w": jnp.float32([0.3, -0.2, 0.5])}, PLAIN_SGD)
    step = make_train_step(plain_loss, PLAIN_SGD, sampler, pool_size=B, with_draw=True)
    sample = jax.jit(sampler.sample)
    for _ in range(3):
        before = copy(state)
        pool_key, draw_key, _ = step_keys(state)
        want, _ = sample(draw_key, state.sampler, isjax.presample(pool_key, N, B))
        state, metrics = step(state, data)
        draw = metrics.pop("draw")
        params, losses, weights = by_hand(before, data, draw, weigh)
        np.testing.assert_allclose(draw.weights, weights, rtol=1e-4)
        np.testing.assert_allclose(state.params["w"], params, rtol=1e-4, atol=1e-6)
        assert float(metrics["max_weight"]) == pytest.approx(weights.max(), rel=1e-4)
        assert float(metrics["batch_loss"]) == pytest.approx(losses.mean(), rel=1e-4)
        # All else is as drawn.
        jax.tree.map(
            lambda a, c: np.testing.assert_allclose(a, c, rtol=1e-5),
            draw._replace(weights=0),
            want._replace(weights=0),
        )
        # Other weights would have led elsewhere.
        for other in {"none", "k = 1"} - {name}:
            elsewhere, _, _ = by_hand(before, data, draw, WEIGHED[other][1])
            assert np.max(np.abs(elsewhere - params)) > 1e-3
    assert step._cache_size() == 1


@pytest.mark.slow
def test_with_draw_adds_what_was_drawn_and_changes_nothing():
    sampler, data = unequal(), regression()
    runs = {}
    for with_draw in (False, True):
        step = make_train_step(plain_loss, SGD, sampler, pool_size=B, with_draw=with_draw)
        runs[with_draw] = run(step, start(sampler), data, 4)
    assert_same_bits(runs[True][0], runs[False][0])
    for with_it, without in zip(runs[True][1], runs[False][1], strict=True):
        assert not {"draw", "losses"} & without.keys()
        draw, losses = with_it.pop("draw"), with_it.pop("losses")
        assert_same_bits(with_it, without)
        assert losses.shape == (b,) and np.mean(losses) == pytest.approx(without["batch_loss"])
        assert isinstance(draw, isjax.Draw) and draw.ids.shape == draw.weights.shape == (b,)
        assert float(with_it["max_weight"]) == np.max(draw.weights)
        assert float(with_it["unique"]) == pytest.approx(len(set(draw.ids.tolist())) / b)


@pytest.mark.slow
def test_the_gate_is_asked_about_the_draw_just_made():
    """Closed, the policy inside is not used; from the second step on it is."""
    inside = isjax.reweight(stale(0.5), isjax.weights.correcting())
    sampler = isjax.gate(inside, isjax.conditions.after(1))
    state, data = start(sampler, tx=PLAIN_SGD), regression()
    step = make_train_step(plain_loss, PLAIN_SGD, sampler, pool_size=B, with_draw=True)
    for weigh in (lambda draw, losses: np.ones(b), correcting_by_hand):
        before = copy(state)
        state, metrics = step(state, data)
        params, _, weights = by_hand(before, data, metrics["draw"], weigh)
        np.testing.assert_allclose(metrics["draw"].weights, weights, rtol=1e-4)
        np.testing.assert_allclose(state.params["w"], params, rtol=1e-4, atol=1e-6)
    assert np.ptp(weights) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "scored"),
    [
        (recipes.uniform(batch_size=b), 0),
        (unequal(), 1),
        (isjax.gate(unequal(), isjax.conditions.after(2)), 0),
        (isjax.gate(unequal(), isjax.conditions.until(2)), 1),
    ],
    ids=["uniform", "the model scores", "closed gate", "open gate"],
)
def test_examples_are_counted_scoring_included(sampler, scored):
    step = make_train_step(plain_loss, SGD, sampler, pool_size=B)
    _, metrics = step(start(sampler), regression())
    assert int(metrics["examples_forward"]) == b + scored * B
    assert int(metrics["examples_backward"]) == b


# --- a pool of the sampler's own


@pytest.mark.parametrize("pool_size", [1, B, N])
def test_a_sampler_with_a_pool_of_its_own_takes_no_other(pool_size):
    sampler = isjax.epochs(recipes.last_loss(batch_size=b), b)
    with pytest.raises(ValueError, match=rf"pool_size is {pool_size}.*leave it out"):
        make_train_step(plain_loss, SGD, sampler, pool_size=pool_size)


def test_epochs_train_on_each_example_once_and_their_model_scores_the_pool_alone():
    sampler = isjax.epochs(unequal(resample=resampling.without_replacement), b)
    step = make_train_step(plain_loss, SGD, sampler, with_draw=True)
    state, data, ids = start(sampler, {"w": jnp.ones(3)}), regression(), []
    for _ in range(3 * N // b):
        losses = np.asarray(plain_loss(state.params, None, data, None)[0])
        state, metrics = step(state, data)
        draw = metrics["draw"]
        np.testing.assert_allclose(draw.scores, losses[draw.ids], rtol=1e-4)
        assert int(draw.pool_size) == int(draw.info.passes) == b
        ids.append(np.asarray(draw.ids))
    for epoch in np.reshape(ids, (3, N)):
        assert sorted(epoch.tolist()) == list(range(N))
    assert step._cache_size() == 1


@pytest.mark.parametrize("scorer", [scorers.uniform(), scorers.last_loss()])
def test_epochs_of_another_number_of_examples_are_an_error(scorer):
    sampler = isjax.epochs(isjax.importance_sampler(scorer, batch_size=2), 4)
    step = make_train_step(plain_loss, SGD, sampler)
    with pytest.raises(ValueError, match=f"{N + 2}"):
        step(start(sampler, size=N + 2), regression())


# --- errors come before any step


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.ones((9, 3)), "y": np.ones(10)}, r"\['x'\].*\(9, 3\).*\['y'\].*\(10,\)"),
        ({"x": np.ones((0, 3)), "y": np.ones(0)}, r"non-empty leading axis.*\(0, 3\)"),
        ({"x": np.ones((9, 3)), "y": np.float32(1)}, r"\['y'\].*\(\)"),
        ({}, "no arrays"),
    ],
    ids=["ragged", "empty", "scalar leaf", "nothing"],
)
def test_data_that_are_no_examples_are_an_error(trainer, data, message):
    sampler, step = trainer
    state = start(sampler)
    with pytest.raises(ValueError, match=message):
        step(state, jax.tree.map(jnp.asarray, data))
    step(state, regression())  # the state was not donated to the failed call


@pytest.mark.parametrize(
    "reduce",
    [jnp.mean, lambda losses: losses[:, None], lambda losses: losses[:-1]],
    ids=["mean", "column", "too few"],
)
def test_a_loss_that_is_not_one_per_example_is_an_error(reduce):
    sampler = recipes.last_loss(batch_size=b)
    step = make_train_step(lambda *args: (reduce(plain_loss(*args)[0]), args[1]), SGD, sampler)
    with pytest.raises(ValueError, match=r"one loss per example, shape \(5,\)"):
        step(start(sampler), regression())


@pytest.mark.parametrize(
    ("pool_size", "message"),
    [
        (0, "pool of 0"),
        (N + 1, "pool of 11 cannot.*between 1 and 10"),
        (b - 1, "pool of 4.*enlarge"),
    ],
    ids=["empty", "larger than the data", "smaller than the batch"],
)
def test_a_pool_that_does_not_fit_is_an_error(pool_size, message):
    sampler = recipes.last_loss(batch_size=b)
    step = make_train_step(plain_loss, SGD, sampler, pool_size=pool_size)
    with pytest.raises(ValueError, match=message):
        step(start(sampler), regression())


@pytest.mark.parametrize("size", [N - 3, N + 3])
def test_a_sampler_made_for_another_number_of_examples_is_an_error(trainer, size):
    # Silently, ids past the end would be clamped and their losses dropped.
    sampler, step = trainer
    with pytest.raises(ValueError, match=rf"{size}.*by their ids: for a stream.*biased_loss"):
        step(start(sampler, size=size), regression())


# --- metrics

KEYS = {
    "loss",
    "batch_loss",
    "ess",
    "max_weight",
    "unique",
    "score_correlation",
    "score_error",
    "nonfinite",
    "negative",
    "invalid_ids",
    "skipped",
    "examples_forward",
    "examples_backward",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "more"),
    [
        (recipes.uniform(batch_size=b), set()),
        (recipes.last_loss(batch_size=b), {"last_loss_error"}),
        (isjax.gate(recipes.last_loss(batch_size=b), 1.5), {"last_loss_error"}),
        (isjax.epochs(recipes.last_loss(batch_size=b), b), {"last_loss_error"}),
        (recipes.default(batch_size=b), {"last_loss_error"}),
        (recipes.p_sgd(batch_size=b), set()),
        (isjax.gate(recipes.loss_change(batch_size=b), 1.5), set()),
    ],
    ids=["no buffer", "buffer", "gate", "epochs", "tree", "mean errors", "gate of averages"],
)
def test_metrics_are_scalars_by_these_names(sampler, more):
    step = make_train_step(noisy_loss, SGD, sampler)
    _, metrics = jax.eval_shape(step, start(sampler), regression())
    assert set(metrics) == KEYS | more
    assert all(value.shape == () for value in metrics.values())


def test_last_loss_error_is_against_the_loss_before_write_back(trainer):
    sampler, step = trainer
    state, data, sample = start(sampler), regression(), jax.jit(sampler.sample)
    for _ in range(4):
        before = np.array(buffer.last_loss(state.sampler.buffer, jnp.arange(N)))
        pool_key, draw_key, loss_key = step_keys(state)
        ids = isjax.presample(pool_key, N, B)
        draw, _ = sample(draw_key, state.sampler, ids)
        batch = jax.tree.map(lambda x: x[draw.ids], data)  # noqa: B023
        losses, _ = noisy_loss(state.params, None, batch, loss_key)
        want = np.mean(np.abs(before[draw.ids] - losses))
        state, metrics = step(state, data)
        assert float(metrics["last_loss_error"]) == pytest.approx(want, rel=1e-4)


def test_loss_metric_estimates_the_pools_mean_loss_at_any_k():
    # Without replacement and with b = B every example is seen: the estimate is exact.
    sampler = isjax.importance_sampler(
        scorers.last_loss(), batch_size=N, k=-1.0, resample=resampling.without_replacement
    )
    state, data = start(sampler, {"w": jnp.ones(3)}), regression()
    want = jnp.mean(plain_loss(state.params, None, data, None)[0])
    _, metrics = make_train_step(plain_loss, SGD, sampler)(state, data)
    assert float(metrics["loss"]) == pytest.approx(float(want), rel=1e-5)


def test_state_has_the_parts_of_the_design():
    sampler = recipes.last_loss(batch_size=b)
    state = start(sampler, model_state={"s": np.ones(2)})
    assert isinstance(state, TrainState)
    assert state.step.dtype == jnp.int32 and state.step.shape == ()
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_a_record_goes_through_the_step_as_it_is(trainer):
    """It is the caller's to fill, see `isjax.experiment.draw_statistics`."""
    sampler, step = trainer
    record = {"count": jnp.arange(3), "other": (jnp.ones(2),)}
    state = start(sampler)
    assert state.record is None and step(copy(state), regression())[0].record is None
    kept = step(state._replace(record=copy(record)), regression())[0]
    assert_same_bits(kept.record, record)


# Bad examples and bad states


@pytest.mark.slow
def test_bad_examples_are_not_sought():
    """Eight of 400 are NaN for good: sampling skips no more steps than uniform draws do."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)).astype(np.float32)
    data = {"x": x, "label": (x[:, 0] > 0).astype(np.int32)}
    data["x"][:8] = np.nan

    def loss_fn(params, model_state, batch, key):
        logits = batch["x"] @ params
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), model_state

    def skipped(sampler):
        tx = optax.sgd(0.5)
        step = make_train_step(loss_fn, tx, sampler, pool_size=128)
        state = init_train_state(jax.random.key(0), jnp.zeros((4, 2)), tx, sampler, 400)
        total = 0
        for _ in range(600):
            state, metrics = step(state, data)
            total += int(metrics["skipped"])
        return total

    uniform = skipped(recipes.uniform(batch_size=8))
    assert 0 < skipped(recipes.last_loss(batch_size=8, smoothing=0.1)) <= uniform


def test_a_model_state_that_is_not_finite_is_not_taken():
    def loss_fn(params, model_state, batch, key):
        return jnp.square(params * batch), model_state / 0

    tx, sampler = optax.sgd(0.1), recipes.uniform(batch_size=2)
    state = init_train_state(jax.random.key(0), jnp.ones(()), tx, sampler, 4, jnp.ones(()))
    state, metrics = make_train_step(loss_fn, tx, sampler, pool_size=4)(state, jnp.ones(4))
    assert metrics["skipped"] and state.model_state == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            [0.5] * 5_000,
            r"an example each; got \[0\]: \(\); make an array of a list by np.asarray",
        ),
        ({"x": [[1.0, 2.0]] * 5_000}, r"got \['x'\]\[0\]\[0\]: \(\); make an array of a list"),
        ({"label": np.array(["cat", "dog"])}, r"\['label'\] holds strings, .*np\.unique"),
        ({"label": ["cat", "dog"]}, r"\['label'\]\[0\] holds strings"),
        ({"x": np.array([None, 3])}, r"\['x'\] holds values of type object"),
    ],
    ids=["list", "list of lists", "strings", "list of strings", "objects"],
)
def test_data_that_are_no_arrays_of_numbers_are_refused_in_few_words(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        num_examples(data)
    assert len(str(caught.value)) < 200


def test_a_loss_function_of_two_arguments_is_told_how_to_be_wrapped():
    sampler = recipes.uniform(batch_size=2)

    def loss_fn(params, batch):
        return params * batch

    message = r"loss_fn takes \(params, batch\), but is called with \(params, model_state, batch"
    for make in (make_train_step, make_loaded_step):
        with pytest.raises(TypeError, match=message + r", key\); wrap a function of"):
            make(loss_fn, optax.sgd(0.1), sampler)
    with pytest.raises(TypeError, match=message + r"\); take the three"):
        make_eval_step(loss_fn)
    wrapped = lambda params, model_state, batch, key: (loss_fn(params, batch), model_state)  # noqa: E731
    make_train_step(wrapped, optax.sgd(0.1), sampler)  # as the message says


def test_model_state_that_differs_is_named_by_its_first_array_that_does():
    old = {f"layer_{i}": jnp.zeros(3) for i in range(200)}

    def loss_fn(params, model_state, batch, key):
        return params * batch, model_state | {"layer_7": jnp.zeros(4)}

    tx, sampler = optax.sgd(0.1), recipes.uniform(batch_size=2)
    state = init_train_state(jax.random.key(0), jnp.ones(()), tx, sampler, 4, old)
    message = r"returned model_state\['layer_7'\] float32\[4\], but .* holds float32\[3\]; return"
    with pytest.raises(ValueError, match=message) as caught:
        make_train_step(loss_fn, tx, sampler)(state, jnp.ones(4))
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda p, s, batch, key: p * batch, r"must return the pair \(losses, aux\)"),
        (lambda p, s, batch, key: (p * batch, {"mean": p}), "the train state holds None; return"),
        (lambda p, s, batch, key: (p * batch, jnp.float32(1)), "the train state holds None"),
    ],
)
def test_a_loss_function_that_returns_something_else_is_told_what_to_return(loss_fn, message):
    tx, sampler = optax.sgd(0.1), recipes.uniform(batch_size=2)
    state = init_train_state(jax.random.key(0), jnp.ones(()), tx, sampler, 4)
    with pytest.raises(ValueError, match=message):
        make_train_step(loss_fn, tx, sampler, pool_size=4)(state, jnp.ones(4))


def test_an_optimiser_that_keeps_the_params_can_be_donated():
    def loss_fn(params, model_state, batch, key):
        return jnp.square(params["w"] - batch), model_state

    tx, sampler = optax.contrib.prodigy(0.1), recipes.uniform(batch_size=2)
    state = init_train_state(jax.random.key(0), {"w": jnp.ones(())}, tx, sampler, 4)
    step = make_train_step(loss_fn, tx, sampler, pool_size=4)
    for _ in range(2):
        state, metrics = step(state, jnp.zeros(4))
    assert jnp.isfinite(metrics["loss"])


def quadratic(params, model_state, batch, key):
    return jnp.square(params - batch), model_state


@pytest.mark.slow
@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=2)),
        optax.polyak_sgd(),
    ],
    ids=["plateau", "polyak"],
)
def test_an_optimiser_that_asks_for_the_loss_gets_the_unbiased_one(tx):
    sampler, data = recipes.last_loss(batch_size=2, k=0.0), jnp.array([0.0, 1.0, 2.0, 3.0])
    state = init_train_state(jax.random.key(0), jnp.ones(()), tx, sampler, 4)
    step = make_train_step(quadratic, tx, sampler, with_draw=True)
    params, opt_state = jnp.ones(()), tx.init(jnp.ones(()))
    for _ in range(3):
        state, metrics = step(state, data)
        draw = metrics["draw"]
        batch = data[draw.ids]
        loss = jnp.mean(jnp.square(params - batch) / (4 * draw.draw_probs))
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        grads = jax.grad(lambda p, w, x: jnp.mean(w * jnp.square(p - x)))(
            params, draw.weights, batch
        )
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(state.params, params, rtol=1e-4)


def test_an_optimiser_that_asks_for_more_than_the_loss_is_refused():
    tx, sampler = optax.lbfgs(), recipes.uniform(batch_size=2)
    state = init_train_state(jax.random.key(0), jnp.ones(()), tx, sampler, 4)
    with pytest.raises(TypeError, match=r"asks for more .*value_fn.*another optimiser"):
        make_train_step(quadratic, tx, sampler)(state, jnp.ones(4))


X64 = """
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # quick to compile
import jax.numpy as jnp, optax, isjax
from isjax import recipes, training

def losses(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(batch["x"] @ params, batch["label"])

data = {"x": jnp.ones((8, 2)), "label": jnp.arange(8) % 2}
for sampler in (
    recipes.uniform(batch_size=2),
    recipes.last_loss(batch_size=2),
    isjax.gate(recipes.biased_loss(batch_size=2, loss_fn=losses), 1.5),
    recipes.learned_loss(batch_size=2, num_classes=2),
    isjax.epochs(
        isjax.gate(
            isjax.reweight(
                isjax.importance_sampler(
                    isjax.scorers.difficulty(),
                    isjax.chain(isjax.transforms.percentile(), isjax.smooth_by_mean()),
                    batch_size=2,
                    rescale=isjax.weights.divide_by_largest,
                ),
                isjax.weights.adjusted(),
            ),
            isjax.conditions.mean_loss(9.0),
        ),
        pool_size=4,
    ),
):
    tx = optax.sgd(0.1)
    begin = lambda: isjax.init_train_state(jax.random.key(0), jnp.zeros((2, 2)), tx, sampler, 8)
    state = jax.jit(begin)()
    step = isjax.make_train_step(
        lambda p, s, b, k: (losses(p, b), s),
        tx,
        sampler,
        pool_size=None if sampler.own_pool else 4,
    )
    for _ in range(3):
        state, metrics = step(state, data)
    assert state.params.dtype == jnp.float64 and jnp.isfinite(metrics["loss"])
    assert step._cache_size() == 1
print("fine")
"""


@pytest.mark.slow
def test_double_precision_works():
    done = subprocess.run([sys.executable, "-c", X64], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


def test_a_sampler_of_ones_own_need_not_keep_losses():
    inner = recipes.uniform(batch_size=b)
    sampler = isjax.base.Sampler(inner.init, inner.sample, inner.update, b)
    _, metrics = make_train_step(noisy_loss, SGD, sampler)(start(sampler), regression())
    assert set(metrics) == KEYS


def test_epochs_of_other_data_are_refused():
    sampler = recipes.reshuffled(batch_size=b)
    step = make_train_step(noisy_loss, SGD, sampler)
    with pytest.raises(
        ValueError, match=f"initialised for {N - 2} examples in {N - 2} rows, but the data set"
    ):
        step(start(sampler, size=N - 2), regression())


def test_strata_of_unequal_length_say_how_to_pad():
    sampler = isjax.samplers.stratified(recipes.default(batch_size=1), 4)
    step = make_train_step(noisy_loss, SGD, sampler)
    with pytest.raises(ValueError, match="10 examples in 12 rows, but the data set has 10; pad it"):
        step(start(sampler), regression())
