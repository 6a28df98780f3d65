"""Samplers made of samplers: the gate, epochs, and weights that depend on the losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial, innermost, with_innermost

import isjax
from isjax import conditions, resampling, samplers, scorers, weights
from isjax.base import Scorer
from isjax.samplers import break_even, epochs, gate, importance_sampler, make_draw, reweight

KEY = jax.random.key(0)
SCORES = np.array([0.1, 2.0, 0.7, 0.0, 1.3, 0.4, 3.0, 0.5])
SIZE = len(SCORES)
SPREAD = jnp.float32([0.0, 0.0, 0.0, 10.0])  # tau = 2
EQUAL = jnp.ones(4)  # tau = 1


def keys(number, seed=0):
    return jax.random.split(jax.random.key(seed), number)


def fixed(score, **arguments):
    """A scorer that learns nothing."""
    arguments = {"history": 1} | arguments
    return Scorer(lambda key: (), score, lambda state, rows, losses: state, **arguments)


def last_losses(transform=None, **arguments):
    transform = isjax.identity() if transform is None else transform
    return importance_sampler(scorers.last_loss(), transform, **({"batch_size": 4} | arguments))


@functools.cache
def jitted(sampler):
    return sampler._replace(
        sample=jax.jit(sampler.sample),
        update=jax.jit(sampler.update),
        reweigh=jax.jit(sampler.weigh),
    )


def with_losses(sampler, losses=SCORES):
    """The sampler's state once each example has shown its loss."""
    state = sampler.init(KEY, len(losses))
    seen = {"losses": jnp.float32(losses), "count": jnp.ones(len(losses), jnp.int32)}
    return with_innermost(state, buffer=innermost(state).buffer._replace(**seen))


def some_draw(ids, pool_size=SIZE):
    """Drawn uniformly."""
    index, ones = jnp.asarray(ids, jnp.int32), jnp.ones(len(ids))
    probs = ones / pool_size
    return make_draw(
        (), index, index, probs, scores=ones, pool_size=pool_size, k=0.0, ess=1, mass=1
    )


def observe(sampler, state, losses):
    """One uniform draw of distinct ids whose losses are these."""
    return sampler.update(state, some_draw(range(len(losses))), losses)


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def assert_close(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), tree, other)


def shapes(tree):
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


# --- gate


@functools.cache
def gated(threshold=1.4, decay=0.5):
    return jitted(gate(last_losses(k=-1.0), conditions.tau(threshold, decay)))


def test_a_closed_gate_draws_uniformly_with_weight_one():
    sampler = gated()
    state = with_losses(sampler)
    draws, after = jax.jit(jax.vmap(sampler.sample, (0, None)))(keys(2000), state)
    counts = np.bincount(np.ravel(draws.ids), minlength=SIZE)
    assert_binomial(counts, counts.sum(), 1 / SIZE)
    wanted = {"weights": 1, "scores": 1, "ess": 1, "nonfinite": 0, "passes": 0}
    found = draws._asdict() | draws.info._asdict()
    for field, want in wanted.items():
        values = np.asarray(found[field])
        np.testing.assert_array_equal(values, np.full_like(values, want))
    np.testing.assert_array_equal(draws.pool_size, np.full(2000, SIZE))
    np.testing.assert_allclose(draws.draw_probs, 1 / SIZE)
    assert not np.any(after.is_open) and np.all(after.step == 1)


def test_a_closed_gate_draws_from_the_given_pool():
    sampler = gated()
    draw, _ = sampler.sample(KEY, sampler.init(KEY, SIZE), jnp.asarray([7, 5, 3, 2]))
    np.testing.assert_array_equal(np.sort(draw.ids), [2, 3, 5, 7])
    np.testing.assert_array_equal(draw.ids, np.array([7, 5, 3, 2])[draw.index])
    assert int(draw.pool_size) == 4


def test_a_gate_draws_from_the_batch_for_a_scorer_without_history():
    sampler = jitted(gate(importance_sampler(scorers.uniform(), batch_size=2), 1.2))
    draw, _ = sampler.sample(KEY, sampler.init(KEY, 99), batch=(jnp.zeros((6, 2)),))
    assert np.all(np.asarray(draw.ids) < 6)
    np.testing.assert_allclose(draw.draw_probs, 1 / 6)


