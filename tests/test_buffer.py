"""The buffer against a list of past losses per example, kept in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import buffer

NAN, INF = np.nan, np.inf
both = pytest.mark.parametrize(
    "write",
    [buffer.write, jax.jit(buffer.write, static_argnames="remember")],
    ids=["eager", "jit"],
)


def written(write, ids, losses, history=3, size=6):
    start = buffer.init(size, history, 9.0)
    return write(start, jnp.asarray(ids, jnp.int32), jnp.asarray(losses, jnp.float32))


class Reference:
    """Newest first; each write adds the mean finite loss of each id, once."""

    def __init__(self, size, history, initial):
        self.past = [[] for _ in range(size)]
        self.history, self.initial = history, initial

    def write(self, ids, losses):
        for example in set(ids.tolist()):
            finite = [x for x in losses[ids == example].tolist() if np.isfinite(x)]
            if finite:
                self.past[example].insert(0, sum(finite) / len(finite))

    def losses(self):
        padded = [(past + [self.initial] * self.history)[: self.history] for past in self.past]
        return np.asarray(padded, np.float64)


@pytest.mark.parametrize("history", [1, 3, 10])
def test_many_writes_agree_with_lists_of_past_losses(history):
    rng = np.random.default_rng(history)
    ours, reference = buffer.init(12, history, 2.5), Reference(12, history, 2.5)
    write = jax.jit(buffer.write)
    for _ in range(25):
        ids = rng.integers(0, 12, 9)
        losses = rng.choice([rng.normal(), 1e3, NAN, INF, -INF], 9) + rng.normal(size=9)
        losses = losses.astype(np.float32)
        ours = write(ours, jnp.asarray(ids, jnp.int32), jnp.asarray(losses))
        reference.write(ids, losses)
    remembered, _ = buffer.read(ours, jnp.arange(12))
    np.testing.assert_allclose(remembered, reference.losses(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours.count, [len(past) for past in reference.past])


@pytest.mark.parametrize("history", [1, 3, 10])
def test_a_new_buffer_holds_the_initial_loss_and_has_seen_nothing(history):
    losses, _, count, failed, seen = buffer.init(4, history, 2.3)
    assert failed.shape == seen.shape == (4,) and not failed.any() and not seen.any()
    shape = (4,) if history == 1 else (4, history)  # of one number no axis: a TPU would pad it
    assert losses.shape == shape
    np.testing.assert_array_equal(losses, np.full(shape, 2.3, np.float32))
    np.testing.assert_array_equal(count, np.zeros(4))
    assert losses.dtype == jnp.float32 and count.dtype == failed.dtype == seen.dtype == jnp.int32
    other, numbers, *rest = buffer.init(4, history, 2.3, keeps_losses=False)
    assert other is None
    for array, same in zip((numbers, *rest), (losses, count, failed, seen), strict=True):
        assert array.dtype == same.dtype
        np.testing.assert_array_equal(array, same)


@both
def test_the_newest_loss_comes_first_and_the_oldest_is_dropped(write):
    state = buffer.init(2, 2, 0.0)
    for loss in (1.0, 2.0, 3.0):
        state = write(state, jnp.asarray([1]), jnp.asarray([loss]))
    np.testing.assert_array_equal(state.losses, [[0, 0], [3, 2]])
    np.testing.assert_array_equal(state.count, [0, 3])


@both
def test_duplicates_are_observed_once_with_their_mean(write):
    state = written(write, [4, 2, 4, 4], [1, 7, 2, 6])
    np.testing.assert_array_equal(state.losses[4], [3, 9, 9])
    np.testing.assert_array_equal(state.losses[2], [7, 9, 9])
    np.testing.assert_array_equal(state.count, [0, 0, 1, 0, 1, 0])


@pytest.mark.slow
@both
def test_the_order_of_a_batch_does_not_matter(write):
    rng = np.random.default_rng(0)
    ids, losses = rng.integers(0, 6, 40), rng.integers(0, 64, 40)
    expected = written(write, ids, losses)
    for _ in range(5):
        order = rng.permutation(40)
        state = written(write, ids[order], losses[order])
        np.testing.assert_allclose(state.losses, expected.losses, rtol=1e-6)
        np.testing.assert_array_equal(state.count, expected.count)


@both
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_losses_that_are_not_finite_are_left_out_of_the_mean(write, bad):
    state = written(write, [1, 1, 1, 3], [2, bad, 4, bad])
    np.testing.assert_array_equal(state.losses[1], [3, 9, 9])
    np.testing.assert_array_equal(state.losses[3], [9, 9, 9])
    np.testing.assert_array_equal(state.count, [0, 1, 0, 0, 0, 0])


@pytest.mark.slow
@both
def test_an_example_without_a_finite_loss_keeps_its_row(write):
    state = written(write, [0, 5], [1, 2])
    after = write(state, jnp.asarray([5, 5, 0]), jnp.asarray([NAN, INF, NAN], jnp.float32))
    np.testing.assert_array_equal(after.losses, state.losses)
    np.testing.assert_array_equal(after.count, state.count)


@both
def test_the_mean_of_huge_losses_is_finite(write):
    state = written(write, [1, 1], [3e38, 3e38])
    np.testing.assert_allclose(state.losses[1], [3e38, 9, 9], rtol=1e-6)


@both
def test_without_history_nothing_is_allocated_or_kept(write):
    state = buffer.init(1_000_000_000, 0)
    assert not jax.tree.leaves(state) and buffer.size(state) == 0
    ids = jnp.asarray([999_999_999, 1])
    after = write(state, ids, jnp.ones(2))
    assert not jax.tree.leaves(after)
    history, count = buffer.read(after, ids)
    assert history.shape == (2, 0) and history.dtype == jnp.float32
    np.testing.assert_array_equal(count, [0, 0])
    assert count.dtype == jnp.int32


@both
@pytest.mark.parametrize("history", [1, 10])
def test_reading_gives_the_rows_asked_for_in_order(write, history):
    state = written(write, [0, 3], [1, 2], history)
    losses, count = buffer.read(state, jnp.asarray([3, 5, 3, 0]))
    np.testing.assert_array_equal(losses[:, 0], [2, 9, 2, 1])
    np.testing.assert_array_equal(losses[:, 1:], np.full((4, history - 1), 9))
    np.testing.assert_array_equal(count, [1, 0, 1, 1])


@both
@pytest.mark.parametrize("history", [1, 3])
def test_a_write_leaves_shapes_and_types(write, history):
    start = buffer.init(6, history, 9.0)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), start)
    after = write(start, jnp.asarray([4, 2, 4]), jnp.asarray([1.0, NAN, 3.0]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == shapes


@pytest.mark.parametrize("history", [1, 3])
def test_the_last_loss_is_the_newest(history):
    state = written(buffer.write, [0, 3], [1, 2], history)
    state = buffer.write(state, jnp.asarray([3, 1]), jnp.asarray([5.0, NAN]))
    last = buffer.last_loss(state, jnp.asarray([3, 1, 3, 0]))
    assert last.dtype == jnp.float32
    np.testing.assert_array_equal(last, [5, 9, 5, 1])
    others = buffer.init(6, history, keeps_losses=False), buffer.init(6, 0)
    assert [buffer.last_loss(other, jnp.arange(2)) for other in others] == [None, None]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_losses_of_other_types_are_kept_as_float32(dtype):
    state = buffer.write(buffer.init(3, 2), jnp.asarray([1, 1]), jnp.asarray([2, 3], dtype))
    assert state.losses.dtype == jnp.float32
    assert state.losses[1, 0] == 2.5


@both
def test_a_failure_is_remembered_until_a_finite_loss_is_seen(write):
    ids = jnp.array([0, 1, 1, 2])
    state = write(buffer.init(4, 1), ids, jnp.array([NAN, INF, 1.0, 2.0]))
    everyone = jnp.arange(4)
    assert buffer.has_failed(state, everyone).tolist() == [True, False, False, False]
    state = write(state, jnp.array([0, 2]), jnp.array([3.0, -INF]))
    assert buffer.has_failed(state, everyone).tolist() == [False, False, True, False]
    assert buffer.has_failed(buffer.init(4, 0), everyone).tolist() == [False] * 4
    assert buffer.has_failed(state, everyone).dtype == bool


# --- age: draws since last observed


@pytest.mark.parametrize("history", [1, 3])
def test_age_counts_draws_since_the_last_finite_loss(history):
    rng = np.random.default_rng(history)
    state, last, everyone = buffer.init(8, history), {}, jnp.arange(8)
    write, age = jax.jit(buffer.write), jax.jit(buffer.age)
    for step in range(1, 31):
        ids, losses = rng.integers(0, 8, 3), rng.choice([1.0, 2.0, NAN, INF], 3)
        state = write(state, jnp.asarray(ids), jnp.asarray(losses, jnp.float32), step)
        last |= {i: step for i, loss in zip(ids.tolist(), losses, strict=True) if loss < INF}
        # The batch of the last draw has age 1 when the next is made; never seen: since the start.
        want = [step + 1 - last[i] if i in last else step for i in range(8)]
        assert age(state, everyone, step).tolist() == want
        assert age(state, jnp.asarray([5, 5, 2]), step).tolist() == [want[5], want[5], want[2]]
    assert len(last) == 8 and max(want) > 1
    assert age(state, everyone, jnp.int32(40)).dtype == jnp.int32


def test_without_history_every_age_is_that_of_the_run():
    age = jax.jit(lambda step: buffer.age(buffer.init(9, 0), jnp.arange(3), step))
    assert age(0).tolist() == [0, 0, 0] and age(7).tolist() == [7, 7, 7]


@both
def test_a_duplicate_that_is_not_finite_does_not_hide_that_the_other_was_seen(write):
    state = write(buffer.init(4, 1), jnp.asarray([2, 1, 2]), jnp.asarray([NAN, NAN, 1.0]), 5)
    assert state.seen.tolist() == [0, 0, 5, 0]
    state = write(state, jnp.asarray([2, 1, 1]), jnp.asarray([INF, 3.0, NAN]), 6)
    assert state.seen.tolist() == [0, 6, 5, 0]


# --- remember: what becomes of an example's numbers


def largest_and_sum(history, count, losses):
    """Order matters: what was summed is weighted by how many came before."""
    largest = jnp.where(count > 0, jnp.maximum(history[:, 0], losses), losses)
    total = jnp.where(count > 0, history[:, 1], 0.0) + (count + 1) * losses
    return jnp.stack([largest, total], axis=1)


def test_remember_sees_each_example_once_with_its_mean_finite_loss():
    rng = np.random.default_rng(7)
    state, past = buffer.init(6, 2, 9.0), [[] for _ in range(6)]
    write = jax.jit(lambda *args: buffer.write(*args, remember=largest_and_sum))
    for step in range(1, 16):
        ids, losses = rng.integers(0, 5, 7), rng.choice([NAN, INF, 0.25, 1.5, 4.0, -2.0], 7)
        state = write(state, jnp.asarray(ids), jnp.asarray(losses, jnp.float32), step)
        for example in set(ids.tolist()):
            finite = losses[(ids == example) & np.isfinite(losses)]
            past[example] += [finite.mean()] if finite.size else []
    want = [
        [max(seen), sum((i + 1) * loss for i, loss in enumerate(seen))] if seen else [9.0, 9.0]
        for seen in past
    ]
    np.testing.assert_allclose(state.losses, want, rtol=1e-5)
    np.testing.assert_array_equal(state.count, [len(seen) for seen in past])
    assert min(len(seen) for seen in past[:5]) > 3 and not past[5]


@both
def test_what_is_remembered_does_not_depend_on_the_order_of_the_batch(write):
    rng = np.random.default_rng(1)
    ids, losses = rng.integers(0, 6, 40), rng.choice([NAN, INF, 1.0, 2.0, 3.0, 5.0], 40)
    losses[ids == 3] = NAN
    start = buffer.init(6, 2)._replace(count=jnp.arange(6), seen=jnp.arange(6))

    def after(order):
        chosen = jnp.asarray(ids[order]), jnp.asarray(losses[order], jnp.float32)
        return write(start, *chosen, step=9, remember=largest_and_sum)

    expected = after(np.arange(40))
    np.testing.assert_array_equal(expected.seen, [9, 9, 9, 3, 9, 9])
    np.testing.assert_array_equal(expected.failed, [0, 0, 0, 1, 0, 0])
    for _ in range(4):
        state = after(rng.permutation(40))
        np.testing.assert_allclose(state.losses, expected.losses, rtol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, state[1:], expected[1:])


@both
def test_an_example_without_a_finite_loss_remembers_what_it_did(write):
    def never(history, count, losses):
        return jnp.full_like(history, NAN)

    start = buffer.init(3, 2, 4.0)
    ids, losses = jnp.asarray([1, 1, 2]), jnp.asarray([NAN, INF, 1.0], jnp.float32)
    state = write(start, ids, losses, step=2, remember=never)
    np.testing.assert_array_equal(state.losses, [[4, 4], [4, 4], [NAN, NAN]])


def test_by_default_the_loss_is_put_in_front():
    history, losses = jnp.asarray([[1.0, 2, 3], [4, 5, 6]]), jnp.asarray([7.0, 8])
    want = [[7, 1, 2], [8, 4, 5]]
    np.testing.assert_array_equal(buffer.shift(history, jnp.zeros(2), losses), want)
