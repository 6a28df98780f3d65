import contextlib
import functools
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BY_CONFIG, assert_binomial

from isjax import data, experiment, tasks
from isjax.base import Draw
from isjax.experiment import _run, components
from isjax.experiment.config import ConfigError, default_config
from isjax.training import init_train_state, make_train_step

pytestmark = pytest.mark.slow  # whole runs; test_main.py has a quick one

METHODS = {"uniform": 1, "last_loss": 1, "learned_loss": 1, "biased_loss": 3}  # forward passes / b


def make_dataset(num=300, nan=0):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, 8)).astype(np.float32)
    label = (x[:, :3] + 0.1 * rng.normal(size=(num, 3))).argmax(axis=1).astype(np.int32)
    part = {"x": x, "label": label}
    made = data.from_arrays(part, {name: value[-100:] for name, value in part.items()}, 3)
    x = x.copy()  # from_arrays refuses numbers that are not finite
    x[:nan] = np.nan
    return made._replace(train=part | {"x": x})


def make_config(**settings):
    config = default_config()
    config.artifacts = False
    config.update(
        {"network": "MLP", "network_options": {"hidden": (16,)}, "num_steps": 60, "num_evals": 3}
    )
    config.update({"batch_size": 16, "pool_size": 32, "learning_rate": 0.1, "log_every": 10})
    config.update(settings)
    return config


def lines_of(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


@contextlib.contextmanager
def stopped_after(number):
    """Stands for `stop_on_signal`: says to stop when it has been asked `number` times before."""
    asked = itertools.count()
    yield lambda: next(asked) >= number
    raise SystemExit(0)


def untimed(workdir):
    """All that a run writes, but for the times."""
    return {
        name: [
            {k: v for k, v in line.items() if not k.endswith("seconds")}
            for line in lines_of(workdir, name)
        ]
        for name in ("metrics.jsonl", "training.jsonl")
    }


def length(state):
    return float(sum(jnp.sum(x**2) for x in jax.tree.leaves(state.params)))


@pytest.fixture(scope="module")
def evaluated():
    """Steps of the states that `on_evaluation` got in the run of `finished`."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, evaluated):
    """The folder of a finished run of make_config(); tests must not write there."""
    folder = tmp_path_factory.mktemp("finished") / "run"

    def further(state):
        evaluated.append(int(state.step))
        return {"length": length(state)}

    experiment.run(make_config(), folder, make_dataset(), on_evaluation=further)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs `make_interrupted(method)` once, without an interruption; returns the folder."""

    @functools.cache
    def run(method):
        folder = tmp_path_factory.mktemp("whole") / method
        experiment.run(make_interrupted(method), folder, make_dataset())
        return folder

    return run


def make_interrupted(method, **settings):
    return make_config(method=method, checkpoint_every=25, log_every=7, **settings)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_writes_its_files(tmp_path, method, capsys):
    config = make_config(method=method, seed=3)
    last = experiment.run(config, tmp_path / "run", make_dataset())
    written = json.loads((tmp_path / "run/config.json").read_text())
    assert written == json.loads(json.dumps(config.to_dict()))
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 20, 40, 60]
    assert lines[-1] == last
    assert last["train_loss"] < 0.7 * lines[0]["train_loss"]
    assert last["test_accuracy"] > 0.7
    assert lines[0]["seconds"] == 0 < lines[1]["seconds"] < last["seconds"]
    assert last["compile_seconds"] > 0 and last["eval_seconds"] > 0
    assert last["examples_backward"] == 60 * 16
    assert last["examples_forward"] == 60 * 16 * METHODS[method]
    diagnostics = {"loss", "ess", "max_weight", "unique", "score_correlation", "score_error"}
    assert all(diagnostics <= line.keys() for line in lines[1:])
    assert ("last_loss_error" in last) == (method in ("last_loss", "learned_loss"))
    assert last["nonfinite"] == last["skipped"] == 0
    assert f"{method}, seed 3" in capsys.readouterr().out


