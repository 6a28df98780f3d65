import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.data.dataset import from_arrays
from isjax.experiment.evaluation import evaluate_batches, make_evaluation
from isjax.reporting.failures import Failures
from isjax.tasks import Task
from isjax.training import TrainState

STATE = TrainState(
    step=jnp.zeros((), jnp.int32),
    key=jax.random.key(0),
    params=jnp.float32(1.0),
    model_state=jnp.float32(0.0),
    opt_state=None,
    sampler=None,
)


def make_task(metrics_fn, summarise=dict, **parts):
    nothing = lambda *_: None  # noqa: E731
    return Task(from_arrays(**parts), nothing, nothing, nothing, metrics_fn, summarise=summarise)


def part(size, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(size, 3)).astype(np.float32), "y": rng.normal(size=size) > 0}


def metrics_of(params, model_state, batch):
    return {"loss": params * batch["x"].sum(axis=1) ** 2 + model_state, "share": batch["y"]}


def bits(params, model_state, batch):
    """2 ** id: the sum over a part tells which of its examples were counted, and how often."""
    return {"loss": 2.0 ** batch["id"]}


def counted(evaluate, count, name="train"):
    """The ids whose bits are set, after a check that none was counted twice."""
    total = round(
        evaluate(STATE)[f"{name}_loss"] * count
    )  # below 2 ** 50: the mean is exact enough
    ids = [i for i in range(50) if total >> i & 1]
    assert len(ids) == count
    return ids


def ids(size):
    return {"id": np.arange(size, dtype=np.float32)}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 11, 1000])
def test_means_are_those_of_numpy_over_all_examples(batch_size):
    """Also where the last batch is ragged, of whichever part."""
    parts = {"train": part(23, 0), "valid": part(10, 1), "test": part(7, 2)}
    state = STATE._replace(params=jnp.float32(3.0), model_state=jnp.float32(0.5))
    result = make_evaluation(make_task(metrics_of, **parts), batch_size)(state)
    assert set(result) == {f"{p}_{m}" for p in parts for m in ("loss", "share")}
    for name, examples in parts.items():
        losses = 3.0 * examples["x"].astype(np.float64).sum(axis=1) ** 2 + 0.5
        assert result[f"{name}_loss"] == pytest.approx(losses.mean(), rel=1e-6)
        assert result[f"{name}_share"] == pytest.approx(examples["y"].mean(), rel=1e-12)
    assert {type(value) for value in result.values()} == {float}


@pytest.mark.parametrize("batch_size", [1, 4, 5, 6, 19, 20, 21])
def test_every_example_counts_exactly_once(batch_size):
    task = make_task(bits, train=ids(20), test=ids(5))
    evaluate = make_evaluation(task, batch_size)
    assert counted(evaluate, 20) == list(range(20))
    assert counted(evaluate, 5, "test") == list(range(5))


def test_a_data_set_without_a_valid_part_has_no_valid_metrics():
    result = make_evaluation(make_task(metrics_of, train=part(4), test=part(4)))(STATE)
    assert set(result) == {"train_loss", "train_share", "test_loss", "test_share"}


def traced(counts):
    def metrics_fn(params, model_state, batch):
        counts.append(batch["x"].shape[0])
        return metrics_of(params, model_state, batch)

    return metrics_fn


def test_one_compilation_for_all_parts_and_evaluations():
    """Ragged last batches are filled up, so every part has batches of one shape."""
    counts = []
    parts = {"train": part(23), "valid": part(7), "test": part(10)}
    evaluate = make_evaluation(make_task(traced(counts), **parts), 7)
    for value in (1.0, 2.0, 3.0):
        evaluate(STATE._replace(params=jnp.float32(value)))
    assert counts == [7]


def test_a_part_smaller_than_the_batch_is_compiled_in_its_own_size_once():
    counts = []
    evaluate = make_evaluation(make_task(traced(counts), train=part(23), test=part(5)), 7)
    evaluate(STATE)
    evaluate(STATE)
    assert counts == [7, 5]


@pytest.mark.parametrize(
    ("size", "number"), [(20, 1), (20, 3), (20, 7), (20, 10), (20, 19), (21, 8), (49, 6)]
)
@pytest.mark.parametrize("batch_size", [4, 1000])
def test_some_examples_of_each_part_are_evenly_spaced(size, number, batch_size):
    task = make_task(bits, train=ids(size), valid=ids(number + 1), test=ids(size))
    evaluate = make_evaluation(task, batch_size, max_examples=number)
    for name in ("train", "test"):
        chosen = counted(evaluate, number, name)
        gaps = np.diff([*chosen, size])  # the last stands for what follows it too
        assert chosen[0] == 0 and set(gaps) <= {math.floor(size / number), math.ceil(size / number)}
    assert len(counted(evaluate, number, "valid")) == number


@pytest.mark.parametrize("number", [0, 20, 21, 1000])
def test_no_limit_or_a_high_one_means_all_examples(number):
    evaluate = make_evaluation(make_task(bits, train=ids(20), test=ids(3)), 6, number)
    assert counted(evaluate, 20) == list(range(20)) and len(counted(evaluate, 3, "test")) == 3


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_sums_are_taken_in_float64(batch_size):
    """In float32, 2 ** 24 + 1 is 2 ** 24: the ones would be lost, within a batch and across."""
    values = {"id": np.array([2.0**24] + [1.0] * 11, np.float32)}
    task = make_task(lambda p, s, batch: {"loss": batch["id"]}, train=values, test=values)
    assert make_evaluation(task, batch_size)(STATE)["train_loss"] == (2.0**24 + 11) / 12


