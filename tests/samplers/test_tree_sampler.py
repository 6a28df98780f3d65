"""Draws from the whole data set by a tree of scores: what is drawn, weighed, kept and refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_binomial, assert_mean, compiled, six_decades
from scipy import stats

import isjax
from isjax import buffer, scorers
from isjax.base import Rows, ScoreTransform
from isjax.samplers import make_draw, tree_sampler
from isjax.training import make_train_step

N, b = 300, 8
KEY = jax.random.key(0)


@functools.cache
def tree(**arguments):
    return compiled(tree_sampler(scorers.last_loss(), batch_size=b, **arguments))


def started(sampler, losses=None, size=N):
    """The state in which every example has been seen once and had these losses."""
    state = sampler.init(KEY, size)
    if losses is None:
        return state
    draw = draw_of(np.arange(size))
    return sampler.update(state._replace(step=jnp.int32(1)), draw, np.asarray(losses, np.float32))


def known(losses):
    """That state of a tree of last losses: it depends on neither k nor smoothing."""
    return started(tree(), losses)


def draw_of(ids):
    ids = np.asarray(ids, np.int32)
    ones = np.ones(ids.shape, np.float32)
    return make_draw((), ids, ids, ones, scores=ones, pool_size=1, k=0, ess=1, mass=1)


def many(sampler, state, trials=2000, batch=None, seed=1):
    """`trials` independent draws from one state, fields [trials, ...]."""
    keys = jax.random.split(jax.random.key(seed), trials)
    return jax.tree.map(np.asarray, _over_keys(sampler)(keys, state, batch))


@functools.cache
def _over_keys(sampler):
    return jax.jit(jax.vmap(lambda key, s, x: sampler.sample(key, s, batch=x)[0], (0, None, None)))


def leaves(state):
    """The scores in the tree, [N]."""
    whole = state.scores
    return np.asarray(whole.levels[0]).ravel()[: int(whole.size)]


def smoothed(losses, share):
    mass = np.asarray(losses, np.float64)
    mass = mass + share * mass.mean()
    return mass / mass.sum()


CASES = [(1.0, 0.0), (1.0, 0.5), (0.5, 3.0), (-2.0, 0.5)]  # k and the share of smoothing
KS, SHARES = np.float32(CASES).T


@functools.cache
def tree_and_whole_buffer():
    """Both samplers, at the k and share of case number `step`: one program for all cases."""

    def k(step):
        return jnp.asarray(KS)[step]

    def share(step):
        return jnp.asarray(SHARES)[step]

    def over_the_whole_buffer(scores, step):
        return scores + share(step) * jnp.mean(scores), step

    arguments = {"batch_size": b, "k": k}
    fast = compiled(tree_sampler(scorers.last_loss(), smoothing=share, **arguments))
    transform = ScoreTransform(lambda: jnp.int32(0), over_the_whole_buffer)
    slow = compiled(isjax.importance_sampler(scorers.last_loss(), transform, **arguments))
    losses = six_decades(N)
    return (fast, started(fast, losses)), (slow, started(slow, losses))


# --- draws and weights


@pytest.mark.parametrize(("k", "share"), CASES)
def test_draws_and_weights_are_those_of_importance_sampling_from_the_whole_buffer(k, share):
    losses, case = six_decades(N), jnp.int32(CASES.index((k, share)))
    (fast, in_tree), (slow, in_buffer) = tree_and_whole_buffer()
    one = many(fast, in_tree._replace(step=case))
    other = many(slow, in_buffer._replace(step=case, transform=case))
    probs = smoothed(losses, share)
    for draw in (one, other):
        np.testing.assert_allclose(draw.draw_probs, probs[draw.ids], rtol=1e-5)
        np.testing.assert_allclose(draw.weights, (1 / (N * probs[draw.ids])) ** k, rtol=3e-5)
        np.testing.assert_allclose(draw.scores, losses[draw.ids], rtol=1e-6)
        assert np.all(draw.pool_size == N) and np.all(draw.info.passes == 0)
    np.testing.assert_array_equal(one.ids, one.index)
    groups = np.empty(N, np.int64)
    groups[np.argsort(losses)] = np.arange(N) // 10
    hits = np.stack([np.bincount(groups[each.ids.ravel()], minlength=30) for each in (one, other)])
    often = hits.sum(axis=0) >= 20
    assert stats.chi2_contingency(hits[:, often]).pvalue > 1e-5
    mass = np.bincount(groups, probs)
    assert_binomial(hits[0][often], one.ids.size, mass[often])


def test_the_weighted_mean_of_anything_is_unbiased_at_k_1():
    # Each fails a sound sampler with probability below 6e-7: a mean beyond 5 standard errors.
    losses, values = six_decades(N), np.random.default_rng(0).normal(2, 1, (N, 5))
    draw = many(tree(smoothing=0.5), known(losses), trials=20_000)
    assert_mean(np.mean(draw.weights[:, :, None] * values[draw.ids], axis=1), values.mean(axis=0))


@pytest.mark.slow
def test_the_share_of_effective_examples_is_an_estimate_of_the_true_one():
    losses = np.random.default_rng(0).exponential(size=N).astype(np.float32)
    sampler = tree_sampler(scorers.last_loss(), batch_size=64, smoothing=0.2)
    ess = many(sampler, known(losses), trials=300).ess
    exact = 1 / (N * np.sum(smoothed(losses, 0.2) ** 2))
    assert np.median(ess) == pytest.approx(exact, rel=0.03)
    assert np.all(many(sampler, started(tree()), trials=300).ess == pytest.approx(1))


def test_examples_never_seen_score_the_initial_loss():
    state = started(tree(smoothing=0.0, initial_loss=2.5))
    np.testing.assert_array_equal(leaves(state), np.full(N, 2.5))
    np.testing.assert_allclose(many(tree(smoothing=0.0), state).draw_probs, 1 / N, rtol=1e-6)


def test_smoothing_and_k_follow_schedules_of_the_samplers_step():
    losses = six_decades(N) + 0.1
    sampler = tree(k=lambda step: 1.0 - step, smoothing=lambda step: jnp.where(step < 2, 4.0, 0.0))
    state = known(losses)
    for step, share in ((1, 4.0), (2, 0.0)):
        assert state.step == step
        draw, state = sampler.sample(KEY, state)
        probs = smoothed(losses, share)[np.asarray(draw.ids)]
        np.testing.assert_allclose(draw.draw_probs, probs, rtol=1e-5)
        np.testing.assert_allclose(draw.weights, (N * probs) ** (step - 1.0), rtol=1e-4)


@pytest.mark.parametrize("largest", [0.0, 1e-30, 1.0, 1e10, 1e30])
def test_infinite_smoothing_draws_uniformly(largest):
    losses = six_decades(N)
    losses[7] = largest
    draw = many(tree(smoothing=np.inf), known(losses))
    np.testing.assert_allclose(draw.draw_probs, 1 / N, rtol=1e-5)
    np.testing.assert_allclose(draw.weights, 1.0, rtol=1e-5)
    assert_binomial(np.bincount(draw.ids.ravel(), minlength=N), draw.ids.size, 1 / N)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_example_of_no_loss_is_drawn_by_smoothing_alone_or_where_all_are_such(share):
    losses = np.where(np.arange(N) % 2, 1, 0).astype(np.float32)
    sampler = tree(smoothing=share)
    draw = many(sampler, known(losses))
    even = np.mean(draw.ids % 2 == 0)
    assert even == pytest.approx(0.5 * share / (1 + share), abs=0.02) and (share or even == 0)
    none = many(sampler, known(0 * losses))
    np.testing.assert_allclose(none.draw_probs, 1 / N, rtol=1e-6)


# --- what is remembered


def test_an_update_changes_the_scores_of_the_drawn_ids_alone():
    losses = six_decades(N)
    new = tree().update(known(losses), draw_of([5, 64, 299]), np.float32([3, 4, 5]))
    losses[[5, 64, 299]] = 3, 4, 5
    np.testing.assert_array_equal(leaves(new), losses)
    assert float(new.scores.levels[-1].sum()) == pytest.approx(losses.sum(), rel=1e-6)


def test_an_id_drawn_several_times_scores_by_the_mean_of_its_finite_losses():
    ids, losses = [9, 4, 9, 9, 4], np.float32([1, 5, np.nan, 4, np.inf])
    new = tree().update(started(tree()), draw_of(ids), losses)
    want = np.ones(N)
    want[[9, 4]] = 2.5, 5
    np.testing.assert_allclose(leaves(new), want)
    assert new.buffer.count[9] == 1 and new.buffer.count[4] == 1


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_failed_examples_are_drawn_through_smoothing_alone_until_they_recover(bad):
    losses = np.ones(N, np.float32)
    losses[: N // 2] = bad
    for share in (0.0, 1.0):
        sampler = tree(smoothing=share, refresh=N)
        state = known(losses)
        assert np.all(leaves(state)[: N // 2] == 0)
        draw = many(sampler, state)
        assert np.all(np.isfinite(draw.weights))
        failed = draw.ids < N // 2
        assert np.mean(failed) == pytest.approx(share / 4, abs=0.02) and (share or not failed.any())
        recovered = tree().update(state, draw_of([3]), np.float32([2]))
        assert leaves(recovered)[3] == 2


@pytest.mark.slow
def test_scores_that_are_not_finite_are_counted_and_not_drawn():
    scorer = scorers.last_loss()._replace(
        score=lambda state, rows: jnp.where(rows.ids < 100, jnp.nan, rows.history[:, 0])
    )
    sampler = compiled(tree_sampler(scorer, batch_size=b, smoothing=0.0, refresh=N))
    draw = many(sampler, started(sampler), trials=100)
    assert np.all(draw.info.nonfinite == 100) and draw.ids.min() >= 100


# --- the rolling refresh


def by_class():
    """A scorer that scores by class, from `batch`, plus how often it has been updated."""
    return scorers.last_loss()._replace(
        init=lambda key: jnp.zeros(()),
        score=lambda state, rows: rows.batch["label"] + 10 * state,
        update=lambda state, rows, losses: state + 1,
    )


@pytest.mark.slow
def test_refresh_rolls_through_the_data_set_and_scores_by_what_the_scorer_now_knows():
    data = {"label": np.arange(7) % 5}
    sampler = compiled(tree_sampler(by_class(), batch_size=2, refresh=3))
    state, want = started(sampler, size=7), np.ones(7)
    for step, ids in enumerate([[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4], [5, 6, 0]]):
        draw, state = sampler.sample(KEY, state, batch=data)
        want[ids] = np.asarray(data["label"])[ids] + 10 * step
        np.testing.assert_array_equal(leaves(state), want)
        np.testing.assert_array_equal(draw.scores, want[np.asarray(draw.ids)])
        assert state.next == (ids[-1] + 1) % 7
        rows = {"label": data["label"][draw.ids]}
        state = sampler.update(state, draw, np.ones(2, np.float32), rows)
        want[np.asarray(draw.ids)] = np.asarray(rows["label"]) + 10 * (step + 1)
        np.testing.assert_array_equal(leaves(state), want)


@pytest.mark.slow
def test_a_refresh_larger_than_the_data_set_scores_all_of_it():
    data = {"label": np.arange(7) + 2}
    sampler = compiled(tree_sampler(by_class(), batch_size=2, refresh=17))
    _, state = sampler.sample(KEY, started(sampler, size=7), batch=data)
    np.testing.assert_array_equal(leaves(state), np.arange(7) + 2)


@pytest.mark.slow
def test_refresh_rescores_with_a_learned_scorer_that_reads_labels():
    data = {"label": np.arange(N) % 3, "x": np.ones((N, 2), np.float32)}
    scorer = scorers.learned(scorers.history_mlp(3, num_classes=3), optax.adam(0.05), history=3)
    sampler = compiled(tree_sampler(scorer, batch_size=N, refresh=N))
    losses = 1.0 + data["label"].astype(np.float32)
    state = started(sampler)._replace(step=jnp.int32(1))
    state = sampler.update(state, draw_of(np.arange(N)), losses, data)
    _, state = sampler.sample(KEY, state, batch=data)
    history, count = buffer.read(state.buffer, jnp.arange(N))
    rows = Rows(history, count, data, None, jnp.arange(N), jnp.ones(N, jnp.int32))
    np.testing.assert_allclose(leaves(state), jax.jit(scorer.score)(state.scorer, rows), rtol=1e-5)
    assert len(np.unique(leaves(state))) >= 3


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; draw at least 1"),
        ({"k": 1.5}, "k is 1.5; choose k <= 1"),
        ({"k": lambda step: 2.0 - step}, "k is 2.0; choose k <= 1"),
        ({"smoothing": -0.1}, "smoothing is -0.1; choose 0 or more"),
        ({"smoothing": np.nan}, "smoothing is nan; choose 0 or more"),
        ({"refresh": -1}, "refresh is -1; choose 0 or more examples"),
        ({"initial_loss": 0.0}, "initial_loss is 0.0; choose a finite number above 0"),
        ({"initial_loss": -1}, "initial_loss is -1; choose a finite number above 0"),
        ({"initial_loss": np.nan}, "initial_loss is nan; choose a finite number above 0"),
        ({"initial_loss": 1e39}, r"initial_loss is 1e\+39; choose a finite number above 0"),
        ({"scorer": scorers.uniform()}, "needs a scorer that reads past losses or ids"),
        ({"scorer": scorers.loss(lambda params, batch: batch)}, "use importance_sampler"),
        ({"scorer": scorers.last_loss()._replace(passes=1)}, "use importance_sampler"),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tree_sampler(**{"scorer": scorers.last_loss(), "batch_size": b} | arguments)


@pytest.mark.parametrize("refresh", [0, 5])
def test_an_empty_data_set_is_refused(refresh):
    sampler = tree_sampler(scorers.last_loss(), batch_size=b, refresh=refresh)
    with pytest.raises(ValueError, match="has 0 examples; sampling needs at least 1"):
        sampler.init(KEY, 0)


def test_from_a_pool_it_draws_by_the_scores_in_the_tree():
    losses = np.random.default_rng(1).exponential(size=N).astype(np.float32)
    sampler = compiled(tree_sampler(scorers.last_loss(), batch_size=b, k=0.5, smoothing=0.3))
    state, pool = known(losses), np.arange(3, N, 2)
    draw, after = sampler.sample(KEY, state, jnp.asarray(pool))
    mass = losses[pool].astype(np.float64) + 0.3 * losses.mean(dtype=np.float64)
    probs = mass / mass.sum()
    np.testing.assert_array_equal(draw.ids, pool[draw.index])
    np.testing.assert_allclose(draw.draw_probs, probs[draw.index], rtol=1e-5)
    weights = (1 / (pool.size * probs[draw.index])) ** 0.5
    np.testing.assert_allclose(draw.weights, weights, rtol=1e-5)
    np.testing.assert_allclose(draw.ess, 1 / np.sum(probs**2) / pool.size, rtol=1e-5)
    np.testing.assert_allclose(draw.info.mass, mass.mean(), rtol=1e-5)
    assert int(after.step) == int(state.step) + 1 and int(draw.pool_size) == pool.size


def test_pools_and_batches_that_do_not_fit_are_refused():
    sampler = tree()
    state = started(sampler)
    with pytest.raises(ValueError, match=f"pool of 1 is smaller than the batch of {b}"):
        sampler.sample(KEY, state, jnp.arange(1))
    with pytest.raises(ValueError, match="the rolling refresh reads the whole data set"):
        tree_sampler(scorers.last_loss(), batch_size=b, refresh=2).sample(KEY, state, jnp.arange(N))
    with pytest.raises(ValueError, match=f"batch of 8 examples and no ids.*the {N} examples"):
        sampler.sample(KEY, state, batch={"x": jnp.ones((8, 2))})
    with pytest.raises(ValueError, match="pool_size is 50, but this sampler has a pool of its own"):
        make_train_step(lambda *args: args, optax.sgd(0.1), sampler, pool_size=50)


def test_a_data_set_smaller_than_the_batch_is_refused():
    sampler = tree()
    with pytest.raises(ValueError, match=f"data set of 1 is smaller than the batch of {b}"):
        sampler.sample(KEY, sampler.init(KEY, 1))


def test_given_scores_are_drawn_by_from_the_first_step_and_stay():
    known = np.random.default_rng(3).gamma(0.5, size=N).astype(np.float32)
    sampler = compiled(tree_sampler(scorers.given(known), batch_size=b, smoothing=0.0))
    state = sampler.init(KEY, N)
    for _ in range(3):
        np.testing.assert_array_equal(leaves(state), known)
        draw, state = sampler.sample(KEY, state)
        probs = known / known.sum(dtype=np.float64)
        np.testing.assert_allclose(draw.draw_probs, probs[draw.ids], rtol=1e-5)
        np.testing.assert_allclose(draw.weights, 1 / (N * probs[draw.ids]), rtol=1e-5)
        state = sampler.update(state, draw, jnp.ones(b))


def test_losses_of_another_shape_and_missing_labels_are_refused():
    sampler = tree()
    with pytest.raises(ValueError, match=r"losses of shape \(\) for 2 examples"):
        sampler.update(started(sampler), draw_of([0, 1]), jnp.float32(1))
    labelled = scorers.learned(scorers.history_mlp(3, num_classes=2), history=3)
    sampler = compiled(tree_sampler(labelled, batch_size=b, refresh=4))
    with pytest.raises(ValueError, match="pass batch= to"):
        sampler.sample(KEY, started(sampler))


def test_draws_do_not_depend_on_double_precision():
    sampler, found = tree(), []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            draw = jax.jit(lambda key: sampler.sample(key, sampler.init(key, 40))[0].ids)
            found.append(draw(KEY))
    np.testing.assert_array_equal(*found)


def test_no_gradient_flows_through_the_choice():
    sampler = tree_sampler(scorers.last_loss(), batch_size=b)

    def weights(rate):
        state = started(sampler)
        for step in range(3):
            draw, state = sampler.sample(jax.random.key(step), state)
            state = sampler.update(state, draw, rate * (1.0 + draw.ids))
        return jnp.sum(draw.weights)

    assert jax.jit(jax.grad(weights))(0.5) == 0
