"""Comparisons: which runs are made for which costs, with the runs themselves stood in for."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from commands import ENVIRONMENT, ROOT, run_command
from helpers import BY_CONFIG, write_run

from isjax import compare, data, experiment, main, recipes
from isjax.data.dataset import from_arrays
from isjax.experiment import components
from isjax.experiment.config import ConfigError, default_config
from isjax.reporting.runs import Run

pytestmark = pytest.mark.slow  # whole runs

CONFIG = """
from isjax.experiment.config import default_config

def get_config():
    config = default_config()
    config.artifacts = False
    config.update({"task": "regression", "dataset": "friedman", "network": "MLP"})
    config.dataset_options = {"num_train": 64, "num_test": 16}
    config.network_options = {"hidden": (4,)}
    config.update({"num_steps": 6, "num_evals": 1, "batch_size": 4, "pool_size": 8})
    return config
"""


def make_config(**settings):
    config = default_config()
    config.artifacts = False
    config.update({"task": "regression", "dataset": "friedman", "num_steps": 100})
    config.dataset_options = {"num_train": 64, "num_test": 16}
    config.network_options = {"hidden": (4,)}
    config.update({"batch_size": 4, "pool_size": 8} | settings)
    return config


# Of a whole budget: seconds, and examples forward and backward.
COSTS = {
    "uniform": (2.0, 400, 400),
    "biased_loss": (8.0, 1200, 400),  # 2000 examples for uniform's 1200
    "last_loss": (2.5, 400, 400),
    "reshuffled": (1.0, 400, 400),
    "small_loss": (2.02, 404, 404),  # within 2% of uniform: its own run of equal steps will do
}


class Runs:
    """Stands for `experiment.run`: notes what is asked for, and finds it done when asked again."""

    def __init__(self):
        self.made = []
        self.done = {}

    def __call__(self, config, folder, dataset):
        budget = config.budget
        seconds, forward, backward = COSTS.get(config.method, COSTS["uniform"])
        line = {
            "step": round(config.num_steps * budget),
            "seconds": seconds * budget * (1 + 0.1 * config.seed),
            "examples_forward": round(forward * budget),
            "examples_backward": round(backward * budget),
            "train_loss": 1.0 + config.seed,
            "test_loss": 2.0,
        }
        steps = np.linspace(0, line["step"], 11)
        evaluations = [(s, line["seconds"] * s / line["step"], 1.0, 2.0) for s in steps]
        write_run(folder, config.method, config.seed, evaluations, metric="test_loss")
        key = f"{folder.parent.name}/{folder.name}"
        if key not in self.done:
            self.done[key] = line
            self.made.append((key, config.copy_and_resolve_references(), dataset))
        return self.done[key]

    def budgets(self):
        return {key: config.budget for key, config, _ in self.made}


@pytest.fixture
def runs(monkeypatch):
    stand_in = Runs()
    monkeypatch.setattr(experiment, "run", stand_in)
    return stand_in


# Which runs are made.


def test_each_method_runs_for_equal_steps_and_where_it_costs_more_for_equal_costs(runs, tmp_path):
    methods = ["biased_loss", "last_loss", "reshuffled", "small_loss"]
    lines = compare.compare(make_config(), str(tmp_path), methods, 2)
    steps = {f"steps/{m}-{s}": 1.0 for s in (0, 1) for m in ("uniform", *methods)}
    dearer = {
        "examples/biased_loss": 0.6,  # (400 + 2 * 400) / (1200 + 2 * 400)
        "seconds/biased_loss": 0.25,
        "seconds/last_loss": 0.8,
    }
    assert runs.budgets() == steps | {f"{k}-{s}": b for k, b in dearer.items() for s in (0, 1)}
    assert [key for key, *_ in runs.made][:5] == list(steps)[:5]  # a seed of all methods first
    # A method that costs the same stands in for itself.
    assert set(lines) == {"steps", "examples", "seconds"}
    for equal, of_method in lines.items():
        assert set(of_method) == {"uniform", *methods}
        for method, of_seed in of_method.items():
            budget = dearer.get(f"{equal}/{method}", 1.0)
            assert [line["budget"] for line in of_seed] == [budget] * 2
            assert [line["step"] for line in of_seed] == [round(100 * budget)] * 2
            assert [line["train_loss"] for line in of_seed] == [1.0, 2.0]  # seeds in order
    assert lines["examples"]["last_loss"] == lines["steps"]["last_loss"]


def test_budgets_are_shares_of_the_configs_and_seeds_follow_its_own(runs, tmp_path):
    config = make_config(budget=0.5, seed=7)
    compare.compare(config, str(tmp_path), ["biased_loss"], 2)
    assert runs.budgets() == {
        **{f"steps/{m}-{s}": 0.5 for m in ("uniform", "biased_loss") for s in (7, 8)},
        **{f"examples/biased_loss-{s}": 0.3 for s in (7, 8)},
        **{f"seconds/biased_loss-{s}": 0.125 for s in (7, 8)},
    }
    for key, one, dataset in runs.made:
        assert one.method in key and one.seed == int(key[-1])
        # One that diverges does not end the comparison.
        assert not one.stop_on_nonfinite and one.max_skipped == 1
        assert len(dataset.train["x"]) == 64 and one.dataset == "friedman"
    assert config.method == "uniform" and config.seed == 7 and config.budget == 0.5


def test_what_was_done_is_not_done_again(runs, tmp_path):
    first = compare.compare(make_config(), str(tmp_path), ["biased_loss"], 1)
    number = len(runs.made)
    assert compare.compare(make_config(), str(tmp_path), ["biased_loss"], 1) == first
    assert len(runs.made) == number
    compare.compare(make_config(), str(tmp_path), ["biased_loss"], 2)
    assert len(runs.made) == 2 * number


def test_a_comparison_goes_on_with_the_budgets_that_it_began_with(runs, tmp_path, monkeypatch):
    """Times measured again would ask for other budgets, and find other runs in the folders."""
    compare.compare(make_config(), str(tmp_path), ["biased_loss"], 1)
    kept = json.loads((tmp_path / "budgets.json").read_text())
    assert kept == {
        "examples": {"uniform": 1.0, "biased_loss": 0.6},
        "seconds": {"uniform": 1.0, "biased_loss": 0.25},
    }
    runs.done.clear()
    monkeypatch.setitem(COSTS, "biased_loss", (3.0, 900, 400))
    compare.compare(make_config(), str(tmp_path), ["biased_loss", "last_loss"], 1)
    assert runs.budgets()["seconds/biased_loss-0"] == 0.25
    grown = json.loads((tmp_path / "budgets.json").read_text())
    kept["seconds"]["last_loss"], kept["examples"]["last_loss"] = 0.8, 1.0
    assert grown == kept


def test_uniform_is_always_among_them_and_once(runs, tmp_path):
    for methods in (["last_loss"], ["uniform", "last_loss"], ["last_loss", "uniform", "last_loss"]):
        runs.done.clear()
        lines = compare.compare(make_config(), str(tmp_path / "-".join(methods)), methods, 1)
        assert list(lines["steps"]) == ["uniform", "last_loss"]
        assert all(len(line) == 1 for line in lines["steps"].values())


def test_options_of_a_method_are_for_that_method_alone(runs, tmp_path):
    config = make_config(method="last_loss", method_options={"k": 0.25})
    compare.compare(config, str(tmp_path), ["last_loss", "biased_loss"], 1)
    options = {one.method: one.method_options.to_dict() for _, one, _ in runs.made}
    assert options == {"uniform": {}, "last_loss": {"k": 0.25}, "biased_loss": {}}


# Costs and budgets.


def test_a_backward_pass_costs_two_forward_ones():
    line = {"step": 5, "seconds": 1.5, "examples_forward": 100, "examples_backward": 30}
    assert compare.cost(line, "examples") == 160
    assert compare.cost(line, "seconds") == 1.5 and compare.cost(line, "steps") == 5


def a_line(forward=10, backward=0):
    return {"seconds": 1.0, "examples_forward": forward, "examples_backward": backward}


def seconds(total, error=0.0):
    return compare._Seconds(total, error)


def timed(*rates, first=0.0, num_steps=100):
    """A run that takes these seconds for each step between evaluations."""
    step = np.linspace(0, num_steps, len(rates) + 1)
    took = first + np.concatenate([[0], np.cumsum(np.array(rates) * np.diff(step))])
    metrics = {"step": step, "seconds": took}
    return Run(pathlib.Path("x"), "uniform", 0, num_steps, "friedman", metrics)


def test_seconds_are_by_the_median_step_so_that_a_slow_moment_does_not_count():
    """A single pause of ten seconds would halve the budget of a method that costs the same."""
    total, error = compare._seconds([timed(0.01, 0.01, 0.11, 0.01, 0.01)])
    assert total == pytest.approx(1.0) and error == pytest.approx(0, abs=1e-9)
    total, _ = compare._seconds([timed(*[0.01] * 5, first=3.0), timed(*[0.5] * 2, first=5.0)])
    assert total == pytest.approx(4.0 + 1.0)  # the mean time of preparing, and 100 median steps
    assert compare._seconds([timed(0.01, 0.02)]).error == 0.1


def test_the_error_of_a_median_is_that_of_many_repetitions():
    rng = np.random.default_rng(0)
    found = [compare._seconds([timed(*rng.normal(1, 0.1, 21))]) for _ in range(2000)]
    assert np.mean([f.error for f in found]) == pytest.approx(
        np.std([f.total for f in found]) / 100, rel=0.15
    )


def test_a_difference_that_may_be_noise_decides_no_budget(tmp_path):
    lines = {method: [a_line()] for method in ("uniform", "noisy", "slow", "sure")}
    times = {"uniform": seconds(2.0), "noisy": seconds(2.5, 0.11), "slow": seconds(2.5, 0.09)}
    times["sure"] = seconds(2.5)
    budgets = compare._budgets(tmp_path / "budgets.json", lines, times, list(lines))
    assert budgets["seconds"] == {"uniform": 1.0, "noisy": 1.0, "slow": 0.8, "sure": 0.8}


def test_budgets_are_of_costs_to_three_digits(tmp_path):
    lines = {
        "uniform": [a_line(), a_line()],
        "slow": [a_line(30), a_line(30, 10)],
        "near": [a_line(10), a_line(11)],
        "far": [a_line(10), a_line(11)],
        "quick": [a_line(1), a_line(1)],
    }
    times = dict(zip(lines, map(seconds, (2.0, 3.5, 2.04, 2.045, 0.5)), strict=True))
    budgets = compare._budgets(tmp_path / "budgets.json", lines, times, list(lines))
    assert budgets["seconds"] == {
        "uniform": 1.0,
        "slow": 0.571,  # 2 / 3.5
        "near": 1.0,  # 0.98039
        "far": 0.978,
        "quick": 1.0,  # at most all steps
    }
    expected = {"uniform": 1.0, "slow": 0.25, "near": 0.952, "far": 0.952, "quick": 1.0}
    assert budgets["examples"] == expected
    assert json.loads((tmp_path / "budgets.json").read_text()) == budgets


def test_a_tiny_budget_keeps_its_digits(tmp_path):
    lines = {"uniform": [a_line()], "slow": [a_line()]}
    times = {"uniform": seconds(1.0), "slow": seconds(1234.5)}
    budgets = compare._budgets(tmp_path / "budgets.json", lines, times, ["uniform", "slow"])
    assert budgets["seconds"]["slow"] == 0.00081


def test_budgets_kept_are_not_overwritten(tmp_path):
    kept = {"examples": {"slow": 0.5}, "seconds": {"slow": 0.123}}
    (tmp_path / "budgets.json").write_text(json.dumps(kept))
    lines = {"uniform": [a_line()], "slow": [a_line(40)]}
    times = {"uniform": seconds(1.0), "slow": seconds(4.0)}
    budgets = compare._budgets(tmp_path / "budgets.json", lines, times, ["uniform", "slow"])
    assert budgets == {
        "examples": {"slow": 0.5, "uniform": 1.0},
        "seconds": {"slow": 0.123, "uniform": 1.0},
    }


@pytest.mark.parametrize(
    "content", ["", '{"seconds": {"slow": 0.', '{"seconds": {"slow": 1e400}}', "[1]", '{"a": 1}']
)
def test_damaged_budgets_are_made_anew(tmp_path, capfd, content):
    path = tmp_path / "budgets.json"
    path.write_text(content)
    lines = {"uniform": [a_line()], "slow": [a_line(40)]}
    times = {"uniform": seconds(1.0), "slow": seconds(4.0)}
    budgets = compare._budgets(path, lines, times, ["uniform", "slow"])
    assert budgets["seconds"] == {"slow": 0.25, "uniform": 1.0}
    assert json.loads(path.read_text()) == budgets
    assert f"note: {path} is damaged" in capfd.readouterr().err


def test_seeds_beyond_the_last_are_refused_before_training(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.seed is 4294967296"):
        compare.compare(make_config(seed=2**32 - 2), str(tmp_path), ["uniform"], 3)
    assert not runs.made


# Methods that are none, or do not fit.


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["lst_loss"], r"--methods: lst_loss is not a method; did you mean last_loss\?"),
        (["last_loss", "xyz"], "xyz is not a method; choose from biased_loss, "),
        (["all", "last_loss"], "--methods: all is not a method"),
        (["grad_norm_bound"], "grad_norm_bound needs logits_fn, which the task regression on frie"),
        (["last_loss", "per_class_gaussian"], "per_class_gaussian needs num_classes"),
        (["el2n"], "el2n needs .*; choose another method"),
    ],
)
def test_a_method_that_cannot_be_is_refused_before_anything_is_trained(
    runs, tmp_path, methods, message
):
    with pytest.raises(ConfigError, match=message):
        compare.compare(make_config(), str(tmp_path / "c"), methods, 1)
    assert not runs.made and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "MPL"}, "config.network: MPL is not a network; did you mean MLP"),
        ({"task": "regresion"}, "regresion is not a task; did you mean regression"),
        ({"budget": 0.0}, "budget is 0.0; choose a share above 0"),
        ({"num_stepss": 3}, "num_stepss is not a setting; did you mean num_steps"),
    ],
)
def test_a_bad_config_is_refused_likewise(runs, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        compare.compare(make_config(**settings), str(tmp_path / "c"), ["last_loss"], 1)
    assert not runs.made and not (tmp_path / "c").exists()


def test_all_are_those_that_fit_the_others_are_noted(runs, tmp_path, capsys):
    lines = compare.compare(make_config(), str(tmp_path), ["all"], 1)
    left_out = (
        "by_source",
        "companion_loss",
        "el2n",
        "given",
        "grad_norm_bound",
        "per_class_gaussian",
        "proxy_loss",
    )
    chosen = [name for name in recipes.__all__ if name not in left_out]
    assert set(lines["steps"]) == set(chosen)
    printed = capsys.readouterr().out
    for name in left_out:
        assert f"note: without {name}: " in printed
    assert printed.count("note: ") == len(left_out)


def classes(size=40):
    x = np.random.default_rng(0).normal(size=(size, 6)).astype(np.float32)
    part = {"x": x, "label": np.arange(size, dtype=np.int32) % 4}
    return from_arrays(part, part, 4)


@pytest.fixture
def with_classes(monkeypatch):
    monkeypatch.setattr(data, "builder", lambda name: lambda: classes())
    config = make_config(task="classification", dataset="mine")
    config.companion, config.companion_options = "MLP", {"hidden": (4,)}
    del config.dataset_options.num_train, config.dataset_options.num_test
    return config


def test_of_a_task_with_classes_all_methods_fit(runs, tmp_path, with_classes, capsys):
    lines = compare.compare(with_classes, str(tmp_path), ["all"], 1)
    assert set(lines["steps"]) == set(BY_CONFIG)
    assert capsys.readouterr().out.count("note: ") == 2  # by_source and given


def test_a_pool_beyond_the_data_does_not_fit_either(runs, tmp_path, with_classes, capsys):
    """Selective backprop looks at four batches: more than all the 40 examples there are."""
    with_classes.update({"batch_size": 12, "pool_size": 24})
    lines = compare.compare(with_classes, str(tmp_path / "all"), ["all"], 1)
    assert set(lines["steps"]) == set(BY_CONFIG) - {"selective_backprop"}
    assert "note: without selective_backprop: " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="a pool of 48 is more than the 40 examples"):
        compare.compare(with_classes, str(tmp_path / "one"), ["selective_backprop"], 1)


def test_a_gate_leaves_out_what_cannot_have_one(runs, tmp_path, with_classes, capsys):
    with_classes.update({"gate": "until", "gate_options": {"steps": 3}})
    lines = compare.compare(with_classes, str(tmp_path), ["all"], 1)
    left_out = {"cached", "default", "mean_error", "predicted_loss", "reshuffled"}
    left_out |= {"selective_backprop"}
    assert set(lines["steps"]) == set(BY_CONFIG) - left_out
    assert "note: without reshuffled: config.gate: reshuffled cannot" in capsys.readouterr().out


def test_wrong_labels_are_given_once(runs, tmp_path, with_classes):
    """Each run trains on the share of wrong labels that was asked for, not on others too."""
    with_classes.label_noise = 0.25
    compare.compare(with_classes, str(tmp_path), ["last_loss"], 3)
    assert len(runs.made) == 9
    for _, config, dataset in runs.made:
        trained_on = components.make_task(config, dataset).dataset
        assert np.sum(trained_on.train["label"] != classes().train["label"]) == 10
        np.testing.assert_array_equal(trained_on.test["label"], classes().test["label"])


# The table.


def make_lines():
    """Uniform loses 0.5, "a" ends best in equal seconds, "b" worst; a run costs its seconds."""

    def line(train_loss, accuracy, seconds, forward, backward=100):
        return {
            "train_loss": train_loss,
            "test_accuracy": accuracy,
            "test_loss": 1.0,
            "seconds": seconds,
            "examples_forward": forward,
            "examples_backward": backward,
        }

    return {
        "steps": {
            "uniform": [line(0.4, 0.9, 1.0, 100), line(0.6, 0.8, 3.0, 100)],
            "b": [line(0.1, 0.7, 5.0, 400), line(0.3, 0.7, 7.0, 400)],
            "a": [line(0.2, 0.8, 2.0, 100), line(0.2, 0.8, 2.0, 100)],
        },
        "examples": {
            "uniform": [line(0.4, 0.9, 1.0, 100), line(0.6, 0.8, 3.0, 100)],
            "b": [line(0.5, 0.6, 5.0, 400), line(0.7, 0.6, 7.0, 400)],
            "a": [line(0.2, 0.8, 2.0, 100), line(0.2, 0.8, 2.0, 100)],
        },
        "seconds": {
            "uniform": [line(0.4, 0.9, 1.0, 100), line(0.6, 0.8, 3.0, 100)],
            "b": [line(0.9, 0.5, 5.0, 400), line(1.1, 0.5, 7.0, 400)],
            "a": [line(0.25, 0.75, 2.0, 100), line(0.35, 0.85, 2.0, 100)],
        },
    }


def test_the_table_has_the_best_in_equal_seconds_first():
    heading, rule, *rows = compare.table(make_lines()).splitlines()
    assert heading == (
        "| method | cost in time | cost in examples | train loss, equal steps | train loss, equal "
        "examples | train loss, equal seconds | test accuracy, equal steps | test accuracy, equal "
        "examples | test accuracy, equal seconds |"
    )
    assert rule == "| --- |" + " --: |" * 8
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert [row[0] for row in cells] == ["`a`", "`uniform`", "`b`"]
    assert cells[0][1:] == [
        "1.00 ± 0.00",  # 2 seconds of uniform's 2
        "1.00 ± 0.00",
        "0.200 ± 0.000",
        "0.200 ± 0.000",
        "0.300 ± 0.071",  # sample deviation of 0.25 and 0.35
        "0.8000 ± 0.0000",
        "0.8000 ± 0.0000",
        "0.8000 ± 0.0707",
    ]
    assert cells[1][1] == "1.00 ± 0.71" and cells[1][3] == "0.500 ± 0.141"
    assert cells[2][1:3] == ["3.00 ± 0.71", "2.00 ± 0.00"]  # (400 + 200) / (100 + 200)
    assert [cells[2][i] for i in (3, 4, 5)] == ["0.200 ± 0.141", "0.600 ± 0.141", "1.000 ± 0.141"]


def test_of_one_seed_there_is_no_deviation():
    lines = {e: {m: x[:1] for m, x in of.items()} for e, of in make_lines().items()}
    assert "±" not in compare.table(lines)
    assert "| `uniform` | 1.00 | 1.00 | 0.400 |" in compare.table(lines)


@pytest.mark.parametrize("metric", ["test_perplexity", "test_loss"])
def test_without_accuracy_the_table_has_what_there_is(metric):
    lines = make_lines()
    for of_method in lines.values():
        for of_seed in of_method.values():
            for line in of_seed:
                line[metric] = 100 * line.pop("test_accuracy")
    heading, _, best, *_ = compare.table(lines).splitlines()
    assert f"{metric.replace('_', ' ')}, equal steps" in heading and "accuracy" not in heading
    assert "80.000 ± 0.000" in best


def test_runs_that_skipped_steps_are_named_below_the_table(tmp_path):
    lines = make_lines()
    for equal, budget in (("steps", 1.0), ("examples", 1.0), ("seconds", 0.5)):
        lines[equal]["a"][1] |= {"skipped": 7, "step": round(40 * budget), "budget": budget}
    compare._write(tmp_path, make_config(seed=3), lines, 2)
    end = (tmp_path / "compare.md").read_text().splitlines()[-1]
    assert end == (
        "Steps skipped, because losses or gradients were not finite: a (equal steps, seed 4) 7 of "
        "40, a (equal seconds, seed 4) 7 of 20."
    )


def test_what_is_written(tmp_path, capsys):
    lines = make_lines()
    config = make_config(seed=3, budget=0.5)
    compare._write(tmp_path, config, lines, 2)
    text = (tmp_path / "compare.md").read_text()
    assert compare.table(lines) in text and text.strip() in capsys.readouterr().out
    assert "friedman, MLP, 50 steps of uniform, 2 seeds (mean ± standard deviation), on" in text
    rows = [json.loads(line) for line in (tmp_path / "compare.jsonl").read_text().splitlines()]
    assert len(rows) == 18 and rows[0]["device"]
    for row in rows:
        line = lines[row["equal"]][row["method"]][row["seed"] - 3]
        assert row == {**row, **line}
    assert {(r["equal"], r["method"], r["seed"]) for r in rows} == {
        (equal, method, seed)
        for equal in ("steps", "examples", "seconds")
        for method in ("uniform", "a", "b")
        for seed in (3, 4)
    }
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


# The command.


def test_a_comparison_from_the_command_line(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    arguments = [
        f"--config={tmp_path}/config.py",
        "--methods=uniform,last_loss",
        "--seeds=1",
        "--config.num_steps=4",
        f"--workdir={tmp_path}/out",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "isjax.compare", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out"
    for method in ("uniform", "last_loss"):
        written = json.loads((folder / f"steps/{method}-0/config.json").read_text())
        assert written["method"] == method and written["num_steps"] == 4
    budgets = json.loads((folder / "budgets.json").read_text())
    assert budgets["examples"] == {"uniform": 1.0, "last_loss": 1.0}
    assert not (folder / "examples").exists()
    rows = [json.loads(line) for line in (folder / "compare.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        own = budgets.get(row["equal"], {}).get(row["method"], 1.0)
        assert row["budget"] == own and row["step"] == max(1, round(4 * own))
    assert (folder / "compare.md").read_text().strip() in done.stdout
    assert "| `last_loss` |" in done.stdout and (folder / "compare.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--methods=lastloss", "did you mean last_loss?"), ("--seeds=0", "seeds")],
)
def test_a_mistake_is_one_line_without_traceback(tmp_path, argument, message):
    (tmp_path / "config.py").write_text(CONFIG)
    config, workdir = f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/out"
    done = run_command("compare", config, argument, workdir)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_the_command_is_the_one_of_isjax_main():
    assert compare.main is main
