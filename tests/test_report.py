import sys

import pytest
from helpers import rows, write_run

from isjax import report
from isjax.runs import load_runs


@pytest.fixture
def no_figure(monkeypatch):
    monkeypatch.setattr(report, "draw_figure", lambda runs, output: None)


def cells(table):
    return {line.split()[0]: line for line in table.split("\n\n")[0].splitlines()[2:]}


def test_summaries_match_hand_computed_values(folder):
    uniform, approx, loss = report.summarise(load_runs([folder]))
    assert [uniform.method, approx.method, loss.method] == ["uniform", "approx", "loss"]
    assert uniform[1:5] == ((20, 20), (3.0, 5.0), (0.5, 0.3), (0.78, 0.82))
    assert uniform.loss_ratio == uniform.accuracy_ratio == (float("inf"), 5 / 4)
    # At exactly the target counts as there; a first crossing counts even if it is lost again.
    assert loss.loss_ratio == (3 / 4, 4 / 4)
    assert loss.accuracy_ratio == (float("inf"), float("inf"))
    assert approx.loss_ratio == approx.accuracy_ratio == (1 / 4,)


def test_table(folder):
    table = report.format_table(report.summarise(load_runs([folder])))
    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        "method",
        "uniform",
        "approx",
        "loss",
    ]
    line = cells(table)
    assert line["uniform"].split("  ")[0] == "uniform"
    assert "4.00 ± 1.41" in line["uniform"]
    assert "0.400 ± 0.141" in line["uniform"]
    assert "0.8000 ± 0.0283" in line["uniform"]
    assert line["uniform"].count("1.25 (1 of 2)") == 2
    assert "0.88 ± 0.18  " in line["loss"]
    assert line["loss"].endswith("never")
    assert line["approx"].split() == ["approx", "1", "20", "2.00", "0.700", "0.5000"] + 2 * ["0.25"]


def test_columns_are_aligned(folder):
    _, heading, *lines = report.format_table(report.summarise(load_runs([folder]))).splitlines()
    start = heading.index("final test accuracy")
    assert all(line[start - 1] == " " and line[start] != " " for line in lines)
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
    assert f" {value} ± nan " in line
    assert line.split()[-2:] == ["never", "never"]


def test_no_uniform(folder, capsys, no_figure):
    assert report.main([str(folder / "deep")]) == 0
    out = capsys.readouterr().out
    assert cells(out)["loss"].split()[-2:] == ["\N{EN DASH}"] * 2
    (note,) = [line for line in out.splitlines() if line.startswith("note:")]
    assert "no uniform run" in note
    assert "method uniform, dataset mnist, 20 steps" in note


def test_untrained_uniform_is_no_reference(tmp_path, capsys, no_figure):
    write_run(tmp_path / "u", rows=[(0, 0.0, 2.0, 0.1)])
    write_run(tmp_path / "l", "loss", rows=rows([2.0, 1.0, 0.5], [0.1, 0.5, 0.6], 1.0))
    assert report.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert cells(out)["loss"].split()[-2:] == ["\N{EN DASH}"] * 2
    assert "uniform has not trained yet" in out


def test_notes_on_unequal_runs(folder, capsys, no_figure):
    write_run(folder / "g", "grad", 0, rows([2.0, 0.5], [0.1, 0.5], 1.0))
    write_run(folder / "h", "grad", 0, rows([2.0, 0.5, 0.4], [0.1, 0.5, 0.6], 1.0))
    assert report.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "note: the runs differ in their number of steps: 10, 20\n" in out
    assert f"note: {folder / 'g'} is at step 10 of 20\n" in out
    assert "note: grad has several runs with one seed" in out
    assert " 10 to 20 " in cells(out)["grad"]


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
        '{"step": 30, "seconds": "x", "train_loss": 1, "test_accuracy": 1}',
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