def test_a_gate_runs_the_scorer_only_while_open():
    runs = []

    def score(state, rows):
        jax.debug.callback(lambda: runs.append(1))
        return jnp.full(rows.count.shape, jnp.nan)

    scorer = fixed(score, passes=0.75)
    sampler = jitted(gate(importance_sampler(scorer, batch_size=4), conditions.after(3)))
    state = sampler.init(KEY, SIZE)
    for step in range(5):
        draw, state = sampler.sample(KEY, state)
        jax.effects_barrier()
        runs_so_far = max(step - 2, 0)
        assert len(runs) == runs_so_far
        assert int(draw.info.nonfinite) == (SIZE if runs_so_far else 0)
        assert float(draw.info.passes) == (0.75 * SIZE if runs_so_far else 0)


def test_a_gate_opens_when_losses_spread_and_closes_when_they_do_not():
    inner, sampler = jitted(last_losses(k=-1.0)), gated()
    state, is_open = with_losses(sampler), []
    for losses in (EQUAL, SPREAD, EQUAL, EQUAL):
        state = observe(sampler, state, losses)
        is_open.append(bool(float(state.condition) > 1.4))
        draw, after = sampler.sample(KEY, state)
        assert bool(after.is_open) == is_open[-1]
        if is_open[-1]:
            want, _ = inner.sample(KEY, state.inner)
            np.testing.assert_array_equal(draw.index, want.index)
            assert_close(draw, want)
            assert not np.allclose(draw.weights, 1)
        else:
            np.testing.assert_array_equal(draw.weights, np.ones(4))
    assert is_open == [False, True, False, False]  # tau 1, 1.5, 1.25, 1.125


@pytest.mark.slow
@pytest.mark.parametrize("make", [conditions.after, conditions.until])
def test_a_condition_by_step_counts_the_draws_made_before(make):
    sampler = jitted(gate(last_losses(k=-1.0), make(2)))
    state, is_open = with_losses(sampler, SCORES + 1), []
    for key in keys(4):
        draw, state = sampler.sample(key, state)
        is_open.append(not np.all(draw.weights == 1))
        assert bool(state.is_open) == is_open[-1]
    assert is_open == [make is conditions.until] * 2 + [make is conditions.after] * 2


def test_a_number_is_short_for_the_tau_of_it():
    short, long = (jitted(gate(last_losses(), c)) for c in (1.05, conditions.tau(1.05)))
    states = [with_losses(sampler) for sampler in (short, long)]
    for losses in (EQUAL, SPREAD, EQUAL):
        states = [observe(short, states[0], losses), observe(long, states[1], losses)]
        assert_equal(*states)
        draws = [s.sample(KEY, state) for s, state in zip((short, long), states, strict=True)]
        assert_equal(*draws)
    assert float(states[0].condition) == pytest.approx(1 + 0.9 * 0.1)


def test_a_gate_stays_closed_at_exactly_its_threshold():
    sampler = jitted(gate(last_losses(), 1))
    draw, _ = sampler.sample(KEY, with_losses(sampler))
    np.testing.assert_array_equal(draw.weights, np.ones(4))


def learning(state, rows, losses):
    """A scorer's state: all that its last update was shown."""
    return rows.history, rows.count, losses, rows.batch, rows.ids, rows.age


def test_a_closed_gate_keeps_the_transform_and_goes_on_counting_and_learning():
    start = (jnp.zeros((3, 1)), jnp.zeros(3, jnp.int32), jnp.zeros(3), jnp.zeros(3))
    start += (jnp.zeros(3, jnp.int32),) * 2
    scorer = fixed(lambda state, rows: jnp.ones(rows.count.shape))
    scorer = scorer._replace(init=lambda key: start, update=learning)
    inner = importance_sampler(scorer, isjax.smooth_by_mean(0.5), batch_size=3)
    inner, sampler = jitted(inner), jitted(gate(inner, 1e6))
    state = sampler.init(KEY, 5)
    for step in range(1, 3):
        draw, state = sampler.sample(jax.random.key(step), state)
        assert int(state.step) == step and int(state.inner.transform.step) == 0
        losses = jnp.float32([1.0, np.nan, 3.0])
        want = inner.update(state.inner, draw, losses, losses)
        state = sampler.update(state, draw, losses, losses)
        assert_equal(state.inner, want)
    assert int(jnp.sum(state.inner.buffer.count)) > 0


