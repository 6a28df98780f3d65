import re
import sys

import pytest
from helpers import rows, write_run

from isjax import report
from isjax.runs import load_runs

INF = float("inf")


@pytest.fixture
def no_figure(monkeypatch):
    monkeypatch.setattr(report, "draw_figure", lambda runs, output: None)


def cells(table):
    """The cells after a row's label, by that label."""
    lines = table.split("\n\n")[0].splitlines()[2:]
    return dict(re.sub("  +", " | ", line).split(" | ", 1) for line in lines)


def notes(out):
    return [line for line in out.splitlines() if line.startswith("note: ")]


def test_summaries_match_hand_computed_values(folder):
    uniform, approx, loss = report.summarise(load_runs([folder]))
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
    (uniform,) = report.summarise(load_runs([tmp_path]))
    assert uniform.train_loss.time == uniform.score.time == uniform.score.steps == (1,)


def test_budgets_are_summarised_against_full_uniform(budgets):
    """Whose run ends at loss 0.4 and perplexity 8 after 4 seconds and 20 steps."""
    full, half, loss_70, loss_50 = report.summarise(load_runs([budgets]))
    assert [s.group.budget for s in (full, half, loss_70, loss_50)] == [1.0, 0.5, 0.7, 0.5]
    assert [s.steps for s in (full, half, loss_70, loss_50)] == [(20,), (10,), (14,), (10,)]
    assert full.train_loss.time == full.train_loss.steps == full.score.steps == (1,)
    assert half.train_loss.time == half.train_loss.steps == half.score.steps == (INF,)
    assert (loss_70.train_loss.time, loss_70.train_loss.steps) == ((5 / 4,), (14 / 20,))
    assert (loss_70.score.time, loss_70.score.steps) == ((5 / 4,), (14 / 20,))
    assert (loss_50.train_loss.time, loss_50.train_loss.steps) == ((1.5 / 4,), (5 / 20,))
    assert (loss_50.score.final, loss_50.score.time) == ((9.0,), (INF,))


def test_uniform_at_the_largest_budget_stands_in(budgets, capsys, no_figure):
    """So that the reference is loss 0.8 and perplexity 20 after 2 seconds and 10 steps."""
    assert report.main([str(budgets / name) for name in ("u50", "l70")]) == 0
    out = capsys.readouterr().out
    assert cells(out)["uniform 50%"].endswith("1.00 | 1.00 | 1.00 | 1.00")
    assert cells(out)["loss 70%"].endswith(" | 2.50 | 1.40 | 1.00 | 0.70")
    assert notes(out) == [
        "note: no uniform run of the full budget; uniform 50% stands in for uniform"
    ]
    assert 'Uniform\'s values are in row "uniform 50%".' in " ".join(out.split())


def test_table(folder):
    table = report.format_table(report.summarise(load_runs([folder])))
    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        "method",
        "uniform",
        "approx",
        "loss",
    ]
    assert cells(table) == {
        "uniform": "2 | 20 | 4.00 ± 1.41 | 0.400 ± 0.141 | 0.8000 ± 0.0283"
        " | 1.25 | 1.00 (1 of 2) | 1.25 | 1.00 (1 of 2)",
        "approx": "1 | 20 | 2.00 | 0.700 | 0.5000 | 0.25 | 0.50 | 0.25 | 0.50",
        "loss": "2 | 20 | 5.00 ± 1.41 | 0.300 ± 0.141 | 0.6500 ± 0.0707"
        " | 0.88 ± 0.18 | 0.75 ± 0.35 | never | never",
    }


