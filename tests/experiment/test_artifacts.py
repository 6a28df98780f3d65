import contextlib
import itertools
import json
import os
from typing import NamedTuple

import jax
import numpy as np
import pytest
from test_draw_statistics import AS_FOR_USERS

from isjax import experiment
from isjax.data.dataset import from_arrays
from isjax.experiment import _run, artifacts
from isjax.experiment.config import default_config
from isjax.reporting.timeline import PARTS

pytestmark = pytest.mark.slow  # whole runs

N, b, B, STEPS = 40, 8, 16, 30
FILES = ("draws.npz", "examples.npz", "time.json")


def make_dataset():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 6)).astype(np.float32)
    part = {"x": x, "label": x[:, :3].argmax(axis=1).astype(np.int32)}
    return from_arrays(part, part, 3, class_names=("cat", "dog", "owl"))


def make_config(**settings):
    config = default_config()
    config.update({"network": "MLP", "network_options": {"hidden": (8,)}, "method": "last_loss"})
    config.update({"num_steps": STEPS, "num_evals": 3, "batch_size": b, "pool_size": B})
    config.update({"learning_rate": 0.1, "log_every": 10} | settings)
    return config


def compile_step_as_for_users(patch):
    """Of two programs, which then round alike."""
    compile = jax.stages.Lowered.compile
    patch.setattr(jax.stages.Lowered, "compile", lambda lowered: compile(lowered, AS_FOR_USERS))