def test_diagnostics_are_means_over_the_steps_since_the_last_line(finished):
    """Of the uniform recipe the ess and the largest weight are one at every step."""
    for line in lines_of(finished)[1:]:
        assert line["ess"] == pytest.approx(1, rel=1e-5) and line["max_weight"] == 1


def test_another_seed_makes_another_run(tmp_path, whole):
    """The same seed makes the same, even if it is interrupted; see below."""
    experiment.run(make_interrupted("last_loss", seed=1), tmp_path, make_dataset())
    assert untimed(tmp_path) != untimed(whole("last_loss"))


def test_nan_losses_are_counted_and_the_run_goes_on(tmp_path, capsys):
    config = make_config(method="last_loss", max_skipped=1.0)
    last = experiment.run(config, tmp_path, make_dataset(nan=5))
    assert last["nonfinite"] >= last["skipped"] > 0
    assert last["step"] == 60 and last["test_loss"] < 0.7 and last["test_accuracy"] > 0.7
    assert last["train_loss"] < 0.7 and last["train_left_out"] == 5
    out = capsys.readouterr().out
    skipped = f"{last['skipped']} of 60 steps skipped"
    assert f"NOT FINITE: {last['nonfinite']} losses, {skipped}" in out
    assert "note: train: examples 0, 1, 2, 3, 4 are not finite, and left out of the means;" in out


def test_a_run_that_skips_too_many_steps_ends_in_an_error_with_all_files_written(tmp_path):
    message = r"\d+ of 60 steps were skipped.* more than config.max_skipped = 0.1 of them; repair"
    for _ in range(2):  # the same command says so again
        with pytest.raises(FloatingPointError, match=message):
            experiment.run(make_config(), tmp_path, make_dataset(nan=20))
        last = lines_of(tmp_path)[-1]
        assert last["step"] == 60 and last["skipped"] > 6 and last["train_accuracy"] > 0.7
    config = make_config(max_skipped=last["skipped"] / 60)
    run = functools.partial(experiment.run, allow_config_changes=True)
    assert run(config, tmp_path, make_dataset(nan=20)) == last


def test_a_run_that_learns_nothing_more_stops_and_keeps_its_lines(tmp_path):
    """At a rate so high that soon every loss is infinite or NaN, though the parameters are not."""
    message = "stopped at step 30: each of the 15 steps since .* was skipped, .*; lower the"
    for method in ("uniform", "default"):
        config = make_config(method=method, learning_rate=1e30, num_evals=4)
        with pytest.raises(FloatingPointError, match=message):
            experiment.run(config, tmp_path / method, make_dataset())
        first, *_, last = lines_of(tmp_path / method)
        assert np.isfinite(first["train_loss"]) and not np.isfinite(last["train_loss"])
        assert last["step"] == 30 and 15 < last["skipped"] < 30


def test_a_run_that_learns_nothing_more_goes_on_if_asked(tmp_path):
    config = make_config(learning_rate=1e30, stop_on_nonfinite=False, max_skipped=1.0)
    assert experiment.run(config, tmp_path, make_dataset())["step"] == 60


def test_the_same_run_again_trains_no_more(copy, capsys):
    before = (copy / "metrics.jsonl").read_bytes()
    assert experiment.run(make_config(), copy, make_dataset()) == lines_of(copy)[-1]
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert f"{copy} holds this run, finished" in capsys.readouterr().out


def test_a_workdir_of_another_config_is_refused_with_the_settings_that_differ(copy):
    before = (copy / "metrics.jsonl").read_bytes()
    other = make_config(seed=1, network_options={"hidden": (8,)})
    with pytest.raises(ConfigError) as error:
        experiment.run(other, copy, make_dataset())
    assert "config.network_options.hidden was [16] and is [8]" in str(error.value)
    assert "config.seed was 0 and is 1; choose another --workdir" in str(error.value)
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_a_run_goes_on_under_another_config_if_told_so(copy):
    longer = make_config(num_steps=80, num_evals=4)
    experiment.run(longer, copy, make_dataset(), allow_config_changes=True)
    assert [line["step"] for line in lines_of(copy)] == [0, 20, 40, 60, 80]
    assert json.loads((copy / "config.json").read_text())["num_steps"] == 80