def test_an_open_gate_moves_the_transform():
    sampler = jitted(gate(last_losses(isjax.smooth_by_mean(0.5)), conditions.until(1)))
    _, state = sampler.sample(KEY, with_losses(sampler))
    assert float(state.inner.transform.average) == pytest.approx(0.1 * SCORES.mean())
    _, after = sampler.sample(KEY, state)
    assert_equal(after.inner.transform, state.inner.transform)


def a_policy(draw, losses):
    return 10 * draw.weights + losses


def test_weights_by_a_policy_inside_a_gate_are_for_what_it_lets_through():
    sampler = jitted(gate(reweight(last_losses(k=-1.0), a_policy), conditions.after(1)))
    state, losses = with_losses(sampler), jnp.arange(4.0)
    draw, state = sampler.sample(KEY, state)
    np.testing.assert_array_equal(sampler.weigh(state, draw, losses), np.ones(4))
    state = sampler.update(state, draw, losses)
    draw, state = sampler.sample(KEY, state)
    want = 10 * np.asarray(draw.weights) + np.arange(4)
    np.testing.assert_allclose(sampler.weigh(state, draw, losses), want, rtol=1e-6)
    assert not np.allclose(draw.weights, 1)


@pytest.mark.parametrize("policy", [weights.adjusted(), weights.correcting()])
def test_a_policy_leaves_the_uniform_draws_of_a_closed_gate_as_they_are(policy):
    sampler = jitted(gate(reweight(last_losses(k=-1.0), policy), conditions.after(1)))
    draw, state = sampler.sample(KEY, with_losses(sampler))
    losses = jnp.float32([0.1, 0.5, 1, 4])
    np.testing.assert_array_equal(sampler.weigh(state, draw, losses), np.ones(4))


@pytest.mark.parametrize(
    "inside",
    [
        gate(last_losses(), 1.5),
        epochs(gate(last_losses(), 1.5), 4),
        reweight(last_losses(), a_policy),
    ],
    ids=["gate", "epochs of a gate", "a policy"],
)
def test_a_policy_around_what_weighs_already_is_an_error(inside):
    with pytest.raises(ValueError, match=r"put it inside, as in gate\(reweight"):
        reweight(inside, weights.adjusted())


def test_pool_smaller_than_the_batch_is_an_error_behind_a_gate_too():
    sampler = gate(last_losses(), 2.0)
    with pytest.raises(ValueError, match="pool of 3 is smaller than the batch of 4; enlarge"):
        sampler.sample(KEY, sampler.init(KEY, 10), jnp.arange(3))


def test_without_ids_buffer_and_batch_the_pool_is_the_data_set_behind_a_gate_too():
    sampler = jitted(gate(importance_sampler(scorers.uniform(), batch_size=1), 2.0))
    draw, _ = sampler.sample(KEY, sampler.init(KEY, 10))
    assert int(draw.pool_size) == 10 and 0 <= int(draw.ids[0]) < 10


def test_a_gate_around_a_pool_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"put it inside: epochs\(gate\(...\)\)"):
        gate(epochs(last_losses(), 4), 2.0)


@pytest.mark.parametrize(
    ("pool", "batch", "want"), [(1024, 128, 1408 / 384), (640, 128, 1024 / 384), (3, 1, 2.0)]
)
def test_break_even_is_the_published_formula(pool, batch, want):
    assert break_even(pool, batch) == pytest.approx(want)


# --- epochs


def shuffled(pool_size):
    """Epochs of a sampler that does not care and trains on the whole of each pool."""
    uniform = importance_sampler(
        scorers.uniform(), batch_size=pool_size, resample=resampling.without_replacement
    )
    return jitted(epochs(uniform, pool_size))


