"""The loop with a step that can be worked out by hand, files and checkpoints recorded in lists."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import recipes
from isjax.base import Draw, DrawInfo
from isjax.experiment.compiled_steps import compile_steps
from isjax.experiment.loop import Outputs, Plan, Progress, Work, describe, train
from isjax.training import TrainState, init_train_state

DATA = jnp.arange(5.0)


def make_state():
    sampler = recipes.uniform(batch_size=1)
    return init_train_state(jax.random.key(0), jnp.zeros(()), optax.identity(), sampler, 5)


@jax.jit
def count(state: TrainState, data):
    """Adds one to the parameters; the loss of a step is its number, the third costs one more."""
    state = state._replace(step=state.step + 1, params=state.params + 1)
    third = state.params == 3
    return state, {
        "loss": state.params,
        "skipped": third,
        "nonfinite": jnp.int32(0),
        "examples_forward": 7 + third,
        "examples_backward": jnp.int32(2),
    }


@jax.jit
def count_and_draw(state: TrainState, data):
    """Likewise; what it draws says which step drew it."""
    state, metrics = count(state, data)
    number = state.step
    ids, weights = jnp.stack([number, 10 * number]), jnp.full((2,), 0.5) * number
    info = DrawInfo(number, number / 2, number, number, number, number, number)
    draw = Draw(ids, ids, weights, weights, weights, None, info)
    return state, metrics | {"draw": draw}


class Recorder:
    """Stands for the writer and for the checkpoints."""

    def __init__(self):
        self.lines = []
        self.saved = []
        self.step = None

    def write(self, kind, line):
        self.lines.append((kind, line))

    def sizes(self):
        return {"lines": len(self.lines)}

    def save(self, state, progress, loss=math.inf):
        self.step = int(state.step)
        self.saved.append((self.step, loss))
        assert progress["step"] == self.step
        assert progress["files"] == {"lines": len(self.lines)}


def run(
    plan,
    steps_per_call=1,
    evaluate=None,
    stop=lambda: False,
    progress=None,
    state=None,
    step=count,
    on_draw=None,
):
    state = make_state() if state is None else state
    program = compile_steps(step, state, DATA, steps_per_call)
    recorder, progress = Recorder(), progress or Progress()
    evaluate = evaluate or (
        lambda state, stop: {"train_loss": 1.0, "test_loss": float(state.params)}
    )
    work = Work(program, itertools.repeat(DATA), evaluate)
    train(plan, work, Outputs(recorder, recorder, on_draw), state, progress, stop)
    return recorder, progress


def make_plan(**settings):
    plan = Plan(12, 3, log_every=5, checkpoint_every=6)
    return plan._replace(**settings)


@pytest.mark.parametrize("steps_per_call", [1, 2, 5, 100])
def test_what_is_written_and_saved_when(steps_per_call):
    recorder, progress = run(make_plan(), steps_per_call)
    lines = [(kind, line["step"]) for kind, line in recorder.lines]
    assert sorted(lines) == [
        *[("evaluation", step) for step in (0, 4, 8, 12)],
        *[("training", step) for step in (5, 10)],
    ]
    written = {(kind, line["step"]): line for kind, line in recorder.lines}
    assert written["training", 5]["loss"] == 3 and written["training", 10]["loss"] == 8
    assert written["evaluation", 4]["loss"] == 2.5 and written["evaluation", 8]["loss"] == 6.5
    assert [written["evaluation", step]["skipped"] for step in (0, 4, 12)] == [0, 1, 1]
    forward = [written["evaluation", step]["examples_forward"] for step in (0, 4, 8, 12)]
    assert forward == [0, 4 * 7 + 1, 8 * 7 + 1, 12 * 7 + 1]
    backward = [written["evaluation", step]["examples_backward"] for step in (0, 4, 8, 12)]
    assert backward == [0, 8, 16, 24]
    for line in (*forward, *backward, written["evaluation", 12]["skipped"]):
        assert type(line) is int
    assert not {"examples_forward", "examples_backward"} & written["training", 5].keys()
    # At 0 because it is the best so far, at 6 because it is due, at 12 because it is the end.
    assert recorder.saved == [(0, 0.0), (6, math.inf), (12, math.inf)]
    assert progress.step == 12 and progress.line == written["evaluation", 12]


@pytest.mark.parametrize("steps_per_call", [1, 2, 5, 100])
def test_each_draw_is_passed_on_once_in_order(steps_per_call):
    """Whether or not the calls divide the steps between pauses; without padding of a call."""
    seen = []
    on_draw = lambda step, draw: seen.append((step, draw))  # noqa: E731
    recorder, _ = run(make_plan(), steps_per_call, step=count_and_draw, on_draw=on_draw)
    assert [step for step, _ in seen] == list(range(1, 13))
    for step, draw in seen:
        assert isinstance(draw, Draw)
        assert all(isinstance(x, np.ndarray | np.generic) for x in jax.tree.leaves(draw))
        np.testing.assert_array_equal(draw.ids, [step, 10 * step])
        np.testing.assert_array_equal(draw.weights, [step / 2] * 2)
        assert draw.ess == step / 2 and draw.info.nonfinite == step and draw.ids.dtype == np.int32
    assert all("draw" not in line for _, line in recorder.lines)


def test_draws_that_nobody_asks_for_are_not_fetched(monkeypatch):
    fetched, fetch = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: (fetched.append(x), fetch(x))[1])
    run(make_plan(), 5, step=count_and_draw)
    assert fetched and all(draws is None for _, draws in fetched)


def test_who_loads_is_told_what_was_chosen_while_it_is_computed():
    """Each call is given its own data, and what it chose is passed on, not fetched."""

    def choosing(state, data):
        state, metrics = count(state, data)
        return state, metrics | {"chosen": jnp.arange(3) + 10 * state.step}

    state, told, taken = make_state(), [], iter(range(100))
    program = compile_steps(choosing, state, DATA, 1)
    feed = ((next(taken), DATA)[1] for _ in itertools.repeat(None))
    evaluate = lambda state, stop: {"train_loss": 0.0, "test_loss": 0.0}  # noqa: E731
    train(
        make_plan(checkpoint_every=0),
        Work(program, feed, evaluate),
        Outputs(Recorder(), on_chosen=told.append),
        state,
        Progress(),
        lambda: False,
    )
    assert next(taken) == len(told) == 12 and all(isinstance(ids, jax.Array) for ids in told)
    np.testing.assert_array_equal(told[4], [[50, 51, 52]])


def test_what_was_prepared_counts_from_the_start():
    """Progress may begin with examples and seconds that are paid for already."""
    before = {"examples_forward": 100, "examples_backward": 40}
    recorder, progress = run(make_plan(), progress=Progress(seconds=2.5, since_start=before))
    lines = [line for kind, line in recorder.lines if kind == "evaluation"]
    assert [line["examples_forward"] for line in lines] == [100, 129, 157, 185]
    assert [line["examples_backward"] for line in lines] == [40, 48, 56, 64]
    assert lines[0]["seconds"] == 2.5 and progress.seconds > 2.5


def test_the_best_is_saved_by_the_valid_loss_where_there_is_one():
    losses = iter([3.0, 1.0, 2.0, 0.5])
    evaluate = lambda state, stop: {"train_loss": 0.0, "test_loss": 0.0, "valid_loss": next(losses)}  # noqa: E731
    recorder, _ = run(make_plan(checkpoint_every=100), evaluate=evaluate)
    assert recorder.saved == [(0, 3.0), (4, 1.0), (12, 0.5)]


def test_a_loss_that_is_not_a_number_is_never_the_best():
    losses = iter([math.nan, 1.0, math.nan, 0.5])
    evaluate = lambda state, stop: {"train_loss": 0.0, "test_loss": next(losses)}  # noqa: E731
    recorder, _ = run(make_plan(), evaluate=evaluate)
    assert [step for step, loss in recorder.saved if loss < math.inf] == [4, 12]


def test_asked_to_stop_it_saves_where_it_is():
    answers = iter([False] * 4 + [True] * 99)
    recorder, progress = run(make_plan(), stop=lambda: next(answers))
    assert recorder.saved[-1][0] == progress.step == 3


def test_metrics_are_fetched_while_the_next_call_runs(monkeypatch):
    """When the metrics of a call are fetched, the next one has been dispatched."""
    state = make_state()
    program = compile_steps(count, state, DATA, 1)
    events = []

    def dispatch(*args):
        events.append("dispatch")
        return program.one(*args)

    fetch = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: (events.append("fetch"), fetch(x))[1])
    recorder, plan = Recorder(), make_plan(num_steps=4, num_evals=1, checkpoint_every=0)
    evaluate = lambda state, stop: {"train_loss": 0.0, "test_loss": 0.0}  # noqa: E731
    work = Work(program._replace(one=dispatch), itertools.repeat(DATA), evaluate)
    train(plan, work, Outputs(recorder), state, Progress(), lambda: False)
    assert events == ["dispatch"] * 2 + ["fetch", "dispatch"] * 2 + ["fetch"] * 2


def test_no_hidden_transfer_in_the_loop():
    data = jax.device_put(np.arange(5.0, dtype=np.float32))
    state = make_state()
    program = compile_steps(count, state, data, 3)
    recorder = Recorder()
    evaluate = lambda state, stop: {"train_loss": 0.0, "test_loss": 0.0}  # noqa: E731
    with jax.transfer_guard("disallow"):
        work = Work(program, itertools.repeat(data), evaluate)
        plan = make_plan(checkpoint_every=0)
        train(plan, work, Outputs(recorder), state, Progress(), lambda: False)
    assert len(recorder.lines) == 6


def test_the_plans_evaluations_are_evenly_spaced():
    assert make_plan(num_steps=10, num_evals=4).evaluations() == [0, 2, 5, 8, 10]
    assert make_plan(num_steps=2, num_evals=20).evaluations() == [0, 1, 2]
    assert make_plan(num_steps=1, num_evals=1).evaluations() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({}, 4),  # 0, 4, 6, 8, 12
        ({"checkpoint_every": 0}, 4),
        ({"num_evals": 1, "checkpoint_every": 5}, 5),
        ({"num_evals": 1, "checkpoint_every": 100}, 12),
        ({"num_steps": 1, "num_evals": 1}, 1),
    ],
)
def test_the_longest_stretch_is_the_most_steps_between_two_pauses(settings, longest):
    plan = make_plan(**settings)
    assert plan.longest_stretch() == longest
    step, stretches = 0, []
    while step < plan.num_steps:
        stretches.append(plan.next_pause(step) - step)
        step += stretches[-1]
    assert max(stretches) == longest


def test_nan_is_shown_in_words():
    line = {"step": 9, "train_loss": 0.5, "test_loss": 1.0, "nonfinite": 3, "skipped": 2}
    assert describe(line) == (
        "train loss 0.5000, test loss 1.0000, NOT FINITE: 3 losses, 2 of 9 steps skipped"
    )
    line |= {"test_perplexity": 2.7183, "nonfinite": 0, "skipped": 0}
    assert describe(line) == "train loss 0.5000, test loss 1.0000, test perplexity 2.7183"