def test_a_checkpoint_that_does_not_fit_is_refused_and_the_run_left_as_it_was(copy):
    last = lines_of(copy)[-1]
    other = make_config(network_options={"hidden": (8,)})
    message = r"does not fit this config: .* in the checkpoint of step 60"
    with pytest.raises(ConfigError, match=message):
        experiment.run(other, copy, make_dataset(), allow_config_changes=True)
    assert experiment.run(make_config(), copy, make_dataset()) == last


@pytest.fixture(scope="module")
def without_checkpoints(tmp_path_factory):
    """The config and folder of two steps of a method that has a pool of its own."""
    config = make_config(method="default", pool_size=10_000, num_steps=2, num_evals=1)
    config.checkpoint_every = 0
    folder = tmp_path_factory.mktemp("without_checkpoints")
    experiment.run(config, folder, make_dataset())
    return config, folder


def test_without_checkpoints_a_workdir_that_holds_a_run_is_refused(without_checkpoints):
    config, folder = without_checkpoints
    assert not (folder / "checkpoints").exists()
    with pytest.raises(ConfigError, match="already holds a run, without checkpoints; choose"):
        experiment.run(config, folder, make_dataset())


@pytest.mark.parametrize(("method", "stops"), [("last_loss", (1, 9, 34)), ("learned_loss", (20,))])
def test_a_run_stopped_and_resumed_writes_what_a_whole_one_does(
    tmp_path, monkeypatch, whole, method, stops
):
    """Wherever it is stopped: a stop is how often the loop asks whether to before it is told so."""
    for number in stops:
        monkeypatch.setattr(_run, "stop_on_signal", functools.partial(stopped_after, number))
        with pytest.raises(SystemExit):
            experiment.run(make_interrupted(method), tmp_path, make_dataset())
        assert all(line["step"] < 60 for line in lines_of(tmp_path))
    monkeypatch.undo()
    experiment.run(make_interrupted(method), tmp_path, make_dataset())
    assert untimed(tmp_path) == untimed(whole(method))