def test_the_summary_is_made_of_the_means_of_a_part():
    """Perplexity is exp of the mean, not the mean of exp."""

    def summarise(means):
        return means | {"perplexity": math.exp(means["loss"])}

    values = {"id": np.array([0.0, 1.0, 5.0], np.float32)}
    task = make_task(
        lambda p, s, batch: {"loss": batch["id"]}, summarise, train=values, test=ids(2)
    )
    result = make_evaluation(task, 2)(STATE)
    assert result["train_perplexity"] == pytest.approx(math.exp(2.0))
    assert result["test_perplexity"] == pytest.approx(math.exp(0.5))


def test_examples_may_be_any_pytree_on_host_or_device():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 11)).astype(np.float32)
    task = make_task(
        lambda p, s, batch: {"loss": batch[0][0] * batch[1]},
        train=((jnp.asarray(x),), jnp.asarray(y)),
        test=((x,), y),
    )
    result = make_evaluation(task, 4)(STATE)
    assert result["train_loss"] == pytest.approx(np.mean(np.float64(x) * y), rel=1e-5)
    assert result["train_loss"] == result["test_loss"]


def of_ids(params, model_state, batch):
    return {"loss": jnp.where(batch["id"] < 0, jnp.nan, batch["id"]), "one": batch["id"] ** 0}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_a_loss_that_finite_examples_lose_is_not_hidden(batch_size):
    values = {"id": np.array([1, -1, 1, -1, 1], np.float32)}
    found = []
    task = make_task(of_ids, train=values, test=ids(2))
    result = make_evaluation(task, batch_size, on_failures=found.append)(STATE)
    assert math.isnan(result["train_loss"]) and result["test_loss"] == 0.5
    assert "train_left_out" not in result
    assert found == [{"train": Failures(data=[], loss=[1, 3])}]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_an_example_that_is_not_finite_itself_is_named_and_left_out(batch_size):
    values = {"id": np.array([1, np.nan, 2, np.inf, 3], np.float32)}
    found = []
    task = make_task(of_ids, train=ids(2), test=ids(2))
    dataset = task.dataset._replace(train=values)
    evaluate = make_evaluation(task._replace(dataset=dataset), batch_size, on_failures=found.append)
    result = evaluate(STATE)
    assert (result["train_loss"], result["train_one"], result["train_left_out"]) == (2, 1, 2)
    assert found == [{"train": Failures(data=[1, 3], loss=[])}]


def test_an_example_with_nan_whose_loss_is_finite_counts():
    """Such as one with missing values, which the network masks."""
    values = {"id": np.array([1, np.nan, 3], np.float32)}
    found = []
    fill = lambda p, s, batch: {"loss": jnp.nan_to_num(batch["id"], nan=5.0)}  # noqa: E731
    task = make_task(fill, train=ids(2), test=ids(2))
    task = task._replace(dataset=task.dataset._replace(train=values))
    assert make_evaluation(task, on_failures=found.append)(STATE)["train_loss"] == 3
    assert found == [{}]


def test_of_evenly_spaced_examples_the_ids_in_the_data_set_are_named():
    values = {"id": np.where(np.arange(20) % 10 == 0, -1, 1).astype(np.float32)}
    found = []
    task = make_task(of_ids, train=values, test=ids(2))
    make_evaluation(task, 3, 4, on_failures=found.append)(STATE)  # 0, 5, 10, 15
    assert found == [{"train": Failures(data=[], loss=[0, 10])}]


def test_a_part_of_failed_examples_alone_has_no_mean():
    task = make_task(of_ids, train=ids(2), test=ids(2))
    nan = {"id": np.full(3, np.nan, np.float32)}
    result = make_evaluation(task._replace(dataset=task.dataset._replace(train=nan)))(STATE)
    assert math.isnan(result["train_loss"]) and result["train_left_out"] == 3


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 11, 1000])
def test_evaluate_batches_every_example_comes_once_in_order(batch_size):
    """Of a tree of values, in pieces; a step sees batches of one shape."""
    shapes = []

    def step(state, batch):
        shapes.append(batch["id"].shape)
        return {"id": batch["id"], "pair": (state.params * jnp.asarray(batch["id"]) ** 2,)}

    state = STATE._replace(params=jnp.float32(2.0))
    pieces = list(evaluate_batches(step, state, ids(11), batch_size))
    assert all(len(piece["id"]) <= batch_size for piece in pieces)
    assert all(isinstance(piece["pair"][0], np.ndarray) for piece in pieces)
    np.testing.assert_array_equal(np.concatenate([p["id"] for p in pieces]), np.arange(11))
    squares = np.concatenate([p["pair"][0] for p in pieces])
    np.testing.assert_array_equal(squares, 2 * np.arange(11) ** 2)
    assert set(shapes) == {(min(batch_size, 11),)} and len(shapes) == math.ceil(11 / batch_size)


def test_further_metrics_are_added():
    asked = []

    def further(state):
        asked.append(state)
        return {"params": float(state.params), "test_loss": -1.0}

    task = make_task(metrics_of, train=part(4), test=part(4))
    plain, more = make_evaluation(task)(STATE), make_evaluation(task, further=[further])(STATE)
    assert more == plain | {"params": 1.0, "test_loss": -1.0} and asked == [STATE]


def test_an_evaluation_given_up_asks_for_no_further_metrics():
    task = make_task(metrics_of, train=part(4), test=part(4))
    further = lambda state: pytest.fail("asked")  # noqa: E731
    assert make_evaluation(task, further=further)(STATE, lambda: True) is None