@functools.cache
def loop(sampler, num_examples):
    """Of keys [T]: ids [T, b] drawn and the orders [T, N] at each draw."""

    def step(state, key):
        draw, state = sampler.sample(key, state)
        return state, (draw.ids, state.order)

    return jax.jit(lambda keys: jax.lax.scan(step, sampler.init(KEY, num_examples), keys)[1])


def drawn(sampler, num_examples, number, seed=0):
    return np.asarray(loop(sampler, num_examples)(keys(number, seed))[0])


def test_each_example_comes_once_an_epoch_in_another_order_each_time():
    sampler = shuffled(4)
    ids = drawn(sampler, 12, 3 * 6).reshape(6, 12)
    for epoch in ids:
        assert sorted(epoch.tolist()) == list(range(12))
    assert len({tuple(epoch.tolist()) for epoch in ids}) == 6
    pools = {frozenset(pool.tolist()) for pool in ids.reshape(18, 4)}
    assert len(pools) > 9  # not the same pools in another order
    other = drawn(sampler, 12, 3 * 6, seed=1).reshape(6, 12)
    assert not np.any(np.all(ids == other, axis=1))


def test_what_is_left_at_the_end_of_an_epoch_is_dropped_and_is_not_always_the_same():
    epochs_of_two = drawn(shuffled(4), 11, 2 * 40).reshape(40, 8)
    left = [frozenset(range(11)) - set(epoch.tolist()) for epoch in epochs_of_two]
    assert all(len(rest) == 3 for rest in left)
    assert frozenset.union(*left) == frozenset(range(11)) and len(set(left)) > 20


def test_a_pool_of_all_is_an_epoch_by_itself():
    ids = drawn(shuffled(5), 5, 4)
    np.testing.assert_array_equal(np.sort(ids, axis=1), np.tile(np.arange(5), (4, 1)))


def test_every_order_is_as_likely_as_any_other_whatever_the_last_one_was():
    run = loop(shuffled(2), 6)
    _, orders = jax.jit(jax.vmap(lambda key: run(jax.random.split(key, 6))))(keys(3000))
    # At the first draws of two epochs: which of three pools each example is in, then and now.
    places = np.argsort(np.asarray(orders)[:, [0, 3]], axis=2) // 2
    for example in range(6):
        cells = np.bincount(3 * places[:, 0, example] + places[:, 1, example], minlength=9)
        assert_binomial(cells, 3000, 1 / 9)


def test_the_pool_is_gathered_from_the_whole_batch_and_its_ids_are_the_data_sets():
    values = np.arange(10.0) ** 2 + 1
    scorer = scorers.loss(lambda params, batch: params * batch["in"][0])
    sampler = jitted(epochs(importance_sampler(scorer, batch_size=3), 5))
    batch = {"in": (jnp.float32(values), jnp.zeros((10, 2)))}
    state, seen = sampler.init(KEY, 10), []
    for key in keys(4):
        draw, state = sampler.sample(key, state, batch=batch, params=jnp.float32(2))
        start = 5 * (len(seen) % 2)
        pool = np.asarray(state.order)[start : start + 5]
        np.testing.assert_array_equal(draw.ids, pool[draw.index])
        np.testing.assert_allclose(draw.scores, 2 * values[draw.ids], rtol=1e-6)
        probs = (values[pool] / values[pool].sum())[draw.index]
        np.testing.assert_allclose(draw.draw_probs, probs, rtol=1e-5)
        assert int(draw.pool_size) == 5 and int(draw.info.passes) == 5
        seen.append(set(pool.tolist()))
    assert seen[0] | seen[1] == seen[2] | seen[3] == set(range(10))


def test_epochs_without_a_batch_look_up_the_history_of_the_pool():
    sampler = jitted(epochs(last_losses(isjax.smooth(0.5)), 4))
    state = with_losses(sampler)
    for key in keys(3):
        draw, state = sampler.sample(key, state)
        np.testing.assert_array_equal(draw.scores, np.float32(SCORES)[draw.ids])