def test_table_of_budgets(budgets):
    table = report.format_table(report.summarise(load_runs([budgets])))
    assert re.split("  +", table.splitlines()[0].strip()) == [
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


def test_table_of_losses_where_there_is_neither_accuracy_nor_perplexity(tmp_path):
    write_run(tmp_path / "u", rows=rows([2, 1, 0.5], [3, 2, 0.9], 1), metric="test_loss")
    write_run(tmp_path / "l", "loss", rows=rows([2, 1, 0.6], [3, 0.8, 0.7], 1), metric="test_loss")
    table = report.format_table(report.summarise(load_runs([tmp_path])))
    assert "to uniform's final test loss" in table.splitlines()[0]
    assert cells(table)["loss"] == "1 | 20 | 2.00 | 0.600 | 0.700 | never | never | 0.50 | 0.50"


def test_table_in_markdown(folder, capsys, no_figure):
    write_run(folder / "l50", "loss", 0, rows([2.0, 0.9], [0.1, 0.9], 1.0), budget=0.5)
    assert report.main([str(folder), "--markdown"]) == 0
    heading, rule, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert heading == (
        "| method | seeds | steps | seconds | final train loss | final test accuracy "
        "| time to uniform's final train loss | steps to uniform's final train loss "
        "| time to uniform's final test accuracy | steps to uniform's final test accuracy |"
    )
    assert rule == "| --- | --: | --: | --: | --: | --: | --- | --- | --- | --- |"
    assert lines == [
        "| `uniform` | 2 | 20 | 4.00 ± 1.41 | 0.400 ± 0.141 | 0.8000 ± 0.0283 "
        "| 1.25 (1 of 2) | 1.00 (1 of 2) | 1.25 (1 of 2) | 1.00 (1 of 2) |",
        "| `approx` | 1 | 20 | 2.00 | 0.700 | 0.5000 | 0.25 | 0.50 | 0.25 | 0.50 |",
        "| `loss` | 2 | 20 | 5.00 ± 1.41 | 0.300 ± 0.141 | 0.6500 ± 0.0707 "
        "| 0.88 ± 0.18 | 0.75 ± 0.35 | never | never |",
        "| `loss 50%` | 1 | 10 | 1.00 | 0.900 | 0.9000 | never | never | 0.25 | 0.50 |",
    ]


def test_table_is_readable_at_its_widest(tmp_path):
    """A long name with a budget, losses of six decimals, seeds that do not all get there."""
    for seed, end in enumerate((0.000173, 0.001519, 0.1)):
        for method, share in (("uniform", 1.0), ("learned_loss", 0.5)):
            run = [(0, 0.0, 2.0, 0.1), (6000 * share, 20.0 + seed, end * share, 1.0 - end)]
            path = tmp_path / f"{method}{seed}"
            write_run(path, method, seed, run, num_steps=6000, budget=share)
    table = report.format_table(report.summarise(load_runs([tmp_path])))
    assert "(2 of 3)" in table
    assert max(map(len, table.splitlines())) <= 150


def test_columns_are_aligned(folder):
    top, heading, *lines = report.format_table(report.summarise(load_runs([folder]))).splitlines()
    start = top.index("to uniform's final test accuracy")
    assert heading[start:].startswith("time")
    starts = (start, heading.rindex("steps"))
    assert all(line[i - 1] == " " and line[i] != " " for line in lines for i in starts)
    end = heading.index("train loss") + len("train loss")
    assert all(line[end - 1].isdigit() and line[end] == " " for line in lines)


def test_small_losses_keep_three_digits(tmp_path):
    write_run(tmp_path, rows=rows([1.0, 0.000123456], [0.1, 1.0], 1.0))
    assert " 0.000123 " in report.format_table(report.summarise(load_runs([tmp_path])))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_diverged_run_is_reported(tmp_path, capsys, value):
    write_run(tmp_path / "u", rows=rows([1.0, 0.5, 0.4], [0.1, 0.5, 0.6], 1.0))
    write_run(tmp_path / "l0", "loss", 0, rows([1.0, 2.0, float(value)], [0.1] * 3, 1.0))
    write_run(tmp_path / "l1", "loss", 1, rows([1.0, 2.0, 3.0], [0.1] * 3, 1.1))
    assert report.main([str(tmp_path)]) == 0
    line = cells(capsys.readouterr().out)["loss"]
    assert f"| {value} ± nan |" in line
    assert line.endswith("never | never | never | never")


def test_no_uniform(folder, capsys, no_figure):
    assert report.main([str(folder / "deep")]) == 0
    out = capsys.readouterr().out
    assert cells(out)["loss"].endswith(" | ".join(["\N{EN DASH}"] * 4))
    (note,) = notes(out)
    assert "no uniform run" in note
    assert "method uniform, dataset mnist, 20 steps" in note


def test_untrained_uniform_is_no_reference(tmp_path, capsys, no_figure):
    write_run(tmp_path / "u", rows=[(0, 0.0, 2.0, 0.1)])
    write_run(tmp_path / "l", "loss", rows=rows([2.0, 1.0, 0.5], [0.1, 0.5, 0.6], 1.0))
    assert report.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert cells(out)["loss"].endswith(" | ".join(["\N{EN DASH}"] * 4))
    assert "uniform has not trained yet" in out


def test_notes_on_unequal_runs(folder, capsys, no_figure):
    write_run(folder / "g", "grad", 0, rows([2.0, 0.5], [0.1, 0.5], 1.0))
    write_run(folder / "h", "grad", 0, rows([2.0, 0.5, 0.4], [0.1, 0.5, 0.6], 1.0))
    assert report.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "note: the runs differ in their number of steps: 10, 20\n" in out
    assert f"note: {folder / 'g'} is at step 10 of 20\n" in out
    assert "note: grad has several runs with one seed" in out
    assert "| 10 to 20 |" in cells(out)["grad"]


def test_unequal_budgets_of_one_seed_are_no_cause_for_a_note(budgets, capsys, no_figure):
    assert report.main([str(budgets)]) == 0
    assert notes(capsys.readouterr().out) == []


def test_notes_on_unequal_runs_at_a_budget(budgets, capsys, no_figure):
    write_run(budgets / "g", "grad", 0, rows([2.0, 0.5], [9, 8], 1.0), num_steps=40, budget=0.25)
    write_run(budgets / "h", "grad", 0, [(0, 0.0, 2.0, 9), (3, 1.0, 0.5, 8)], budget=0.25)
    write_run(budgets / "k", "grad", 0, [(0, 0.0, 2.0, 9), (5, 1.0, 0.5, 8)], budget=0.25)
    assert report.main([str(budgets)]) == 0
    assert notes(capsys.readouterr().out) == [
        "note: the runs differ in their number of steps: 3, 20, 40",
        f"note: {budgets / 'h'} is at step 3 of 5",
        "note: grad 25% has several runs with one seed; each is counted as a seed",
    ]


def test_the_explanation_points_to_the_rows_of_other_budgets(budgets, capsys, no_figure):
    assert report.main([str(budgets)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "would give" not in out
    assert "what a shorter budget gives: that is in the final values of the rows with a" in out
    assert 'Uniform\'s values are in row "uniform".' in out


def test_main_prints_and_writes_the_figure(folder, capsys):
    assert report.main([str(folder / "u0"), str(folder / "u1"), str(folder / "deep")]) == 0
    out = capsys.readouterr().out
    assert "not what a shorter budget would give." in out
    assert "note" not in out
    assert out.splitlines()[-1] == f"figure: {folder / 'report.png'}"
    data = (folder / "report.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert 20_000 < len(data) < 500_000


def test_path_of_the_figure(folder, capsys, monkeypatch):
    paths = []
    monkeypatch.setattr(report, "draw_figure", lambda runs, output: paths.append(output))
    assert report.main([str(folder / "deep")]) == 0
    assert report.main([str(folder), "--output", str(folder / "other.png")]) == 0
    assert paths == [folder / "deep/report.png", folder / "other.png"]
    assert capsys.readouterr().out.splitlines()[-1] == f"figure: {folder / 'other.png'}"


def error_of(arguments, capsys):
    assert report.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()[-1:]
    assert line.startswith("error: ")
    return line


def test_missing_and_empty_folders(tmp_path, folder, capsys):
    line = error_of([folder, tmp_path / "none"], capsys)
    assert f"{tmp_path / 'none'}: no such folder; give" in line
    (tmp_path / "empty").mkdir()
    line = error_of([tmp_path / "empty"], capsys)
    assert f"{tmp_path / 'empty'}: no run" in line
    assert "give a folder with config.json and metrics.jsonl" in line


@pytest.mark.parametrize(
    "line",
    [
        "{torn",
        "[1]",
        "3",
        '{"step": 30}',
        '{"step": 30, "seconds": "x", "train_loss": 1, "test_loss": 1}',
        '{"step": 30, "seconds": 4, "train_loss": 1, "test_accuracy": 1}',
        '{"step": 30, "seconds": 4, "train_loss": 1, "test_loss": 1, "test_accuracy": null}',
    ],
)
def test_malformed_complete_line(tmp_path, line, capsys):
    write_run(tmp_path, rows=rows([2.0, 1.0], [0.1, 0.5], 1.0), tail=line + "\n")
    line = error_of([tmp_path], capsys)
    assert f"{tmp_path / 'metrics.jsonl'}, line 3: malformed" in line
    assert "repair it, or move the run away" in line


def test_steps_going_back(tmp_path, capsys):
    write_run(tmp_path, rows=[(0, 0.0, 2.0, 0.1), (10, 1.0, 1.0, 0.2), (5, 1.5, 1.0, 0.2)])
    assert f"{tmp_path / 'metrics.jsonl'}: step or seconds goes back" in error_of(
        [tmp_path], capsys
    )


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"method": "a", "seed": "x"}'])
def test_malformed_config(tmp_path, text, capsys):
    write_run(tmp_path, rows=rows([2.0, 1.0], [0.1, 0.5], 1.0))
    (tmp_path / "config.json").write_text(text)
    assert f"{tmp_path / 'config.json'}: malformed" in error_of([tmp_path], capsys)


def test_different_data_sets(folder, capsys):
    write_run(folder / "c", rows=rows([2.0, 1.0], [0.1, 0.5], 1.0), dataset="cifar10")
    line = error_of([folder], capsys)
    assert f"cifar10 ({folder / 'c'}), mnist (" in line
    assert "one data set at a time" in line


def test_figure_that_cannot_be_written(folder, capsys):
    for output in (folder / "none/report.png", folder / "report.nonsense"):
        assert report.main([str(folder), "--output", str(output)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {output}: ")
        assert line.endswith("choose another file with --output")


def test_missing_matplotlib(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert report.main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert "uniform" in captured.out  # the table still comes
    assert captured.err == "error: no matplotlib for the figure; pip install 'isjax[run]'\n"
