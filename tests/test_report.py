import sys

import pytest
from helpers import rows, write_run

from isjax import report


@pytest.fixture
def folders(monkeypatch):
    """Output folders of pages, which are not written."""
    written = []
    monkeypatch.setattr(
        report, "write_page", lambda runs, folder: written.append(folder) or folder / "index.html"
    )
    return written


def cells(table):
    """Cells of each row by its label."""
    lines = table.split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {label: " | ".join(row) for label, *row in rows}


def test_main_prints_table_explanation_notes_and_page(folder, capsys, folders):
    write_run(folder / "g", "grad", 0, rows([2.0, 0.5], [0.1, 0.5], 1.0))
    assert report.main([str(folder)]) == 0
    table, rest = capsys.readouterr().out.split("\n\n", 1)
    assert cells(table)["approx"] == "1 | 20 | 2.00 | 0.700 | 0.5000 | 0.25 | 0.50 | 0.25 | 0.50"
    assert "not what a shorter budget would give." in rest
    assert rest.splitlines()[-3:] == [
        "note: the runs have different numbers of steps: 10, 20",
        f"note: {folder / 'g'} is at step 10 of 20",
        f"page: {folder / 'report/index.html'}",
    ]


def test_main_prints_markdown_if_asked(folder, capsys, folders):
    assert report.main([str(folder), "--markdown"]) == 0
    heading, rule, first, *_ = capsys.readouterr().out.splitlines()
    assert heading.startswith("| method | seeds |") and rule.startswith("| --- | --: |")
    assert first.startswith("| `uniform` | 2 | 20 |")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_run_that_diverged_is_reported(tmp_path, capsys, value):
    write_run(tmp_path / "u", rows=rows([1.0, 0.5, 0.4], [0.1, 0.5, 0.6], 1.0))
    write_run(tmp_path / "l", "loss", 0, rows([1.0, 2.0, float(value)], [0.1] * 3, 1.0))
    assert report.main([str(tmp_path)]) == 0
    assert cells(capsys.readouterr().out)["loss"].endswith("never | never | never | never")
    assert (tmp_path / "report/index.html").stat().st_size > 10_000


def test_page_and_figures_are_written_above_the_runs(folder, capsys):
    """A report in the folder does not change the next one."""
    for _ in range(2):
        arguments = [str(folder / name) for name in ("u0", "u1", "deep")]
        assert report.main(arguments) == 0
        out = capsys.readouterr().out
        assert "note" not in out
        assert out.splitlines()[-1] == f"page: {folder / 'report/index.html'}"
    assert {path.name for path in (folder / "report").iterdir()} == {"index.html", "curves.png"}
    data = (folder / "report/curves.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and 20_000 < len(data) < 500_000


def test_where_the_page_goes(folder, capsys, folders, monkeypatch):
    assert report.main([str(folder / "deep")]) == 0
    assert report.main([str(folder / "deep/l0"), str(folder / "deep/l1")]) == 0
    assert report.main([str(folder), "--output", str(folder / "other/place")]) == 0
    monkeypatch.chdir(folder)
    assert report.main(["u0", "deep"]) == 0  # given relative to where one is
    assert folders == [folder / "deep/report"] * 2 + [folder / "other/place", folder / "report"]
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {folder / 'report/index.html'}"


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
    assert f"{tmp_path / 'metrics.jsonl'}: step or seconds decreases" in error_of(
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


def test_a_page_that_cannot_be_written(folder, capsys):
    (folder / "file").write_text("not a folder")
    for output in (folder / "file", folder / "file/below"):
        assert report.main([str(folder), "--output", str(output)]) == 2
        captured = capsys.readouterr()
        assert "uniform" in captured.out  # the table still comes
        (line,) = captured.err.splitlines()
        assert line.startswith(f"error: {output}: ")
        assert line.endswith("choose another folder with --output")


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_a_package_that_is_missing(folder, capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert report.main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert "uniform" in captured.out
    remedy = "pip install '.[run]' in a checkout of isjax"
    assert captured.err == f"error: no page without {name}; {remedy}\n"
    assert not (folder / "report").exists()
