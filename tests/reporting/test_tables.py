import json
import math

import numpy as np
import pytest
from helpers import rows, write_run
from scipy import integrate

from isjax.reporting.notes import notes
from isjax.reporting.runs import load_runs
from isjax.reporting.tables import columns, explanation, format_table, interval, summarise

INF = float("inf")


def cells(table):
    """Cells of each row by its label."""
    lines = table.split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {label: " | ".join(row) for label, *row in rows}


def test_summaries_match_hand_computed_values(folder):
    uniform, approx, loss = summarise(load_runs([folder]))
    assert [s.group.label for s in (uniform, approx, loss)] == ["uniform", "approx", "loss"]
    assert (uniform.steps, uniform.seconds) == ((20, 20), (3.0, 5.0))
    assert (uniform.train_loss.final, uniform.score.final) == ((0.5, 0.3), (0.78, 0.82))
    assert uniform.train_loss.time == uniform.score.time == (INF, 5 / 4)
    assert uniform.train_loss.steps == uniform.score.steps == (INF, 1)
    # At exactly the target counts as there; a first crossing counts even if it is lost again.
    assert (loss.train_loss.time, loss.train_loss.steps) == ((3 / 4, 4 / 4), (1 / 2, 1))
    assert loss.score.time == loss.score.steps == (INF, INF)
    assert approx.train_loss.time == approx.score.time == (1 / 4,)
    assert approx.train_loss.steps == approx.score.steps == (1 / 2,)


def test_a_lone_uniform_run_gets_exactly_to_its_own_final_values(tmp_path):
    write_run(tmp_path, rows=rows([2.0, 1.0, 0.5], [0.1, 0.5, 0.8], 1.0))
    (uniform,) = summarise(load_runs([tmp_path]))
    assert uniform.train_loss.time == uniform.score.time == uniform.score.steps == (1,)


def test_budgets_are_summarised_against_full_uniform(budgets):
    """Uniform ends at loss 0.4 and perplexity 8 after 4 seconds and 20 steps."""
    full, half, loss_70, loss_50 = summarise(load_runs([budgets]))
    assert [s.group.budget for s in (full, half, loss_70, loss_50)] == [1.0, 0.5, 0.7, 0.5]
    assert [s.steps for s in (full, half, loss_70, loss_50)] == [(20,), (10,), (14,), (10,)]
    assert full.train_loss.time == full.train_loss.steps == full.score.steps == (1,)
    assert half.train_loss.time == half.train_loss.steps == half.score.steps == (INF,)
    assert (loss_70.train_loss.time, loss_70.train_loss.steps) == ((5 / 4,), (14 / 20,))
    assert (loss_70.score.time, loss_70.score.steps) == ((5 / 4,), (14 / 20,))
    assert (loss_50.train_loss.time, loss_50.train_loss.steps) == ((1.5 / 4,), (5 / 20,))
    assert (loss_50.score.final, loss_50.score.time) == ((9.0,), (INF,))


def test_uniforms_largest_budget_is_the_baseline(budgets):
    """The baseline is loss 0.8 and perplexity 20 after 2 seconds and 10 steps."""
    runs = load_runs([budgets / name for name in ("u50", "l70")])
    table = cells(format_table(summarise(runs)))
    assert table["uniform 50%"].endswith("1.00 | 1.00 | 1.00 | 1.00")
    assert table["loss 70%"].endswith(" | 2.50 | 1.40 | 1.00 | 0.70")
    assert notes(runs) == ["no uniform run at the full budget; uniform 50% is the baseline instead"]
    assert 'Uniform\'s values are in row "uniform 50%".' in " ".join(explanation(runs).split())


def test_table(folder):
    table = format_table(summarise(load_runs([folder])))
    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        "method",
        "uniform",
        "approx",
        "loss",
    ]
    assert cells(table) == {
        "uniform": "2 | 20 | 4.00 ± 1.41 | 0.400 ± 0.141 | 1.000 ± 0.000 | 0.8000 ± 0.0283"
        " | 1.25 | 1.00 (1 of 2) | 1.25 | 1.00 (1 of 2)",
        "approx": "1 | 20 | 2.00 | 0.700 | 1.000 | 0.5000 | 0.25 | 0.50 | 0.25 | 0.50",
        "loss": "2 | 20 | 5.00 ± 1.41 | 0.300 ± 0.141 | 1.000 ± 0.000 | 0.6500 ± 0.0707"
        " | 0.88 ± 0.18 | 0.75 ± 0.35 | never | never",
    }


