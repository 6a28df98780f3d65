import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rows, write_run

from isjax.data.dataset import save
from isjax.reporting.run_artifacts import load_artifacts
from isjax.reporting.runs import load_runs

EMPTY = ({}, {}, {}, {}, {})


@pytest.fixture
def run(tmp_path):
    """A run whose only file besides its config is `metrics.jsonl`."""
    write_run(tmp_path, "last_loss", rows=rows([2.0, 1.0], [0.1, 0.5], 1.0))
    (run,) = load_runs([tmp_path])
    return run


def write_steps(run, *lines, tail=""):
    text = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (run.path / "training.jsonl").write_text(text)


def test_all_artifacts_are_read_back(run):
    write_steps(run, {"step": 10, "ess": 0.25, "loss": 3}, {"step": 20, "ess": 1.0, "loss": 2.5})
    count, scores = np.arange(4), np.float32([0.5, 1.5])
    save(run.path / "draws.npz", count=count, scores=scores, losses=scores, probs=scores)
    ids = np.array([1, 0])
    save(run.path / "examples.npz", ids=ids, count=ids, loss=ids, label=np.array(["a", "<b>"]))
    seconds = {"train": 0.75, "draw": 0.25}
    (run.path / "time.json").write_text(json.dumps({"step": 10, "seconds": seconds}))
    found = load_artifacts(run)
    assert {name: list(values) for name, values in found.steps.items()} == {
        "step": [10, 20],
        "ess": [0.25, 1],
        "loss": [3, 2.5],
        "tau": [2, 1],  # 1 / sqrt(0.25), 1 / sqrt(1)
    }
    assert list(found.evaluations["train_loss"]) == [2, 1]
    assert list(found.draws["count"]) == [0, 1, 2, 3] and found.draws["scores"].dtype == np.float32
    assert found.examples["label"].tolist() == ["a", "<b>"]
    assert found.seconds == seconds


def test_a_run_without_artifacts_has_its_evaluations(run):
    found = load_artifacts(run)
    assert found._replace(evaluations={}) == EMPTY
    assert list(found.evaluations["step"]) == [0, 10]


def test_an_incomplete_line_is_left_out(run):
    for tail in ("{", '{"step": 30, "ess": 0.', '{"step": 30, "ess"', "\n"):
        write_steps(run, {"step": 10, "ess": 1.0}, {"step": 20, "ess": 0.5}, tail=tail)
        assert list(load_artifacts(run).steps["step"]) == [10, 20], tail
    write_steps(run, tail='{"step": 10')
    assert load_artifacts(run).steps == {}
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "se')
    assert list(load_artifacts(run).evaluations["step"]) == [0, 10]


def test_only_numbers_that_all_lines_have_are_read(run):
    """The line of the first evaluation, before training, has no diagnostics."""
    write_steps(run, {"step": 10, "ess": 1.0}, {"step": 20})
    found = load_artifacts(run)
    assert found.steps.keys() == {"step"}
    text = (run.path / "metrics.jsonl").read_text()
    more = [json.dumps(json.loads(line) | {"coverage": 0.5}) for line in text.splitlines()]
    (run.path / "metrics.jsonl").write_text("\n".join(more) + "\n")
    assert list(load_artifacts(run).evaluations["coverage"]) == [0.5, 0.5]


def test_numbers_that_are_not_finite_stay_so(run):
    write_steps(
        run, {"step": 10, "ess": 0.0, "loss": float("nan")}, {"step": 20, "ess": 1, "loss": 1}
    )
    steps = load_artifacts(run).steps
    np.testing.assert_array_equal(steps["loss"], [np.nan, 1])
    np.testing.assert_array_equal(steps["tau"], [np.inf, 1])


@pytest.mark.parametrize("name", ["draws", "examples"])
def test_a_truncated_or_damaged_file_reads_as_empty(run, name):
    path = run.path / f"{name}.npz"
    names = {"draws": ("count", "scores", "losses", "probs"), "examples": ("ids", "count", "loss")}
    save(path, **dict.fromkeys(names[name], np.arange(300)))
    whole = path.read_bytes()
    assert set(getattr(load_artifacts(run), name)) == set(names[name])
    for length in [0, 1, 3, 4, *range(5, len(whole), 101), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert load_artifacts(run)._replace(evaluations={}) == EMPTY, length
    path.write_bytes(whole[:700] + b"\xff" * 9 + whole[709:])  # damaged in an array
    assert getattr(load_artifacts(run), name) == {}


def test_arrays_of_objects_are_not_unpickled(run):
    np.savez(run.path / "draws.npz", count=np.array([{}, None], object))
    assert load_artifacts(run).draws == {}


def test_inputs_that_cannot_be_shown_are_left_out(run):
    """NumPy reads bfloat16 back as bytes without a type."""
    ids = np.arange(2)
    save(run.path / "examples.npz", ids=ids, count=ids, loss=ids, x=np.zeros((2, 3), jnp.bfloat16))
    assert load_artifacts(run).examples.keys() == {"ids", "count", "loss"}


@pytest.mark.parametrize("text", ["", "{", '{"step": 10, "sec', '{"step": 10, "seconds": null}'])
def test_an_unknown_step_time_reads_as_empty(run, text):
    (run.path / "time.json").write_text(text)
    assert load_artifacts(run).seconds == {}


@pytest.mark.parametrize(
    "junk", [b"\xff", b"[1]", b"1", b"null", b'{"ess": 1}', b'{"step": "x"}', b"[" * 10**5]
)
def test_lines_are_read_up_to_a_damaged_one(run, junk):
    good = b'{"step": 10, "ess": 1.0}\n'
    (run.path / "training.jsonl").write_bytes(good + junk + b"\n" + good)
    assert list(load_artifacts(run).steps["step"]) == [10]


@pytest.mark.parametrize(
    "text", ["[1]", "{}", "null", '{"seconds": [1]}', '{"seconds": {"train": "x"}}', "\xff"]
)
def test_a_damaged_step_time_reads_as_empty(run, text):
    (run.path / "time.json").write_text(text, encoding="latin-1")
    assert load_artifacts(run).seconds == {}