def test_epochs_write_back_what_their_sampler_would():
    inner = last_losses(isjax.smooth_by_mean(0.5))
    inner, sampler = jitted(inner), jitted(epochs(inner, 4))
    _, state = sampler.sample(KEY, with_losses(sampler))
    draw, losses = some_draw([6, 1, 1, 0]), jnp.float32([1, 2, 4, np.nan])
    want = inner.update(state.inner, draw, losses)
    after = sampler.update(state, draw, losses)
    assert_equal(after.inner, want)
    assert_equal(after.order, state.order)
    assert float(after.inner.transform.average) > 0


def test_epochs_of_a_gate_of_a_policy():
    inside = gate(reweight(last_losses(isjax.smooth(0.5), k=-1.0), a_policy), conditions.after(3))
    sampler = jitted(epochs(inside, 4))
    assert sampler.own_pool
    state, looked_at = with_losses(sampler), []
    for step, key in enumerate(keys(6)):
        draw, state = sampler.sample(key, state)
        pool = np.asarray(state.order)[4 * (step % 2) :][:4]
        np.testing.assert_array_equal(draw.ids, pool[draw.index])
        is_open = bool(state.inner.is_open)
        assert is_open == (step >= 3)
        want = (SCORES[pool] + 0.5) / np.sum(SCORES[pool] + 0.5) if is_open else np.full(4, 0.25)
        np.testing.assert_allclose(draw.draw_probs, want[draw.index], rtol=1e-5)
        losses = jnp.arange(4.0)
        policy = 10 * np.asarray(draw.weights) + np.arange(4)
        weighed = sampler.weigh(state, draw, losses)
        np.testing.assert_allclose(weighed, policy if is_open else np.ones(4), rtol=1e-5)
        looked_at += pool.tolist()
    assert sorted(looked_at) == sorted([*range(8)] * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": epochs(last_losses(), 4), "pool_size": 4}, "pool of its own already"),
        ({"sampler": last_losses(), "pool_size": 0}, "pool_size is 0; look at 1 example or more"),
        ({"sampler": last_losses(), "pool_size": -2}, "pool_size is -2; look at 1"),
    ],
    ids=["twice", "none", "negative"],
)
def test_epochs_refuse_what_cannot_be_an_epoch(arguments, message):
    with pytest.raises(ValueError, match=message):
        epochs(**arguments)


def test_epochs_of_more_than_the_data_set_are_refused():
    with pytest.raises(ValueError, match="pool of 9 is more than the 8 examples; choose at most 8"):
        epochs(last_losses(), 9).init(KEY, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": {"x": jnp.zeros((4, 2))}}, "batch of 4 examples and no ids.*the 8 examples"),
        ({"batch": (jnp.zeros(8), jnp.zeros(9))}, "batch of 8, 9 examples.*the 8 examples"),
        ({"batch": jnp.zeros(4)}, "pass all of the data, or none"),
    ],
    ids=["a pool", "one leaf too long", "one array"],
)
def test_epochs_refuse_a_batch_that_is_not_the_data_set(given, message):
    sampler = epochs(last_losses(), 4)
    with pytest.raises(ValueError, match=message):
        sampler.sample(KEY, sampler.init(KEY, 8), **given)


def test_epochs_draw_from_a_pool_they_are_given():
    sampler = jitted(epochs(last_losses(), 4))
    state, pool = with_losses(sampler), jnp.asarray([7, 5, 3, 2])
    draw, after = sampler.sample(KEY, state, pool)
    np.testing.assert_array_equal(draw.ids, pool[draw.index])
    np.testing.assert_allclose(draw.draw_probs, (SCORES / SCORES[pool].sum())[draw.ids], rtol=1e-6)
    assert np.any(after.order != state.order)  # the epoch is shuffled all the same
    np.testing.assert_array_equal(np.sort(after.order), np.sort(state.order))
    _, later = sampler.sample(KEY, after, pool)
    np.testing.assert_array_equal(later.order, after.order)


