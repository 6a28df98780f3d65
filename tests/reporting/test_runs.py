import numpy as np
import pytest
from helpers import rows, write_run

from isjax.reporting.runs import Group, by_group, load_runs, reference, score


@pytest.mark.parametrize("tail", ['{"step": 30, "seco', '{"step": 30, "seconds": 4', "{"])
def test_incomplete_last_line_is_ignored(tmp_path, tail):
    write_run(tmp_path, rows=rows([2.0, 1.0], [0.1, 0.5], 1.0), tail=tail)
    (run,) = load_runs([tmp_path])
    np.testing.assert_array_equal(run.metrics["step"], [0, 10])
    np.testing.assert_array_equal(run.metrics["train_loss"], [2.0, 1.0])


def test_whole_last_line_without_newline_is_read(tmp_path):
    tail = '{"step": 30, "seconds": 4, "train_loss": 0.5, "test_loss": 1, "test_accuracy": 0.5}'
    write_run(tmp_path, rows=rows([2.0, 1.0], [0.1, 0.5], 1.0), tail=tail)
    assert load_runs([tmp_path])[0].metrics["step"][-1] == 30


def test_run_without_evaluation_is_skipped(folder, capsys):
    write_run(folder / "new", tail='{"step": 0')
    (folder / "newer").mkdir()
    (folder / "newer/config.json").write_text("{}")
    assert len(load_runs([folder])) == 5
    notes = capsys.readouterr().err.splitlines()
    assert [line.endswith("skipped, no complete evaluation yet") for line in notes] == [True, True]
    assert str(folder / "newer") in notes[1]


def test_run_given_twice_counts_once(folder):
    runs = load_runs([folder, folder / "u0", folder / "deep"])
    assert len(runs) == 5


def test_a_run_without_a_budget_takes_all_steps(folder):
    run = load_runs([folder / "u0"])[0]
    assert (run.budget, run.total_steps) == (1.0, 20)


@pytest.mark.parametrize(("budget", "steps"), [(1, 20), (0.5, 10), (0.33, 7), (2.0, 40), (1e-9, 1)])
def test_the_budget_is_a_share_of_the_steps(tmp_path, budget, steps):
    write_run(tmp_path, rows=rows([1.0], [0.1], 1.0), budget=budget)
    (run,) = load_runs([tmp_path])
    assert (run.budget, run.num_steps, run.total_steps) == (budget, 20, steps)


@pytest.mark.parametrize("budget", [0, -0.5, float("nan"), float("inf"), "half", [1]])
def test_an_invalid_budget_is_malformed(tmp_path, budget):
    write_run(tmp_path, rows=rows([1.0], [0.1], 1.0), budget=budget)
    with pytest.raises(ValueError, match=r"config.json: malformed \(.*\); repair it, or move the"):
        load_runs([tmp_path])


@pytest.mark.parametrize(
    ("names", "label", "higher"),
    [
        (["test_accuracy", "test_accuracy"], "test accuracy", True),
        (["test_perplexity", "test_perplexity"], "test perplexity", False),
        (["test_loss", "test_loss"], "test loss", False),
        (["test_accuracy", "test_perplexity"], "test loss", False),
        (["test_accuracy", "test_loss"], "test loss", False),
    ],
)
def test_the_score_is_a_metric_of_every_run(tmp_path, names, label, higher):
    for seed, name in enumerate(names):
        write_run(tmp_path / str(seed), seed=seed, rows=rows([2, 1], [0.2, 0.7], 1), metric=name)
    runs = load_runs([tmp_path])
    metric = score(runs)
    assert (metric.label, metric.higher_is_better) == (label, higher)
    for run, name in zip(runs, names, strict=True):
        np.testing.assert_array_equal(run.metrics[name], [0.2, 0.7])
        np.testing.assert_array_equal(
            run.metrics[metric.name], [0.2, 0.7] if name == metric.name else [1.0, 1.0]
        )


def test_accuracy_comes_before_perplexity_and_counts_only_if_all_evaluations_have_it(tmp_path):
    line = '{"step": %d, "seconds": 4, "train_loss": 0.5, "test_loss": 1, "test_perplexity": 2%s}\n'
    first = line % (0, ', "test_accuracy": 1')
    write_run(tmp_path / "whole", tail=first)
    write_run(tmp_path / "partly", tail=first + line % (1, ""))
    assert score(load_runs([tmp_path / "whole"])).label == "test accuracy"
    assert score(load_runs([tmp_path])).label == "test perplexity"


def test_groups_are_in_order_with_uniform_and_the_largest_budgets_first(budgets):
    write_run(budgets / "a", "approx", rows=rows([1.0], [1.0], 1.0), budget=0.7)
    write_run(budgets / "l70b", "loss", 1, rows([1.0], [1.0], 1.0), budget=0.7)
    groups = by_group(load_runs([budgets]))
    assert [group.label for group in groups] == [
        "uniform",
        "uniform 50%",
        "approx 70%",
        "loss 70%",
        "loss 50%",
    ]
    assert [run.seed for run in groups[Group("loss", 0.7)]] == [0, 1]


def test_labels_say_budgets_briefly():
    assert [Group("m", b).label for b in (1.0, 0.07, 0.125, 1 / 3, 2.0)] == [
        "m",
        "m 7%",
        "m 12.5%",
        "m 33.33%",
        "m 200%",
    ]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([("uniform", 2.0), ("uniform", 1.0), ("uniform", 0.5)], ("uniform", 1.0)),
        ([("uniform", 0.5), ("uniform", 0.7), ("loss", 1.0)], ("uniform", 0.7)),
        ([("loss", 1.0)], None),
    ],
)
def test_the_reference_is_uniform_at_the_full_budget_or_else_the_largest(groups, expected):
    assert reference(Group(*group) for group in groups) == expected


LINE = '{"step": 0, "seconds": 0, "train_loss": 2, "test_loss": 1}'


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("config.json", b"", ""),
        ("config.json", b"[1]", ""),
        ("config.json", b"\xff\xfe", ""),
        ("config.json", b"[" * 10**5, ""),
        ("config.json", b'{"method": "a", "seed": 1e400, "num_steps": 1, "dataset": "a"}', ""),
        ("config.json", b'{"method": "a", "seed": 0, "num_steps": NaN, "dataset": "a"}', ""),
        ("metrics.jsonl", b"junk\n", ", line 1"),
        ("metrics.jsonl", b"\xff\n", ", line 1"),
        ("metrics.jsonl", b"[1]\n", ", line 1"),
        ("metrics.jsonl", f"{LINE}\n{LINE.replace('2', '1' * 400)}\n".encode(), ", line 2"),
        ("metrics.jsonl", f"{LINE.replace('0', 'NaN')}\n".encode(), ", line 1"),
        ("metrics.jsonl", f"{LINE.replace('0', '1e400')}\n".encode(), ", line 1"),
        ("metrics.jsonl", f"{LINE.replace('0', '-1')}\n".encode(), ", line 1"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, place):
    write_run(tmp_path, rows=rows([1.0], [0.1], 1.0))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}{place}: malformed .*; repair it, or move the"):
        load_runs([tmp_path])
