import json

import numpy as np
from helpers import rows, write_run

from isjax.reporting.failures import Failures, save_failures
from isjax.reporting.notes import configuration, notes
from isjax.reporting.runs import load_runs

DASH = "\N{EN DASH}"


def test_notes_on_unequal_runs(folder):
    write_run(folder / "g", "grad", 0, rows([2.0, 0.5], [0.1, 0.5], 1.0))
    write_run(folder / "h", "grad", 0, rows([2.0, 0.5, 0.4], [0.1, 0.5, 0.6], 1.0))
    runs = load_runs([folder])
    assert notes(runs) == [
        "the runs have different numbers of steps: 10, 20",
        f"{folder / 'g'} is at step 10 of 20",
        "grad has several runs with the same seed; each counts as one seed",
    ]


def test_unequal_budgets_of_one_seed_need_no_note(budgets):
    assert notes(load_runs([budgets])) == []


def test_notes_on_unequal_runs_at_a_budget(budgets):
    write_run(budgets / "g", "grad", 0, rows([2.0, 0.5], [9, 8], 1.0), num_steps=40, budget=0.25)
    write_run(budgets / "h", "grad", 0, [(0, 0.0, 2.0, 9), (3, 1.0, 0.5, 8)], budget=0.25)
    write_run(budgets / "k", "grad", 0, [(0, 0.0, 2.0, 9), (5, 1.0, 0.5, 8)], budget=0.25)
    assert notes(load_runs([budgets])) == [
        "the runs have different numbers of steps: 3, 20, 40",
        f"{budgets / 'h'} is at step 3 of 5",
        "grad 25% has several runs with the same seed; each counts as one seed",
    ]


def configure(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def test_runs_of_other_settings_are_no_seeds(folder):
    for name, rate in (("u0", 0.1), ("u1", 0.2)):
        configure(folder / name, learning_rate=rate, mesh={"data": rate}, wandb=name)
        configure(folder / name, method_options={"k": rate})
    assert notes(load_runs([folder])) == [
        "the runs of uniform differ in learning_rate, method_options.k, and yet count as seeds of "
        "one method"
    ]


def test_settings_that_differ_are_tabulated_once_for_each_configuration(folder):
    assert configuration(load_runs([folder])) == []
    for name in ("u0", "u1"):
        configure(folder / name, augment=[], learning_rate=0.1, method_options={})
    for name in ("l0", "l1"):
        configure(folder / "deep" / name, augment=["flip"], learning_rate=0.1, seed=int(name[1]))
        configure(folder / "deep" / name, method_options={"k": "$|" * 99})
    heading, uniform, approx, loss = configuration(load_runs([folder]))
    assert heading == ["method", "seeds", "augment", "learning_rate", "method_options.k"]
    assert uniform == ["uniform", "0, 1", "[]", "0.1", DASH]
    assert approx == ["approx", "0", DASH, DASH, DASH]
    assert loss[:4] == ["loss", "0, 1", '["flip"]', "0.1"]
    assert loss[4].startswith('"$|$|') and len(loss[4]) == 60


def test_steps_skipped_and_examples_that_failed_are_noted(tmp_path):
    ends = rows([2.0, 1.0, 0.5], [0.1, 0.5, 0.6], 1.0)
    write_run(tmp_path / "u", rows=ends, tail='{"step": 21, "seconds": 9, "train_loss"')
    lines = (tmp_path / "u/metrics.jsonl").read_text().splitlines()
    for i in range(3):
        lines[i] = json.dumps(json.loads(lines[i]) | {"skipped": 3 * i})
    (tmp_path / "u/metrics.jsonl").write_text("\n".join(lines[:3]) + "\n")
    save_failures(tmp_path / "u", {"train": Failures([3, 17], [])})
    assert notes(load_runs([tmp_path])) == [
        f"{tmp_path / 'u'}: 6 of 20 steps skipped, because losses or gradients were not finite",
        f"{tmp_path / 'u'}: train: examples 3, 17 are not finite, and left out of the means; "
        "repair the data, or leave such examples out",
    ]


def test_a_run_whose_loss_did_not_fall_is_noted(tmp_path):
    for i, end in enumerate((1.9, 2.0, np.nan, 1e17)):
        write_run(tmp_path / str(i), seed=i, rows=rows([2.0, 1.0, end], [0.1, 0.5, 0.6], 1.0))
    assert notes(load_runs([tmp_path])) == [
        f"{tmp_path / name}: the train loss is at {end}, not below 2, where it began; clip the "
        "gradient, or lower the learning rate"
        for name, end in (("1", "2"), ("2", "nan"), ("3", "1e+17"))
    ]