def test_a_pool_smaller_than_the_batch_is_an_error_in_epochs_too():
    sampler = epochs(last_losses(), 3)
    with pytest.raises(ValueError, match="pool of 3 is smaller than the batch of 4; enlarge"):
        sampler.sample(KEY, sampler.init(KEY, 8))


# --- reweight


def test_reweight_changes_how_a_batch_is_weighed_and_nothing_else():
    for sampler in (last_losses(), epochs(last_losses(), 4)):
        reweighted = reweight(sampler, weights.none())
        assert reweighted._replace(reweigh=None) == sampler._replace(reweigh=None)
    draw, state = some_draw([0, 3])._replace(weights=jnp.float32([2, 5])), None
    losses = jnp.float32([1.0, np.nan])
    np.testing.assert_array_equal(last_losses().weigh(state, draw, losses), [2, 5])
    np.testing.assert_array_equal(reweighted.weigh(state, draw, losses), [1, 1])
    other = reweight(last_losses(), a_policy)
    np.testing.assert_array_equal(other.weigh(state, draw, losses), [21, np.nan])


# --- state


COMBINED = {
    "gate": lambda: gate(last_losses(isjax.smooth_by_mean(0.5), k=-1.0), conditions.tau(1.3, 0.5)),
    "gate by mean loss": lambda: gate(last_losses(k=-1.0), conditions.mean_loss(0.9, 0.5)),
    "epochs": lambda: epochs(last_losses(isjax.warm_up(3), k=-1.0), 4),
    "epochs of gate": lambda: epochs(gate(last_losses(k=-1.0), conditions.after(4)), 5),
    "gate of gate": lambda: gate(gate(last_losses(k=-1.0), 1.05), conditions.after(2)),
    "reweight": lambda: gate(reweight(last_losses(), weights.adjusted()), conditions.until(5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", COMBINED.values(), ids=COMBINED)
def test_state_keeps_its_shape_inside_scan_and_survives_a_round_trip(make):
    sampler, losses = make(), jnp.float32(SCORES)

    def step(state, key):
        draw, state = sampler.sample(key, state)
        seen = losses[draw.ids]
        used = sampler.weigh(state, draw, seen)
        return sampler.update(state, draw, seen), (draw.ids, used)

    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))
    start = sampler.init(KEY, SIZE)
    middle, _ = run(start, keys(10, 1))
    saved = jax.tree.leaves(jax.tree.map(np.array, middle))
    restored = jax.tree.unflatten(jax.tree.structure(start), [jnp.asarray(x) for x in saved])
    end, out = run(middle, keys(10, 2))
    assert_equal(run(restored, keys(10, 2)), (end, out))
    assert jax.tree.structure(start) == jax.tree.structure(end)
    assert shapes(start) == shapes(end) and int(end.step) == 20
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(start))
    assert np.all(np.isfinite(out[1]))


@pytest.mark.slow
def test_a_gate_that_opened_later_shows_in_the_weights():
    sampler, losses = gated(1.3), jnp.float32(SCORES)

    def step(state, key):
        draw, state = sampler.sample(key, state)
        return sampler.update(state, draw, losses[draw.ids]), draw.weights

    _, used = jax.jit(lambda s: jax.lax.scan(step, s, keys(20)))(sampler.init(KEY, SIZE))
    assert np.all(used[0] == 1) and np.any(used != 1)


def test_every_public_combinator_is_tested_here():
    elsewhere = {"importance_sampler", "tree_sampler", "lagged", "pending", "stratified"}
    elsewhere |= {"checked", "exclude", "grow", "set_losses"}
    assert set(samplers.__all__) - elsewhere - {"SamplerState", "make_draw", "sum_tree"} == {
        "break_even",
        "epochs",
        "gate",
        "reweight",
    }


@pytest.mark.parametrize("condition", ["tau", conditions.after, None])
def test_what_is_no_condition_is_refused(condition):
    with pytest.raises(TypeError, match="pass a number, for tau, or what a"):
        gate(last_losses(), condition)


def test_what_is_no_policy_is_refused():
    with pytest.raises(TypeError, match="policy is 'correcting'; pass what a"):
        reweight(last_losses(), "correcting")