class Told(NamedTuple):
    folder: object
    draws: list  # by on_draw
    states: dict  # parameters by the step of an evaluation
    costs: list  # results of timeline.time_by_part


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run whose draws and evaluations were watched, by other means than the record."""
    folder, draws, states, costs = tmp_path_factory.mktemp("run"), [], {}, []

    def watch(state):
        states[int(state.step)] = jax.tree.map(np.asarray, state.params)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        compile_step_as_for_users(patch)
        measure = artifacts.timeline.time_by_part
        patch.setattr(
            artifacts.timeline, "time_by_part", lambda *a: costs.append(measure(*a)) or costs[-1]
        )
        experiment.run(
            make_config(),
            folder,
            make_dataset(),
            on_draw=lambda step, draw: draws.append(draw),
            on_evaluation=watch,
        )
    return Told(folder, draws, states, costs)


def arrays_of(folder, name):
    with np.load(folder / name) as arrays:
        return dict(arrays)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def counted(draws):
    count = np.zeros(N, int)
    for draw in draws:
        np.add.at(count, draw.ids, 1)
    return count


def test_draws_are_those_that_were_made(told):
    found = arrays_of(told.folder, "draws.npz")
    assert len(told.draws) == STEPS
    np.testing.assert_array_equal(found["count"], counted(told.draws))
    scores, probs = (
        np.concatenate([getattr(draw, name) for draw in told.draws])
        for name in ("scores", "draw_probs")
    )
    # Pairs, in whatever order.
    made = np.stack([scores, probs * np.float32(B)])
    kept = np.stack([found["scores"], found["probs"]])
    assert kept.shape == (2, STEPS * b) and found["losses"].shape == (STEPS * b,)
    np.testing.assert_array_equal(kept[:, np.lexsort(kept)], made[:, np.lexsort(made)])


def test_recorded_losses_have_the_means_that_the_run_wrote(told):
    lines = [json.loads(s) for s in (told.folder / "training.jsonl").read_text().splitlines()]
    losses = arrays_of(told.folder, "draws.npz")["losses"]
    # Each line is a mean of ten steps, of as many losses: their mean is that of all.
    assert losses.mean() == pytest.approx(np.mean([line["batch_loss"] for line in lines]), rel=1e-5)


def test_coverage_is_the_share_drawn_up_to_each_evaluation(told):
    lines = lines_of(told.folder)
    assert [line["step"] for line in lines] == [0, 10, 20, 30]
    expected = [np.mean(counted(told.draws[: line["step"]]) > 0) for line in lines]
    assert [line["coverage"] for line in lines] == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[1] < 1


def test_examples_are_those_drawn_most_and_least_with_what_the_model_makes_of_them(told):
    found, train = arrays_of(told.folder, "examples.npz"), make_dataset().train
    count, ids = counted(told.draws), found["ids"]
    np.testing.assert_array_equal(found["count"], count[ids])
    np.testing.assert_array_equal(count[ids[: N // 2]], np.sort(count)[::-1][: N // 2])
    assert sorted(ids) == list(range(N))  # half of the data set, and the other half
    np.testing.assert_array_equal(found["x"], train["x"][ids])
    layers = told.states[STEPS]
    x = np.maximum(found["x"] @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    logits = (x @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]).astype(float)
    of_label = logits[np.arange(N), train["label"][ids]]
    expected = np.log(np.exp(logits).sum(axis=1)) - of_label
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-4, atol=1e-6)
    names = np.array(["cat", "dog", "owl"])
    np.testing.assert_array_equal(found["label"], names[train["label"][ids]])
    np.testing.assert_array_equal(found["prediction"], names[logits.argmax(axis=1)])


def test_time_is_measured_once_after_the_first_steps(told):
    found = json.loads((told.folder / "time.json").read_text())
    (costs,) = told.costs
    assert found["step"] == 10 and list(found["seconds"]) == list(PARTS)
    assert found["seconds"] == {part: cost.seconds for part, cost in costs.items()}
    assert 0 < found["seconds"]["train"] < 1


def test_twenty_steps_are_measured_however_many_a_call_takes(tmp_path, monkeypatch):
    """A trace holds each operation of each step: 10,000 steps took 5.4 GB."""
    measured, asked, compile_steps = [], [], _run.compile_steps
    monkeypatch.setattr(
        artifacts.timeline,
        "time_by_part",
        lambda call, program, most: measured.append((int(call().step), most)),
    )
    monkeypatch.setattr(
        _run, "compile_steps", lambda *args: asked.append(args[-1]) or compile_steps(*args)
    )
    config = make_config(num_steps=60, num_evals=2, steps_per_call=10**5, checkpoint_every=0)
    experiment.run(config, tmp_path, make_dataset())
    assert measured == [(30 + 1, 20)] and asked == [30]


def test_half_a_file_is_never_there(tmp_path, monkeypatch):
    """As when the process is killed just before the file is complete."""
    replace = os.replace

    def killed(part, path):
        if path.name == "time.json":
            raise KeyboardInterrupt
        replace(part, path)

    monkeypatch.setattr(artifacts.timeline, "time_by_part", lambda *_: None)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(make_config(), tmp_path, make_dataset())
    assert (tmp_path / "draws.npz").exists() and not (tmp_path / "time.json").exists()


def untimed(folder, *without):
    return [
        {k: v for k, v in line.items() if not k.endswith("seconds") and k not in without}
        for line in lines_of(folder)
    ]


def test_a_run_without_artifacts_writes_none_and_every_number_is_the_same(
    told, tmp_path, monkeypatch
):
    """So measuring the time, on a copy, has trained nothing."""
    compile_step_as_for_users(monkeypatch)
    experiment.run(make_config(artifacts=False), tmp_path, make_dataset())
    assert not any((tmp_path / name).exists() for name in FILES)
    assert untimed(tmp_path) == untimed(told.folder, "coverage")
    assert "coverage" not in lines_of(tmp_path)[0]
    assert all((told.folder / name).exists() for name in FILES)


@pytest.mark.slow
def test_several_steps_a_call_and_a_run_stopped_and_resumed_write_the_same(
    told, tmp_path, monkeypatch
):
    """Stopped between two evaluations, so that its record comes out of a checkpoint."""

    @contextlib.contextmanager
    def stopped():
        asked = itertools.count()
        yield lambda: next(asked) >= 15
        raise SystemExit(0)

    monkeypatch.setattr(artifacts.timeline, "time_by_part", lambda *_: None)  # cannot be told
    config = make_config(steps_per_call=3, checkpoint_every=7)
    with monkeypatch.context() as patch:
        patch.setattr(_run, "stop_on_signal", stopped)
        with pytest.raises(SystemExit):
            experiment.run(config, tmp_path, make_dataset())
    assert 0 < len(lines_of(tmp_path)) < 4
    experiment.run(config, tmp_path, make_dataset())
    whole, parts = (arrays_of(folder, "draws.npz") for folder in (told.folder, tmp_path))
    np.testing.assert_array_equal(parts["count"], whole["count"])
    for name in ("scores", "losses", "probs"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, err_msg=name)
    assert json.loads((tmp_path / "time.json").read_text())["seconds"] is None
    assert untimed(tmp_path)[-1]["coverage"] == untimed(told.folder)[-1]["coverage"]


def test_a_data_set_of_two_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts.timeline, "time_by_part", lambda *_: None)
    part = {"x": np.ones((2, 2), np.float32), "label": np.zeros(2, np.int32)}
    config = make_config(batch_size=1, pool_size=1, num_steps=4, num_evals=1, checkpoint_every=0)
    last = experiment.run(config, tmp_path, from_arrays(part, part, 2))
    assert arrays_of(tmp_path, "draws.npz")["count"].sum() == 4 and last["coverage"] > 0
    assert sorted(arrays_of(tmp_path, "examples.npz")["ids"]) == [0, 1]


def test_the_share_of_the_draws_from_each_source_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts.timeline, "time_by_part", lambda *_: None)
    source = np.repeat([0, 1], [30, 10])
    part = {**make_dataset().train, "source": source}
    dataset = from_arrays(part, part, 3, source_names=("prose", "verse"))
    config = make_config(num_steps=8, num_evals=1, checkpoint_every=0)
    draws = []
    experiment.run(config, tmp_path, dataset, on_draw=lambda step, draw: draws.append(draw.ids))
    first, last = lines_of(tmp_path)
    share = np.mean(source[np.concatenate(draws)])
    assert (first["drawn_prose"], first["drawn_verse"]) == (0, 0)
    assert (last["drawn_prose"], last["drawn_verse"]) == pytest.approx((1 - share, share))
