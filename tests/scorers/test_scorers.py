"""Scorers against NumPy, closed forms, and the authors' code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import isjax
from isjax import buffer, resampling, scorers
from isjax.base import Rows
from isjax.samplers import make_draw

KEY = jax.random.key(0)
NAN, INF = np.nan, np.inf


def rows_of(history, count=None, batch=None, params=None, ids=None, age=None):
    history = jnp.asarray(history, jnp.float32)
    count = jnp.ones(len(history), jnp.int32) if count is None else jnp.asarray(count, jnp.int32)
    return Rows(history, count, batch, params, ids, age)


def score(scorer, rows):
    return np.asarray(jax.jit(scorer.score)(jax.jit(scorer.init)(KEY), rows))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# --- scores given beforehand, and scores by the main model


def test_uniform_scores_every_row_alike_and_needs_no_buffer():
    rows = rows_of(np.zeros((5, 0)), count=[0, 1, 2, 3, 4])
    np.testing.assert_array_equal(score(scorers.uniform(), rows), np.ones(5, np.float32))
    assert scorers.uniform().history == 0


def test_last_loss_scores_the_newest_loss_and_negative_ones_as_zero():
    out = score(scorers.last_loss(), rows_of([[3.0], [-2.0], [0.5]], count=[0, 2, 1]))
    np.testing.assert_array_equal(out, np.float32([3.0, 0.0, 0.5]))
    assert scorers.last_loss().history == 1


def test_what_was_never_seen_may_come_first():
    history, count = [[3.0], [1.0], [0.5], [-2.0]], [1, 0, 2, 0]
    rows = rows_of(history, count)
    out = score(scorers.last_loss(unseen_first=True), rows)
    np.testing.assert_array_equal(out, [3.0, 3.0, 0.5, 3.0])
    np.testing.assert_array_equal(score(scorers.last_loss(), rows), [3.0, 1.0, 0.5, 0.0])
    # An initial loss above all that was seen is the highest itself.
    out = score(scorers.last_loss(unseen_first=True), rows_of([[1.0], [7.0], [7.0]], [1, 0, 0]))
    np.testing.assert_array_equal(out, [1.0, 7.0, 7.0])


def test_given_scores_are_looked_up_by_id():
    rows = rows_of(np.zeros((4, 0)), ids=jnp.asarray([3, 0, 3, 1]))
    out = score(scorers.given(np.array([0.5, 2.0, 9.0, -1.0])), rows)
    np.testing.assert_array_equal(out, np.float32([-1.0, 0.5, -1.0, 2.0]))


@pytest.mark.parametrize("num_examples", [4, 9])
def test_an_id_beyond_what_is_given_is_not_drawn_and_counted(num_examples):
    known = np.array([0.5, 2.0, 1.0, 0.5])
    sampler = isjax.importance_sampler(scorers.given(known), batch_size=40)
    ids = jnp.concatenate([jnp.arange(num_examples), jnp.arange(40) % 4])
    draw, _ = jax.jit(sampler.sample)(KEY, sampler.init(KEY, num_examples), ids)
    assert int(draw.info.nonfinite) == num_examples - 4
    assert set(np.asarray(draw.ids).tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(draw.draw_probs, known[draw.ids] / 44, rtol=1e-5)


def test_numbers_known_by_example_need_ids():
    for scorer in (scorers.given(np.ones(3)), scorers.reducible_loss(linear_loss, np.ones(3))):
        with pytest.raises(ValueError, match=r"needs rows\.ids"):
            scorer.score(scorer.init(KEY), rows_of(np.zeros((2, 0))))


def linear_loss(params, batch):
    return batch["x"] @ params - batch["y"]


def test_loss_is_the_models_loss_with_negative_ones_as_zero():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(20, 3)), rng.normal(size=20), rng.normal(size=3)
    want = np.maximum(x @ w - y, 0.0)
    assert 0 < np.sum(want == 0) < 20
    batch = {"x": jnp.float32(x), "y": jnp.float32(y)}
    out = score(scorers.loss(linear_loss), rows_of(np.zeros((20, 0)), None, batch, jnp.float32(w)))
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)
    assert out.dtype == np.float32


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
def test_grad_norm_bound_is_the_norm_of_the_logits_gradient(scale):
    rng = np.random.default_rng(1)
    logits, label = scale * rng.normal(size=(30, 7)), rng.integers(0, 7, 30)
    logits = logits.astype(np.float32).astype(np.float64)
    want = np.linalg.norm(softmax(logits) - np.eye(7)[label], axis=1)
    batch = {"z": jnp.float32(logits), "label": jnp.asarray(label)}
    scorer = scorers.grad_norm_bound(lambda params, batch: batch["z"] * params)
    out = score(scorer, rows_of(np.zeros((30, 0)), None, batch, jnp.float32(1)))
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("logits", "want"),
    [([0.0] * 5, np.sqrt(1 - 1 / 5)), ([50.0, 0, 0, 0, 0], 0.0), ([0.0, 50, 0, 0, 0], np.sqrt(2))],
    ids=["ignorant", "sure and right", "sure and wrong"],
)
def test_grad_norm_bound_in_closed_form(logits, want):
    scorer = scorers.grad_norm_bound(lambda p, b: b[0], label_fn=lambda b: b[1])
    batch = (jnp.asarray([logits]), jnp.zeros(1, jnp.int32))
    out = score(scorer, rows_of(np.zeros((1, 0)), None, batch, ()))
    np.testing.assert_allclose(out, [want], atol=1e-6)


def two_layers(params, batch):
    """Squared errors of a small network."""
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"][None, :])
    return jnp.square(hidden @ params["v"] - batch["y"])


@pytest.mark.parametrize("microbatch", [1, 4, 32])
def test_grad_norm_is_the_norm_of_each_examples_gradient(microbatch):
    rng = np.random.default_rng(2)
    shapes = {"w": (3, 5), "b": (5,), "v": (5,)}
    params = {name: jnp.float32(rng.normal(size=shape)) for name, shape in shapes.items()}
    batch = {"x": jnp.float32(rng.normal(size=(10, 3))), "y": jnp.float32(rng.normal(size=10))}
    one = jax.jit(jax.grad(lambda params, single: two_layers(params, single)[0]))
    want = []
    for i in range(10):
        grads = one(params, jax.tree.map(lambda x: x[i : i + 1], batch))  # noqa: B023
        flat = np.concatenate([np.ravel(g).astype(np.float64) for g in jax.tree.leaves(grads)])
        want.append(np.sqrt(np.sum(flat**2)))
    scorer = scorers.grad_norm(two_layers, microbatch)
    out = score(scorer, rows_of(np.zeros((10, 0)), None, batch, params))
    np.testing.assert_allclose(out, want, rtol=1e-4)


def test_grad_norm_of_a_model_with_state_is_by_its_parameters_alone():
    rng = np.random.default_rng(5)
    x, w = jnp.float32(rng.normal(size=(6, 3))), jnp.float32(rng.normal(size=3))

    def loss_fn(variables, batch):
        params, model_state = variables
        return batch @ params * model_state["scale"] * model_state["count"]

    rows = rows_of(np.zeros((6, 0)), None, x, (w, {"scale": jnp.float32(2), "count": 3}))
    out = score(scorers.grad_norm(loss_fn, stateful=True), rows)
    np.testing.assert_allclose(out, 6 * np.linalg.norm(x, axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    "scorer", [scorers.given, lambda known: scorers.reducible_loss(None, known)]
)
def test_state_is_a_copy_of_what_is_given_and_may_be_donated(scorer):
    known = jnp.ones(8)
    scorer = scorer(known)
    jax.jit(lambda x: 2 * x, donate_argnums=0)(scorer.init(KEY)).block_until_ready()
    np.testing.assert_array_equal(known, np.ones(8))
    np.testing.assert_array_equal(scorer.init(KEY), np.ones(8))


@pytest.mark.parametrize("by_function", [False, True])
def test_reducible_loss_is_what_the_model_loses_beyond_the_reference(by_function):
    rng = np.random.default_rng(4)
    x, y, w = rng.normal(size=(8, 3)), rng.normal(size=8), rng.normal(size=3)
    known, ids = rng.normal(size=20), rng.permutation(20)[:8]
    batch = {"x": jnp.float32(x), "y": jnp.float32(y), "known": jnp.float32(known[ids])}
    reference = (lambda batch: batch["known"]) if by_function else known
    scorer = scorers.reducible_loss(linear_loss, reference)
    rows = rows_of(np.zeros((8, 0)), None, batch, jnp.float32(w), jnp.asarray(ids))
    want = x @ w - y - known[ids]
    assert 0 < np.sum(want < 0) < 8
    np.testing.assert_allclose(score(scorer, rows), want, rtol=1e-4, atol=1e-5)


def test_an_example_without_a_reference_is_not_drawn_and_counted():
    scorer = scorers.reducible_loss(lambda params, batch: batch + params, np.zeros(3))
    sampler = isjax.importance_sampler(scorer, batch_size=8)
    ids, batch = jnp.asarray([0, 7, 2, 3, 1, 1, 1, 2]), jnp.ones(8)
    draw, _ = jax.jit(sampler.sample)(KEY, sampler.init(KEY, 10), ids, batch, jnp.float32(1))
    assert int(draw.info.nonfinite) == 2 and set(np.asarray(draw.ids).tolist()) <= {0, 1, 2}
    np.testing.assert_allclose(draw.draw_probs, 1 / 6, rtol=1e-5)


def test_each_scorer_says_what_it_reads_and_what_it_costs():
    made = {
        "cached": scorers.cached(),
        "class_gaussian": scorers.class_gaussian(3),
        "difficulty": scorers.difficulty(),
        "given": scorers.given(np.ones(3)),
        "grad_norm": scorers.grad_norm(linear_loss),
        "grad_norm_bound": scorers.grad_norm_bound(linear_loss),
        "last_loss": scorers.last_loss(),
        "learned": scorers.learned(scorers.Network(lambda key: (), lambda params, rows: 0)),
        "loss": scorers.loss(linear_loss),
        "loss_change": scorers.loss_change(),
        "reducible_loss": scorers.reducible_loss(linear_loss, np.ones(3)),
        "second_moment": scorers.second_moment(),
        "uncertainty": scorers.uncertainty(),
        "uniform": scorers.uniform(),
    }
    networks = {"Network", "coarse_features", "features_mlp", "history_lstm", "history_mlp"}
    networks |= {"Companion", "companion"}  # of tests/scorers/test_companion.py
    others = {"HistoryLSTM", "HistoryMLP", "LabelFn", "LogitsFn", "LossFn", "views"}
    combined = {"learned_sources", "mixture", "power", "product", "sources"}
    assert set(made) == set(scorers.__all__) - networks - others - combined
    history = {name: scorer.history for name, scorer in made.items() if scorer.history}
    assert history == {
        "cached": 1,
        "difficulty": 1,
        "last_loss": 1,
        "learned": 10,
        "loss_change": 2,
        "second_moment": 10,
        "uncertainty": 1,
    }
    passes = {name: scorer.passes for name, scorer in made.items() if scorer.passes}
    assert passes == {"grad_norm": 3, "grad_norm_bound": 1, "loss": 1, "reducible_loss": 1}
    assert scorers.loss(linear_loss, passes=0.25).passes == 0.25
    by_function = scorers.reducible_loss(linear_loss, linear_loss)
    assert (by_function.passes, by_function.history) == (1, 0)
    remembering = {name for name, scorer in made.items() if scorer.remember is not None}
    assert remembering == {"difficulty", "loss_change", "uncertainty"}


# --- scores by past losses, over sequences of draws and losses


def uniform_draw(ids):
    ids = jnp.asarray(ids, jnp.int32)
    ones = jnp.ones(ids.shape)
    return make_draw((), ids, ids, ones, scores=ones, pool_size=1, k=0, ess=1, mass=1)


def everything(state):
    """Rows of the whole data set, as the scorer would see them in `sample`."""
    ids = jnp.arange(buffer.size(state.buffer))
    history, count = buffer.read(state.buffer, ids)
    return Rows(history, count, None, None, ids, buffer.age(state.buffer, ids, state.step))


class CacheOfTheAuthors:
    """Scores of the whole data set by the CacheSampler of their samplers.py."""

    def __init__(self, size, staleness, cache_prob, smooth):
        self.scores, self.cache, self.size = np.ones(size), {}, size
        self.staleness, self.smooth = staleness, smooth
        self.alpha = cache_prob / (1 - cache_prob)

    def update(self, ids, losses):
        for i, loss in zip(ids, losses, strict=True):
            self.cache[i] = (self.smooth + loss, 0)
        for i, (value, age) in list(self.cache.items()):
            if age > self.staleness:
                self.scores[i] = 1
                del self.cache[i]
            else:
                self.cache[i] = (value, age + 1)
        total = sum(value for value, _ in self.cache.values())
        for i, (value, _) in self.cache.items():
            self.scores[i] = 1 + self.alpha * self.size * value / total


@pytest.mark.slow
@pytest.mark.parametrize(("staleness", "smoothing"), [(3, 0.2), (0, 1.0), (1, 0.0)])
def test_cached_draws_as_the_authors_cache_would(staleness, smoothing):
    size = 12
    theirs = CacheOfTheAuthors(size, staleness, 0.6, smoothing)
    scorer = scorers.cached(staleness, smoothing)
    sampler = isjax.importance_sampler(
        scorer, isjax.mix_uniform(0.4), batch_size=2, resample=resampling.categorical
    )
    sample, update, of_all = map(jax.jit, (sampler.sample, sampler.update, scorer.score))
    state, numbers = sampler.init(KEY, size), []
    for step in range(20):
        draw, after = sample(jax.random.key(step), state)
        p = theirs.scores / theirs.scores.sum()
        np.testing.assert_allclose(draw.draw_probs, p[draw.ids], rtol=1e-5)
        scored = np.asarray(of_all((), everything(state)))
        assert set(np.flatnonzero(scored).tolist()) == set(theirs.cache)
        losses = 0.5 + (3 * np.asarray(draw.ids) + 5 * step) % 7  # equal for duplicates
        theirs.update(np.asarray(draw.ids).tolist(), losses)
        state = update(after, draw, jnp.float32(losses))
        numbers.append(len(theirs.cache))
    assert min(numbers) <= 2 and max(numbers) > (2 if staleness else 1)


def test_cached_counts_draws_not_visits_and_not_losses_that_were_not_finite():
    scorer = scorers.cached(staleness=1, smoothing=0.5)
    sampler = isjax.importance_sampler(scorer, batch_size=2)
    update, of_all = jax.jit(sampler.update), jax.jit(scorer.score)
    state, seen = sampler.init(KEY, 4), []
    visits = [([0, 1], [2.0, 3.0]), ([0, 2], [1.0, -4.0]), ([3, 0], [NAN, NAN]), ([3, 3], [9, 9])]
    for step, (ids, losses) in enumerate(visits):
        # As `sample` does.
        state = state._replace(step=jnp.int32(step + 1))
        state = update(state, uniform_draw(ids), jnp.float32(losses))
        seen.append(np.asarray(of_all((), everything(state))).tolist())
    want = [[2.5, 3.5, 0, 0], [1.5, 3.5, 0.5, 0], [1.5, 0, 0.5, 0], [0, 0, 0, 9.5]]
    assert seen == want


def test_cached_without_ages_is_an_error():
    with pytest.raises(ValueError, match=r"rows.age"):
        scorers.cached().score((), rows_of([[1.0]]))


@functools.cache
def visited(name, number=200, size=6):
    """Scores after many visits of all examples but the last, and the losses of each example."""
    scorer = {
        "difficulty": scorers.difficulty,
        "uncertainty": scorers.uncertainty,
        "loss_change": lambda: scorers.loss_change(0.4, 0.8),
    }[name]()
    sampler = isjax.importance_sampler(scorer, batch_size=4, initial_loss=7.0)
    rng = np.random.default_rng(5)
    ids = rng.integers(0, size - 1, (number, 4))
    losses = rng.choice([0.0, 0.01, 0.5, 2.0, 9.0, 40.0, -0.5], (number, 4))
    losses = np.where(rng.uniform(size=losses.shape) < 0.1, NAN, losses)

    def visit(state, given):
        return sampler.update(state, uniform_draw(given[0]), given[1]), None

    given = jnp.asarray(ids), jnp.float32(losses)
    state, _ = jax.jit(lambda s: jax.lax.scan(visit, s, given))(sampler.init(KEY, size))
    past = [[] for _ in range(size)]
    for now, lost in zip(ids, losses, strict=True):
        for i in set(now.tolist()):
            finite = lost[(now == i) & np.isfinite(lost)]
            past[i] += [finite.mean()] if finite.size else []
    assert min(map(len, past[:-1])) > 50 and not past[-1]
    return np.asarray(jax.jit(scorer.score)((), everything(state)), np.float64), past


def mean_error(losses):
    return np.mean(1 - np.exp(-np.maximum(losses, 0)))


def test_difficulty_is_the_plain_mean_over_all_visits_and_unseen_counts_as_the_most():
    out, past = visited("difficulty")
    want = [mean_error(losses) for losses in past[:-1]]
    np.testing.assert_allclose(out, [*want, max(want)], rtol=2e-5)


def test_uncertainty_is_largest_at_the_threshold():
    out, past = visited("uncertainty")
    means = np.array([mean_error(losses) for losses in past[:-1]])
    want = means * (1 - means)
    np.testing.assert_allclose(out, [*want, want[np.argmax(means)]], rtol=2e-5)
    state = rows_of([[0.0], [0.3], [0.5], [0.9], [1.0]])
    np.testing.assert_allclose(score(scorers.uncertainty(), state), [0, 0.21, 0.25, 0.09, 0], 1e-5)


@pytest.mark.parametrize("make", [scorers.difficulty, scorers.uncertainty])
def test_where_nothing_was_seen_all_are_alike(make):
    out = score(make(), rows_of([[5.0], [5.0], [0.1]], count=[0, 0, 0]))
    assert np.ptp(out) == 0 and np.all(np.isfinite(out)) and np.all(out >= 0)


@pytest.mark.parametrize("make", [scorers.difficulty, scorers.uncertainty])
def test_the_first_visit_takes_the_place_of_the_initial_loss(make):
    history = jax.jit(make().remember)(jnp.full((3, 1), 7.0), jnp.zeros(3, jnp.int32), LOSSES)
    np.testing.assert_allclose(history[:, 0], 1 - np.exp(-np.array([0, 0.25, 3])), atol=1e-6)


LOSSES = jnp.float32([-1.0, 0.25, 3.0])


def test_loss_change_follows_its_recursion():
    out, past = visited("loss_change")
    for i, losses in enumerate(past[:-1]):
        average = losses[0]
        for loss in losses:
            change, average = loss - average, 0.8 * average + 0.2 * loss
        # The change is the sum of all changes of the loss, older ones discounted.
        steps = np.diff(losses)[::-1]
        assert change == pytest.approx(steps @ 0.8 ** np.arange(len(steps)))
        assert out[i] == pytest.approx(max(average + 0.4 * change, 0), rel=1e-4, abs=1e-5)
    assert out[-1] == 7.0
    assert len({round(value, 3) for value in out}) == 6


def test_loss_change_starts_from_the_first_loss():
    scorer = scorers.loss_change()
    first = jax.jit(scorer.remember)(jnp.full((3, 2), 7.0), jnp.zeros(3, jnp.int32), LOSSES)
    np.testing.assert_allclose(first, np.stack([LOSSES, LOSSES], axis=1), rtol=1e-6)
    second = jax.jit(scorer.remember)(first, jnp.ones(3, jnp.int32), jnp.float32([1, 1.25, 0]))
    average = np.array([-0.8, 0.35, 2.7])
    want = np.stack([average + 0.7 * np.array([2, 1, -3]), average], axis=1)
    np.testing.assert_allclose(second, want, rtol=1e-5)


def test_no_loss_change_is_negative_of_losses_that_are_not():
    rng = np.random.default_rng(0)
    for change, decay in ((0.9, 0.9), (0.3, 0.3), (0.0, 0.0)):
        remember = jax.jit(scorers.loss_change(change, decay).remember)
        history = jnp.zeros((50, 2))
        for visit in range(6):
            losses = jnp.float32(10.0 * rng.integers(0, 2, 50))
            history = remember(history, jnp.full(50, visit), losses)
            assert np.min(history) >= -1e-5


@pytest.mark.parametrize(
    "arguments", [(0.95, 0.9), (-0.1, 0.9), (0.5, 1.0), (0.0, -0.1), (NAN, 0.9), (0.5, NAN)]
)
def test_loss_change_refuses_what_could_make_scores_negative(arguments):
    with pytest.raises(ValueError, match=r"loss_change.*choose 0 <= change <= decay < 1"):
        scorers.loss_change(*arguments)


# --- by class


def gaussians(batches, classes, decay):
    """Moving averages of loss and squared loss: n losses enter as their mean, with weight n."""
    mean, square = np.full(classes, np.log(classes)), np.full(classes, np.log(classes) ** 2)
    for labels, losses in batches:
        for c in range(classes):
            own = losses[(labels == c) & np.isfinite(losses)]
            if own.size:
                kept = decay**own.size
                mean[c] = kept * mean[c] + (1 - kept) * own.mean()
                square[c] = kept * square[c] + (1 - kept) * np.mean(own**2)
    return mean, square


def of_class(scorer, batches, classes, key="label"):
    """Scores of one row per class after these batches."""
    state, update = scorer.init(KEY), jax.jit(scorer.update)
    for labels, losses in batches:
        rows = rows_of(np.zeros((len(labels), 0)), batch={key: jnp.asarray(labels)})
        state = update(state, rows, jnp.float32(losses))
    rows = rows_of(np.zeros((classes, 0)), batch={key: jnp.arange(classes)})
    return np.asarray(jax.jit(scorer.score)(state, rows), np.float64)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_class_gaussian_is_mean_and_deviation_of_the_class(decay):
    rng = np.random.default_rng(8)
    batches = []
    for _ in range(6):
        labels, losses = rng.integers(0, 4, 10), rng.exponential(size=10)
        losses[rng.integers(0, 10, 2)] = rng.choice([NAN, INF, -INF])
        batches.append((labels, losses))
    mean, square = gaussians(batches, 5, decay)  # class 4 is never seen
    want = mean + np.sqrt(np.maximum(square - mean**2, 0))
    out = of_class(scorers.class_gaussian(5, decay=decay), batches, 5)
    np.testing.assert_allclose(out[:4], want[:4], rtol=1e-4)
    # A deviation of zero is known to the root of what float32 leaves of square - mean^2.
    assert out[4] == pytest.approx(np.log(5), rel=5e-4)
    by_fn = scorers.class_gaussian(5, lambda batch: batch["class"], decay)
    np.testing.assert_array_equal(of_class(by_fn, batches, 5, "class"), out)


def test_class_gaussian_is_the_authors_where_a_batch_has_a_class_once_or_losses_alike():
    """Their PerClassGaussian takes losses one by one."""
    rng = np.random.default_rng(9)
    batches = [(rng.permutation(3), rng.exponential(size=3)) for _ in range(4)]
    batches += [(np.array([2, 0, 2, 2]), np.array([0.7, 3.0, 0.7, 0.7]))]
    mean, square = np.full(3, np.log(3)), np.full(3, np.log(3) ** 2)
    for labels, losses in batches:
        for c, loss in zip(labels, losses, strict=True):
            mean[c] = 0.9 * mean[c] + 0.1 * loss
            square[c] = 0.9 * square[c] + 0.1 * loss**2
    want = mean + np.sqrt(square - mean**2)
    np.testing.assert_allclose(of_class(scorers.class_gaussian(3), batches, 3), want, rtol=1e-4)


def test_class_gaussian_learns_within_a_sampler_and_not_from_what_is_not_finite():
    batch = {"label": jnp.asarray([0, 1, 0, 2, 1, 2, 0, 1])}
    sampler = isjax.importance_sampler(scorers.class_gaussian(3), batch_size=4)
    update = jax.jit(sampler.update)
    start = sampler.init(KEY, 8)
    drawn = uniform_draw([1, 4, 3, 0])
    given = {"label": jnp.asarray([1, 1, 2, 0])}
    state = update(start, drawn, jnp.full(4, NAN), given)
    jax.tree.map(np.testing.assert_array_equal, state.scorer, start.scorer)
    state = update(state, drawn, jnp.float32([5.0, 5.0, NAN, 0.5]), given)
    draw, _ = jax.jit(sampler.sample)(KEY, state, jnp.arange(8), batch)
    mean, square = gaussians([(np.array([1, 1, 0]), np.array([5.0, 5.0, 0.5]))], 3, 0.9)
    want = (mean + np.sqrt(np.maximum(square - mean**2, 0)))[np.asarray(batch["label"])]
    np.testing.assert_allclose(draw.scores, want[draw.ids], rtol=1e-3)
    assert float(state.scorer.mean[2]) == float(start.scorer.mean[2])


@pytest.mark.parametrize("decay", [-0.1, 1.0, NAN])
def test_class_gaussian_refuses_a_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match=rf"class_gaussian: decay is {decay}.*in \[0, 1\)"):
        scorers.class_gaussian(3, decay=decay)


# --- errors, which name their remedy

X = {"x": jnp.ones((4, 3)), "y": jnp.ones(4)}
OF_THE_MODEL = {
    "loss": scorers.loss(linear_loss),
    "grad_norm_bound": scorers.grad_norm_bound(lambda params, batch: batch["x"] @ params),
    "grad_norm": scorers.grad_norm(linear_loss),
    "reducible_loss": scorers.reducible_loss(linear_loss, np.ones(4)),
    "reducible_loss by function": scorers.reducible_loss(linear_loss, lambda batch: batch["y"]),
}


@pytest.mark.parametrize("name", OF_THE_MODEL)
@pytest.mark.parametrize(
    ("given", "remedy"),
    [({"batch": X}, "pass params="), ({"params": jnp.ones(3)}, "pass batch=")],
    ids=["no params", "no batch"],
)
def test_missing_input_is_an_error_that_says_what_to_pass(name, given, remedy):
    scorer = OF_THE_MODEL[name]
    with pytest.raises(ValueError, match=rf"scorers\.{name.split()[0]} .*{remedy}"):
        scorer.score(scorer.init(KEY), rows_of(np.zeros((4, 0)), ids=jnp.arange(4), **given))


@pytest.mark.parametrize("name", ["grad_norm_bound", "class_gaussian"])
@pytest.mark.parametrize(
    ("batch", "remedy"),
    [(X, r"batch\[\"label\"\].*pass label_fn="), (X | {"label": jnp.zeros(4)}, "one integer")],
    ids=["no labels", "floats"],
)
def test_labels_that_are_none_are_an_error_in_the_scorers_name(name, batch, remedy):
    scorer = OF_THE_MODEL["grad_norm_bound"]
    scorer = scorers.class_gaussian(3) if name == "class_gaussian" else scorer
    rows, state = rows_of(np.zeros((4, 0)), None, batch, jnp.ones((3, 2))), scorer.init(KEY)
    with pytest.raises(ValueError, match=f"scorers.{name} .*{remedy}"):
        scorer.score(state, rows)
    if name == "class_gaussian":
        with pytest.raises(ValueError, match=f"scorers.{name} .*{remedy}"):
            scorer.update(state, rows, jnp.ones(4))


@pytest.mark.parametrize(
    "loss_fn",
    [lambda p, b: jnp.mean(linear_loss(p, b)), lambda p, b: linear_loss(p, b)[:, None]],
    ids=["mean", "column"],
)
def test_loss_that_is_not_one_per_example_is_an_error(loss_fn):
    rows = rows_of(np.zeros((4, 0)), None, X, jnp.ones(3), jnp.arange(4))
    for scorer in (scorers.loss(loss_fn), scorers.reducible_loss(loss_fn, np.ones(4))):
        with pytest.raises(ValueError, match="one loss per example"):
            scorer.score(scorer.init(KEY), rows)


def test_logits_without_classes_are_refused():
    scorer = scorers.grad_norm_bound(lambda params, batch: jnp.zeros(3))
    rows = Rows(jnp.zeros((3, 0)), jnp.zeros(3, int), {"label": jnp.zeros(3, int)}, ())
    with pytest.raises(ValueError, match=r"shape \(3,\); return one row of logits per example"):
        scorer.score((), rows)