def test_table_of_budgets(budgets):
    table = format_table(summarise(load_runs([budgets])))
    assert [cell.strip() for cell in table.splitlines()[0].split("  ") if cell.strip()] == [
        "final",
        "final",
        "to uniform's final train loss",
        "to uniform's final test perplexity",
    ]
    assert " ".join(table.splitlines()[1].split()) == (
        "method seeds steps seconds train loss test perplexity time steps time steps"
    )
    assert list(cells(table)) == ["uniform", "uniform 50%", "loss 70%", "loss 50%"]
    assert cells(table)["loss 50%"] == (
        "1 | 10 | 3.00 | 0.300 | 9.000 | 0.38 | 0.25 | never | never"
    )


def test_steps_skipped_have_a_column_if_there_are_any(folder):
    write_run(folder / "n", "nan", 0, [(0, 0.0, 2.0, 0.1), (20, 1.0, 0.5, 0.2)])
    lines = [json.loads(line) for line in (folder / "n/metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"skipped": 7}) + "\n" for line in lines)
    (folder / "n/metrics.jsonl").write_text(text)
    table = format_table(summarise(load_runs([folder])))
    assert cells(table)["nan"].startswith("1 | 20 | 1.00 | 7 of 20 | 0.500 | 1.000 | 0.2000 | ")
    assert cells(table)["uniform"].startswith("2 | 20 | 4.00 ± 1.41 | 0 of 40 | 0.400")
    heading = " ".join(table.splitlines()[1].split())
    assert "seconds steps skipped train loss test loss test accuracy time" in heading


def test_table_of_test_losses_without_accuracy_and_perplexity(tmp_path):
    write_run(tmp_path / "u", rows=rows([2, 1, 0.5], [3, 2, 0.9], 1), metric="test_loss")
    write_run(tmp_path / "l", "loss", rows=rows([2, 1, 0.6], [3, 0.8, 0.7], 1), metric="test_loss")
    table = format_table(summarise(load_runs([tmp_path])))
    assert "to uniform's final test loss" in table.splitlines()[0]
    assert cells(table)["loss"] == "1 | 20 | 2.00 | 0.600 | 0.700 | never | never | 0.50 | 0.50"


def test_table_in_markdown(folder):
    write_run(folder / "l50", "loss", 0, rows([2.0, 0.9], [0.1, 0.9], 1.0), budget=0.5)
    table = format_table(summarise(load_runs([folder])), markdown=True)
    heading, rule, *lines = table.splitlines()
    assert heading == (
        "| method | seeds | steps | seconds | final train loss | final test loss "
        "| final test accuracy | time to uniform's final train loss "
        "| steps to uniform's final train loss | time to uniform's final test accuracy "
        "| steps to uniform's final test accuracy |"
    )
    assert rule == "| --- | --: | --: | --: | --: | --: | --: | --- | --- | --- | --- |"
    assert lines == [
        "| `uniform` | 2 | 20 | 4.00 ± 1.41 | 0.400 ± 0.141 | 1.000 ± 0.000 | 0.8000 ± 0.0283 "
        "| 1.25 (1 of 2) | 1.00 (1 of 2) | 1.25 (1 of 2) | 1.00 (1 of 2) |",
        "| `approx` | 1 | 20 | 2.00 | 0.700 | 1.000 | 0.5000 | 0.25 | 0.50 | 0.25 | 0.50 |",
        "| `loss` | 2 | 20 | 5.00 ± 1.41 | 0.300 ± 0.141 | 1.000 ± 0.000 | 0.6500 ± 0.0707 "
        "| 0.88 ± 0.18 | 0.75 ± 0.35 | never | never |",
        "| `loss 50%` | 1 | 10 | 1.00 | 0.900 | 1.000 | 0.9000 | never | never | 0.25 | 0.50 |",
    ]


def test_columns_have_a_cell_per_row_of_the_table(folder):
    table = columns(summarise(load_runs([folder])))
    assert [column[0] for column in table] == [
        "method",
        "seeds",
        "steps",
        "seconds",
        "final train loss",
        "final test loss",
        "final test accuracy",
        *(f"{kind} to uniform's final train loss" for kind in ("time", "steps")),
        *(f"{kind} to uniform's final test accuracy" for kind in ("time", "steps")),
    ]
    assert [column[2] for column in table] == [
        *("approx", "1", "20", "2.00", "0.700", "1.000", "0.5000", "0.25", "0.50", "0.25", "0.50")
    ]
    assert {len(column) for column in table} == {4}


def test_table_is_readable_at_its_widest(tmp_path):
    """A long name with a budget, losses of six decimals, seeds that do not all get there."""
    for seed, end in enumerate((0.000173, 0.001519, 0.1)):
        for method, share in (("uniform", 1.0), ("learned_loss", 0.5)):
            run = [(0, 0.0, 2.0, 0.1), (6000 * share, 20.0 + seed, end * share, 1.0 - end)]
            path = tmp_path / f"{method}{seed}"
            write_run(path, method, seed, run, num_steps=6000, budget=share)
    table = format_table(summarise(load_runs([tmp_path])))
    assert "(2 of 3)" in table
    assert max(map(len, table.splitlines())) <= 165


def test_columns_are_aligned(folder):
    top, heading, *lines = format_table(summarise(load_runs([folder]))).splitlines()
    start = top.index("to uniform's final test accuracy")
    assert heading[start:].startswith("time")
    starts = (start, heading.rindex("steps"))
    assert all(line[i - 1] == " " and line[i] != " " for line in lines for i in starts)
    end = heading.index("train loss") + len("train loss")
    assert all(line[end - 1].isdigit() and line[end] == " " for line in lines)


def test_small_losses_keep_three_digits(tmp_path):
    write_run(tmp_path, rows=rows([1.0, 0.000123456], [0.1, 1.0], 1.0))
    assert " 0.000123 " in format_table(summarise(load_runs([tmp_path])))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_run_that_diverged_is_in_the_table(tmp_path, value):
    write_run(tmp_path / "u", rows=rows([1.0, 0.5, 0.4], [0.1, 0.5, 0.6], 1.0))
    write_run(tmp_path / "l0", "loss", 0, rows([1.0, 2.0, float(value)], [0.1] * 3, 1.0))
    write_run(tmp_path / "l1", "loss", 1, rows([1.0, 2.0, 3.0], [0.1] * 3, 1.1))
    line = cells(format_table(summarise(load_runs([tmp_path]))))["loss"]
    assert f"| {value} ± nan |" in line
    assert line.endswith("never | never | never | never")


def test_a_run_that_ends_as_uniform_reaches_the_target_at_its_end(tmp_path):
    """NumPy's mean of three times 0.7 is below 0.7."""
    ends = rows([1.0, 0.8, 0.7], [0.1, 0.5, 0.6], 1.0)
    for seed in range(3):
        write_run(tmp_path / f"u{seed}", seed=seed, rows=ends)
    write_run(tmp_path / "l", "loss", rows=ends)
    summary = summarise(load_runs([tmp_path]))[1]
    assert summary.train_loss.time == summary.train_loss.steps == summary.score.time == (1.0,)


def test_no_uniform(folder):
    runs = load_runs([folder / "deep"])
    line = cells(format_table(summarise(runs)))["loss"]
    assert line.endswith(" | ".join(["\N{EN DASH}"] * 4))
    (note,) = notes(runs)
    assert "no uniform run" in note
    assert "method uniform, dataset mnist, 20 steps" in note


def test_untrained_uniform_is_no_reference(tmp_path):
    write_run(tmp_path / "u", rows=[(0, 0.0, 2.0, 0.1)])
    write_run(tmp_path / "l", "loss", rows=rows([2.0, 1.0, 0.5], [0.1, 0.5, 0.6], 1.0))
    runs = load_runs([tmp_path])
    line = cells(format_table(summarise(runs)))["loss"]
    assert line.endswith(" | ".join(["\N{EN DASH}"] * 4))
    assert "uniform has not trained yet; wait for its next evaluation" in notes(runs)


def test_the_explanation_points_to_the_rows_of_other_budgets(folder, budgets):
    text = " ".join(explanation(load_runs([budgets / "u", budgets / "l50"])).split())
    assert "would give" not in text
    assert (
        "what a shorter budget gives. For that, compare the final values of the rows with" in text
    )
    assert 'Uniform\'s values are in row "uniform".' in text
    text = " ".join(explanation(load_runs([folder / "u0", folder / "deep"])).split())
    assert text.endswith("not what a shorter budget would give.")


def density(t, freedom):
    """Density of Student's t distribution."""
    constant = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
    return constant / math.sqrt(math.pi * freedom) * (1 + t * t / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize("number", [3, 5, 12])
def test_an_interval_holds_95_percent_of_students_distribution(number):
    values = np.random.default_rng(number).normal(3, 2, number)
    low, high = interval(values)
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(number)
    assert low + high == pytest.approx(2 * mean)
    inside, _ = integrate.quad(density, (low - mean) / error, (high - mean) / error, (number - 1,))
    assert inside == pytest.approx(0.95, abs=1e-6)


def test_two_seeds_or_a_diverged_one_have_no_interval():
    assert interval([1.0, 2.0]) is interval([]) is None
    assert interval([1.0, 2.0, float("nan")]) is interval([1.0, 2.0, INF]) is None
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
