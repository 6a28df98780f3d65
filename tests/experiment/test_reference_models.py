"""What is made before training: by tasks that tell what a reference model has seen, and NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import damage

from isjax import networks, recipes, tasks
from isjax.data.dataset import from_arrays
from isjax.experiment import reference_models
from isjax.experiment.config import ConfigError, default_config
from isjax.experiment.reference_models import (
    PreparationStopped,
    Prepared,
    cross_fitted_losses,
    early_el2n,
    placeholders,
    prepare,
)

pytestmark = pytest.mark.slow  # trains reference models

SIZE = 20


def make_config(**settings):
    config = default_config()
    config.artifacts = False
    config.update({"network": "MLP", "method": "reducible_loss", "num_steps": 200})
    config.update({"batch_size": 4, "pool_size": 8, "learning_rate": 0.1} | settings)
    return config


def noting(told, size=SIZE):
    """Training adds to the parameter of each example drawn; `told` makes a loss of them, [N].

    So what an example is scored by tells on which examples the model that scores it was trained.
    """
    part = {"id": np.arange(size, dtype=np.int32)}

    def loss(params, batch):
        return told(params) + 0 * batch["id"]

    return tasks.Task(
        from_arrays(part, part),
        init=lambda key: (jnp.zeros(size), None),
        loss_fn=lambda params, state, batch, key: (-params[batch["id"]], state),
        score_fn=lambda params, state, batch: loss(params, batch),
        metrics_fn=lambda params, state, batch: {"loss": loss(params, batch)},
    )


def as_bits(params):
    """The set of the examples seen, as an integer below 2 ** 24: exact in float32."""
    return jnp.sum(jnp.where(params > 0, 2.0 ** jnp.arange(len(params)), 0.0))


def sets_of(losses):
    """For each example, the ids that the model that scored it was trained on."""
    return [{i for i in range(24) if int(loss) >> i & 1} for loss in losses]


def test_each_loss_is_by_a_model_that_never_saw_the_example():
    seen = sets_of(cross_fitted_losses(make_config(), noting(as_bits), Prepared()))
    assert all(example not in ids for example, ids in enumerate(seen))
    one, other = {frozenset(ids) for ids in seen}
    assert len(one) == len(other) == 10 and one | other == set(range(20))


@pytest.mark.parametrize("size", [7, 21])
def test_halves_of_an_odd_number_differ_by_one(size):
    task = noting(as_bits, size)
    seen = sets_of(cross_fitted_losses(make_config(batch_size=2), task, Prepared()))
    assert all(example not in ids for example, ids in enumerate(seen))
    assert {len(ids) for ids in seen} == {size // 2, size // 2 + 1}


def test_the_seed_decides_the_halves():
    losses = [
        cross_fitted_losses(make_config(seed=seed), noting(as_bits), Prepared())
        for seed in (0, 0, 1)
    ]
    assert losses[0].dtype == np.float32 and losses[0].shape == (SIZE,)
    np.testing.assert_array_equal(losses[0], losses[1])
    assert np.any(losses[0] != losses[2])


@pytest.mark.parametrize(("budget", "share", "steps"), [(1.0, 0.2, 40), (0.5, 0.1, 10)])
def test_a_reference_takes_its_share_of_the_budget_and_its_schedule_too(budget, share, steps):
    """Each step adds the rate of that step in all: half of the first, when it decays to zero."""
    config = make_config(budget=budget, reference_budget=share)
    config.optimizer_options = {"momentum": None}
    cost = Prepared()
    totals = cross_fitted_losses(config, noting(jnp.sum), cost)
    rates = 0.1 * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    np.testing.assert_allclose(totals, rates.sum(), rtol=1e-5)
    assert (cost.examples_forward, cost.examples_backward) == (2 * steps * 4 + SIZE, 2 * steps * 4)
    assert cost.seconds > 0 and cost.compile_seconds > 0
    assert config.budget == budget  # the run's own is left as it was


def test_costs_add_up():
    cost = Prepared(seconds=100.0, compile_seconds=50.0, examples_forward=7, examples_backward=5)
    cross_fitted_losses(make_config(), noting(as_bits), cost)
    assert cost.seconds > 100 and cost.compile_seconds > 50
    assert cost.examples_forward == 7 + 2 * 40 * 4 + SIZE
    assert cost.examples_backward == 5 + 2 * 40 * 4


def test_a_batch_larger_than_half_of_the_data_is_all_of_the_half():
    cost = Prepared()
    config = make_config(batch_size=16, pool_size=16)
    seen = sets_of(cross_fitted_losses(config, noting(as_bits), cost))
    assert {len(ids) for ids in seen} == {10}
    assert cost.examples_backward == 2 * 40 * 10


def random_labels(size=48, classes=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 30)).astype(np.float32)
    part = {"x": x, "label": rng.integers(0, classes, size).astype(np.int32)}
    return from_arrays(part, part, classes)


def test_of_random_labels_a_reference_knows_nothing_though_it_knows_its_own():
    """A network that memorises what it is trained on is no better than chance on the rest."""
    task = tasks.classification(random_labels(), networks.MLP(4, hidden=(64,)))
    config = make_config(batch_size=8, num_steps=1000)
    states, train = [], reference_models._train

    def noted(*arguments):
        states.append(train(*arguments))
        return states[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_models, "_train", noted)
        losses = cross_fitted_losses(config, task, Prepared())
    assert losses.mean() > np.log(4)
    by_each = np.stack([task.score_fn(s.params, None, task.dataset.train) for s in states])
    seen = by_each.min(axis=0)
    assert len(states) == 2 and seen.max() < 0.1 < losses.mean() / 10
    # And each has the loss of the model that is not the one that knows it.
    np.testing.assert_allclose(losses, by_each.max(axis=0), rtol=1e-4, atol=0.01)


# EL2N.


def el2n_by_hand(params, part):
    layers = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    hidden = part["x"] @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"]
    logits = np.maximum(hidden, 0) @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = exponential / exponential.sum(axis=1, keepdims=True)
    return np.linalg.norm(probs - np.eye(4)[part["label"]], axis=1)


@pytest.mark.parametrize("networks_trained", [2, 3])
def test_el2n_is_the_mean_over_networks_of_the_length_of_softmax_less_label(networks_trained):
    task = tasks.classification(random_labels(), networks.MLP(4, hidden=(8,)))
    config, cost = make_config(method="el2n", num_steps=50, eval_batch_size=13), Prepared()
    states, train = [], reference_models._train

    def noted(*arguments):
        states.append(train(*arguments))
        return states[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_models, "_train", noted)
        scores = early_el2n(config, task, cost, networks=networks_trained)
    by_each = np.stack([el2n_by_hand(state.params, task.dataset.train) for state in states])
    assert len(by_each) == networks_trained and np.all(by_each.std(axis=0) > 0)  # each its own
    np.testing.assert_allclose(scores, by_each.mean(axis=0), rtol=1e-4)
    assert scores.dtype == np.float32 and scores.shape == (48,)
    assert cost.examples_backward == networks_trained * 10 * 4
    assert cost.examples_forward == networks_trained * (10 * 4 + 48)
    assert cost.seconds > 0 and cost.compile_seconds > 0
    again = early_el2n(config, task, Prepared(), networks=networks_trained)
    np.testing.assert_array_equal(again, scores)


@pytest.mark.parametrize("missing", ["output_fn", "label_fn"])
def test_el2n_without_logits_or_classes_is_refused(missing):
    task = tasks.classification(random_labels(), networks.MLP(4, hidden=(8,)))
    with pytest.raises(ConfigError, match="el2n needs classes; choose another method"):
        early_el2n(make_config(method="el2n"), task._replace(**{missing: None}), Prepared())


# Making and keeping.


def test_two_methods_need_something_made_unless_it_is_given():
    wanted = {name: set(placeholders(make_config(method=name), 2)) for name in recipes.__all__}
    wanted = {name: names for name, names in wanted.items() if names}
    assert wanted == {"reducible_loss": {"reference"}, "el2n": {"scores"}}
    assert placeholders(make_config(method_options={"reference": [1.0, 2.0]}), 2) == {}
    zeros = placeholders(make_config(method_options={"k": 0.5}), 2)
    assert set(zeros) == {"reference"} and zeros["reference"].shape == (2,)


def test_what_needs_nothing_costs_nothing(tmp_path):
    prepared = prepare(make_config(method="last_loss"), noting(as_bits), tmp_path)
    assert prepared == Prepared() and not list(tmp_path.iterdir())


def test_what_was_made_is_kept_and_not_made_again(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    first = prepare(make_config(), noting(as_bits), folder)
    assert list(first.arrays) == ["reference"] and (folder / "prepared.npz").exists()
    expected = cross_fitted_losses(make_config(), noting(as_bits), Prepared())
    np.testing.assert_array_equal(first.arrays["reference"], expected)
    monkeypatch.setattr(reference_models, "_train", lambda *_: pytest.fail("made again"))
    again = prepare(make_config(), noting(as_bits), folder)
    np.testing.assert_array_equal(again.arrays["reference"], expected)
    for name in ("seconds", "compile_seconds", "examples_forward", "examples_backward"):
        kept, made = getattr(again, name), getattr(first, name)
        assert kept == made > 0 and type(kept) is type(made)


@pytest.mark.parametrize("how", ["cut", "pickle"])
def test_what_was_made_and_is_damaged_is_made_anew(tmp_path, capfd, how):
    first = prepare(make_config(), noting(as_bits), tmp_path)
    damage(tmp_path / "prepared.npz", how)
    again = prepare(make_config(), noting(as_bits), tmp_path)
    np.testing.assert_array_equal(again.arrays["reference"], first.arrays["reference"])
    note = f"note: {tmp_path}/prepared.npz is damaged"
    assert capfd.readouterr().err.count(note) == 1


@pytest.mark.parametrize("number", [0, 1, 39, 40, 79])
def test_asked_to_stop_it_keeps_nothing(tmp_path, number):
    """Asked before each step of each of two models, of 40 steps."""
    asked = itertools.count()
    with pytest.raises(PreparationStopped):
        prepare(make_config(), noting(as_bits), tmp_path, lambda: next(asked) >= number)
    assert next(asked) == number + 1 and not list(tmp_path.iterdir())


def test_what_never_asks_to_stop_is_asked_before_each_step(tmp_path):
    asked = itertools.count()
    prepare(make_config(), noting(as_bits), tmp_path, lambda: next(asked) < 0)
    assert next(asked) == 80