def test_steps_per_call_change_no_number(tmp_path):
    """Whether or not they divide the steps between evaluations, checkpoints and lines."""
    for name, number in (("one", 1), ("seven", 7), ("many", 1000)):
        config = make_config(steps_per_call=number, checkpoint_every=25, log_every=6)
        experiment.run(config, tmp_path / name, make_dataset())
    one, seven, many = (untimed(tmp_path / name) for name in ("one", "seven", "many"))
    assert seven == many  # the same program
    for kind in one:
        assert [line["step"] for line in one[kind]] == [line["step"] for line in seven[kind]]
        for ours, theirs in zip(one[kind], seven[kind], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_lines_of_diagnostics_average_the_steps_before_them(finished):
    lines = lines_of(finished, "training.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    of_both = np.reshape([line["loss"] for line in lines], (3, 2)).mean(axis=1)
    assert of_both == pytest.approx([line["loss"] for line in lines_of(finished)[1:]])


def test_a_budget_shortens_the_run_and_its_schedule(tmp_path):
    """Half of the steps: the rate has decayed, as if they were all the run was to take."""
    experiment.run(make_config(budget=0.5), tmp_path / "half", make_dataset())
    experiment.run(make_config(num_steps=30), tmp_path / "short", make_dataset())
    assert untimed(tmp_path / "half") == untimed(tmp_path / "short")


@pytest.mark.parametrize("method", ["learned_loss", "biased_loss"])
def test_a_task_of_ones_own_with_tuples_for_batches(tmp_path, method):
    rng = np.random.default_rng(0)
    image, vector = rng.normal(size=(2, 200, 4)).astype(np.float32)
    target = (image[:, 0] + vector[:, 1]).astype(np.float32)
    part = ((image, vector), target)

    def losses(params, model_state, batch):
        (image, vector), target = batch
        return (image @ params[0] + vector @ params[1] - target) ** 2

    task = tasks.Task(
        data.from_arrays(part, part),
        init=lambda key: ((jnp.zeros(4), jnp.zeros(4)), None),
        loss_fn=lambda params, state, batch, key: (losses(params, state, batch), state),
        score_fn=losses,
        metrics_fn=lambda *args: {"loss": losses(*args)},
    )
    last = experiment.run(make_config(method=method), tmp_path, task=task)
    assert last["test_loss"] < 0.1 and "test_accuracy" not in last


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method_options": {"kk": 1.0}, "method": "last_loss"},
            "kk is not an option of last_loss",
        ),
        ({"method_options": {"k": 2.0}, "method": "last_loss"}, "k is 2.0; choose k <= 1"),
        ({"method_options": {"k": 0.5}, "method": "uniform"}, "k is not an option of uniform"),
        ({"method_options": {"batch_size": 9}}, "batch_size is decided by the run"),
        ({"network_options": {"hiden": (3,)}}, "did you mean hidden"),
        ({"optimizer_options": {"momentun": 0.9}}, "did you mean momentum"),
        ({"pool_size": 301}, "pool_size is 301; choose one between .* 16, and the 300 examples"),
        ({"pool_size": 15}, "pool_size is 15; choose one between config.batch_size, which is 16"),
        ({"num_evals": 0}, "num_evals is 0; choose at least 1"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        experiment.run(make_config(**settings), tmp_path / "run", make_dataset())
    assert not (tmp_path / "run").exists()


def test_a_method_with_a_pool_of_its_own_asks_for_none(without_checkpoints):
    config, folder = without_checkpoints
    assert config.pool_size > 300 and lines_of(folder)[-1]["step"] == 2


def test_a_mistake_that_only_the_step_finds_does_not_spoil_the_folder(tmp_path):
    """Nothing is written of a config that cannot be trained, so that the next one may use it."""
    bad = make_config(augment=("flip",))
    with pytest.raises(
        ConfigError, match=r"cannot take data such as .*flip: the shape is \(2, 8\)"
    ):
        experiment.run(bad, tmp_path, make_dataset())
    good = make_config(num_steps=2, num_evals=1)
    assert experiment.run(good, tmp_path, make_dataset())["step"] == 2


def test_a_finished_run_without_its_checkpoints_is_not_erased(copy):
    shutil.rmtree(copy / "checkpoints")
    before = lines_of(copy)
    with pytest.raises(ConfigError, match="already holds a run, without checkpoints"):
        experiment.run(make_config(), copy, make_dataset())
    assert lines_of(copy) == before


def test_totals_and_means_hold_when_the_config_changes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(_run, "stop_on_signal", functools.partial(stopped_after, 18))
        experiment.run(make_config(num_evals=1, log_every=10), tmp_path, make_dataset())
    changed = make_config(num_evals=1, log_every=25, batch_size=8)
    last = experiment.run(changed, tmp_path, make_dataset(), allow_config_changes=True)
    # Asked before each call, and in the evaluation and after it: 18 times are some 12 steps.
    assert 60 * 8 + 10 * 8 < last["examples_backward"] < 60 * 8 + 18 * 8
    assert lines_of(tmp_path, "training.jsonl")[1]["ess"] == pytest.approx(1, rel=1e-5)


def test_a_run_stopped_at_nan_goes_on_when_the_data_are_mended(tmp_path):
    config = make_config(checkpoint_every=10, num_evals=2, max_skipped=0.5)
    with pytest.raises(FloatingPointError):
        experiment.run(config, tmp_path, make_dataset(nan=200))
    assert experiment.run(config, tmp_path, make_dataset())["step"] == 60


# Every method, and what it costs.

STEPS, BATCH, POOL, EXAMPLES = 50, 16, 32, 300
SCORING = {  # forward passes of each step besides those of the batch; the others have none
    "biased_loss": POOL,
    "companion_loss": POOL + 3 * BATCH // 4,  # of the same network, trained on a quarter
    "grad_norm": 3 * POOL,  # a forward and a backward pass of each
    "selective_backprop": 4 * BATCH,
    "reducible_loss": POOL,
}
# Two reference models of two steps each: of half of the data, or of all; each example scored.
REFERENCES = {
    "reducible_loss": (2 * 2 * BATCH + EXAMPLES, 2 * 2 * BATCH),
    "el2n": (2 * (2 * BATCH + EXAMPLES), 2 * 2 * BATCH),
}


def make_short(**settings):
    config = make_config(num_steps=STEPS, num_evals=2, checkpoint_every=0, learning_rate=0.03)
    config.reference_budget = 0.04
    network = {"hidden": (4,)}
    config.update({"network_options": network, "companion": "MLP", "companion_options": network})
    config.update(settings)
    return config


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Runs `make_short(method=method)` once; returns the folder."""

    @functools.cache
    def run(method):
        folder = tmp_path_factory.mktemp("short") / method
        options = {"keep": 0.9} if method == "el2n" else {}  # half of the data is too few
        config = make_short(method=method, method_options=options)
        experiment.run(config, folder, make_dataset())
        return folder

    return run


@pytest.mark.parametrize("method", BY_CONFIG)
def test_every_method_trains_and_its_examples_are_counted(short, method):
    folder = short(method)
    first, _, last = lines_of(folder)
    assert last["step"] == STEPS and last["nonfinite"] == last["skipped"] == 0
    assert all(np.isfinite(value) for line in lines_of(folder) for value in line.values())
    assert last["train_loss"] < first["train_loss"]
    forward, backward = REFERENCES.get(method, (0, 0))
    assert (first["examples_forward"], first["examples_backward"]) == (forward, backward)
    assert (first["seconds"] > 0) == (first["examples_forward"] > 0)
    assert last["examples_forward"] == forward + STEPS * (BATCH + SCORING.get(method, 0))
    assert last["examples_backward"] == backward + STEPS * BATCH
    assert last["seconds"] > first["seconds"]
    assert (folder / "prepared.npz").exists() == (method in REFERENCES)


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"proportions": (2, 3, 5)}, (0.2, 0.3, 0.5)),
        ({"proportions": (1, 0, 0), "final_proportions": (0, 0, 1)}, (0.51, 0, 0.49)),  # half way
        ({"rate": 0.0}, (1 / 3, 1 / 3, 1 / 3)),  # learned, but deaf to losses
    ],
    ids=["given", "linear", "equal"],
)
def test_a_run_draws_each_source_in_its_proportion(tmp_path, options, shares):
    source = np.repeat([0, 1, 2], [180, 90, 30])
    made = make_dataset()
    dataset = made._replace(train={**made.train, "source": source}, source_names=("a", "b", "c"))
    config = make_short(method="by_source", method_options=options, pool_size=150)
    ids = []
    experiment.run(config, tmp_path, dataset, on_draw=lambda step, draw: ids.append(draw.ids))
    counts = np.bincount(source[np.concatenate(ids)], minlength=3)
    assert_binomial(counts, STEPS * BATCH, np.array(shares))


@pytest.mark.parametrize(
    ("gate", "options", "steps_open"),
    [("until", {"steps": 3}, 3), ("after", {"steps": 49}, 1), ("tau", {"threshold": 1e9}, 0)],
)
def test_a_closed_gate_scores_nothing(tmp_path, gate, options, steps_open):
    config = make_short(method="biased_loss", gate=gate, gate_options=options)
    last = experiment.run(config, tmp_path, make_dataset())
    assert last["examples_forward"] == STEPS * BATCH + steps_open * POOL


def test_an_evaluation_has_its_own_metrics_of_the_state(finished, evaluated):
    lines = lines_of(finished)
    assert evaluated == [line["step"] for line in lines] == [0, 20, 40, 60]
    assert len({line["length"] for line in lines}) == 4
    assert all("length" not in line for line in lines_of(finished, "training.jsonl"))


# What each step draws.


def by_hand(config, dataset, number):
    """The draws of a run's first steps, taken one at a time, and their losses."""
    task = components.make_task(config, dataset)
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    params, model_state = task.init(init_key)
    tx, sampler = components.make_optimizer(config), components.make_sampler(config, task)
    size = len(dataset.train["x"])
    state = init_train_state(state_key, params, tx, sampler, size, model_state)
    pool_size = None if sampler.own_pool else config.pool_size
    step = make_train_step(task.loss_fn, tx, sampler, pool_size=pool_size, with_draw=True)
    score_fn, train = jax.jit(task.score_fn), jax.device_put(dataset.train)
    for _ in range(number):
        params = jax.tree.map(jnp.copy, state.params)
        state, metrics = step(state, train)
        draw = jax.device_get(metrics["draw"])
        batch = jax.tree.map(lambda x: x[draw.ids], dataset.train)  # noqa: B023
        yield draw, np.asarray(score_fn(params, model_state, batch), np.float64)


@pytest.mark.parametrize(
    ("settings", "steps_per_call"),
    [({"method": "biased_loss"}, 4), ({"method": "last_loss", "weighting": "correcting"}, 1)],
    ids=["several steps a call", "weights of the losses"],
)
def test_what_each_step_drew_is_passed_on(tmp_path, settings, steps_per_call):
    """In order and once, as arrays of NumPy, with the weights as they were used."""
    seen = []
    config = make_config(num_steps=14, num_evals=3, log_every=4, checkpoint_every=0, **settings)
    config.steps_per_call = steps_per_call
    experiment.run(
        config, tmp_path, make_dataset(), on_draw=lambda step, draw: seen.append((step, draw))
    )
    assert [step for step, _ in seen] == list(range(1, 15))
    for (_, draw), (expected, losses) in zip(
        seen, by_hand(config, make_dataset(), 14), strict=True
    ):
        assert isinstance(draw, Draw)
        assert all(isinstance(x, np.ndarray | np.generic) for x in jax.tree.leaves(draw))
        np.testing.assert_array_equal(draw.ids, expected.ids)
        np.testing.assert_array_equal(draw.index, expected.index)
        for name in ("weights", "draw_probs", "scores", "ess"):
            np.testing.assert_allclose(getattr(draw, name), getattr(expected, name), rtol=1e-4)
        weights = (32 * draw.draw_probs.astype(np.float64)) ** -0.5
        if "weighting" in settings:
            weights = weights * np.clip(draw.scores / losses, 0, 2)
        np.testing.assert_allclose(draw.weights, weights, rtol=1e-3)
    weights = np.stack([draw.weights for _, draw in seen])
    assert np.ptp(weights[-1]) > 0.1 and weights.shape == (14, 16)


def test_a_run_told_of_draws_and_resumed_passes_on_each_once_and_changes_no_number(
    tmp_path, monkeypatch, whole
):
    seen = []
    run = functools.partial(
        experiment.run,
        make_interrupted("last_loss"),
        tmp_path,
        make_dataset(),
        on_draw=lambda step, draw: seen.append((step, draw.ids.tolist())),
    )
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(_run, "stop_on_signal", functools.partial(stopped_after, 25))
        run()
    assert 0 < len(seen) < 30
    run()
    assert [step for step, _ in seen] == list(range(1, 61))
    expected = by_hand(make_interrupted("last_loss"), make_dataset(), 30)
    assert [ids for _, ids in seen[:30]] == [draw.ids.tolist() for draw, _ in expected]
    told, untold = untimed(tmp_path), untimed(whole("last_loss"))
    for kind in told:
        for ours, theirs in zip(told[kind], untold[kind], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


# Wrong labels.


def test_a_run_trains_on_wrong_labels_and_is_tested_on_right_ones(tmp_path, short):
    """At the start a network knows no labels: the test is the same, the train loss is not."""
    experiment.run(make_short(label_noise=0.5), tmp_path, make_dataset())
    first, without = (lines_of(folder)[0] for folder in (tmp_path, short("uniform")))
    for name in ("test_loss", "test_accuracy"):
        assert first[name] == without[name]
    assert first["train_loss"] != without["train_loss"]
    x, label = (make_dataset().train[name] for name in ("x", "label"))
    noisy = components.make_task(make_short(label_noise=0.5), make_dataset()).dataset.train
    np.testing.assert_array_equal(noisy["x"], x)
    assert np.sum(noisy["label"] != label) == 150


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_noise": 2.0}, "label_noise is 2.0; choose a share"),
        ({"method": "reshuffled", "gate": "after", "gate_options": {"steps": 1}}, "reshuffled can"),
        ({"gate": "after"}, "gate_options"),
        ({"weighting": "biased", "weighting_options": {"k": 3}}, "k is 3; choose k <= 1"),
        (
            {"method": "selective_backprop", "method_options": {"beta": 30.0}},
            "a pool of 496 is mor",
        ),
        ({"augment": ("mixup",)}, r"mixup: the shape is \(2, 8\)"),
        ({"method": "el2n", "method_options": {"keep": 0.0}}, "keep is 0.0; choose a share"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        experiment.run(make_short(**settings), tmp_path / "run", make_dataset())
    assert not (tmp_path / "run").exists()


def test_a_method_of_classes_is_refused_where_there_are_none(tmp_path):
    """Before any reference model is trained, and by the error that the command shows in a line."""
    for method in ("grad_norm_bound", "per_class_gaussian", "el2n"):
        config = make_short(method=method, task="regression", dataset="friedman")
        config.network_options = {"hidden": ()}
        with pytest.raises(ConfigError, match=f"{method} needs .*; choose another method"):
            experiment.run(config, tmp_path / "run", data.friedman(64, 8))
        assert not (tmp_path / "run").exists()


# What is made before training.


def make_referenced(**settings):
    lengths = {"num_steps": 10, "num_evals": 1, "checkpoint_every": 4, "reference_budget": 0.4}
    return make_short(method="reducible_loss", **lengths | settings)


@pytest.fixture(scope="module")
def referenced(tmp_path_factory):
    """A run with reference models, never interrupted."""
    folder = tmp_path_factory.mktemp("referenced") / "whole"
    experiment.run(make_referenced(), folder, make_dataset())
    return folder


def test_a_run_stopped_while_preparing_begins_anew(tmp_path, monkeypatch, capsys, referenced):
    folder = tmp_path / "parts"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(_run, "stop_on_signal", functools.partial(stopped_after, 3))
        experiment.run(make_referenced(), folder, make_dataset())
    assert "asked to stop while preparing" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"lock"}
    experiment.run(make_referenced(), folder, make_dataset())
    assert untimed(folder) == untimed(referenced)


def test_a_run_stopped_after_preparing_does_not_prepare_again(
    tmp_path, monkeypatch, capsys, referenced
):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        # Two models of 4 steps are asked 8 times; the rest of the questions are the run's.
        patch.setattr(_run, "stop_on_signal", functools.partial(stopped_after, 8 + 12))
        experiment.run(make_referenced(), tmp_path, make_dataset())
    assert "preparing reference" in capsys.readouterr().out
    assert [line["step"] for line in lines_of(tmp_path)] == [0]
    experiment.run(make_referenced(), tmp_path, make_dataset())
    assert "preparing" not in capsys.readouterr().out
    assert untimed(tmp_path) == untimed(referenced)


def test_what_another_config_left_that_never_trained_is_not_taken(tmp_path, referenced):
    with np.load(referenced / "prepared.npz") as file:
        kept = dict(file)
    np.savez(tmp_path / "prepared.npz", **kept | {"reference": np.zeros(300, np.float32)})
    experiment.run(make_referenced(), tmp_path, make_dataset())
    with np.load(tmp_path / "prepared.npz") as file:
        np.testing.assert_array_equal(file["reference"], kept["reference"])
    assert untimed(tmp_path) == untimed(referenced)


def test_a_change_to_a_method_that_needs_something_else_is_made_for_it(tmp_path, referenced):
    """Or refused in words; what was made for the method before is not what is needed now."""
    shutil.copytree(referenced, tmp_path / "run")
    config = make_referenced()
    config.update({"method": "el2n", "num_steps": 20})
    with contextlib.suppress(ConfigError):
        run = functools.partial(experiment.run, allow_config_changes=True)
        assert run(config, tmp_path / "run", make_dataset())["step"] == 20
