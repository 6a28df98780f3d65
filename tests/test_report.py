import io
import re
import subprocess
import sys

import numpy as np
import pytest
from commands import ENVIRONMENT, ROOT
from helpers import rows, write_run

from isjax import __version__, report
from isjax.data.dataset import save
from isjax.reporting.notes import notes
from isjax.reporting.run_artifacts import load_artifacts
from isjax.reporting.runs import load_runs

COLUMNS = ("scores", "losses", "probs")


@pytest.fixture
def folders(monkeypatch):
    """Output folders of pages, which are not written."""
    written = []
    monkeypatch.setattr(
        report,
        "write_page",
        lambda runs, folder, _: written.append(folder) or folder / "index.html",
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
    assert (
        cells(table)["approx"]
        == "1 | 20 | 2.00 | 0.700 | 1.000 | 0.5000 | 0.25 | 0.50 | 0.25 | 0.50"
    )
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


@pytest.mark.slow
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_run_that_diverged_is_reported(tmp_path, capsys, value):
    write_run(tmp_path / "u", rows=rows([1.0, 0.5, 0.4], [0.1, 0.5, 0.6], 1.0))
    write_run(tmp_path / "l", "loss", 0, rows([1.0, 2.0, float(value)], [0.1] * 3, 1.0))
    assert report.main([str(tmp_path)]) == 0
    assert cells(capsys.readouterr().out)["loss"].endswith("never | never | never | never")
    assert (tmp_path / "report/index.html").stat().st_size > 10_000


@pytest.mark.slow
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


def test_the_page_ends_with_version_date_and_command(folder, capsys, monkeypatch):
    origins = []
    monkeypatch.setattr(report, "write_page", lambda *arguments: origins.append(arguments[2]))
    assert report.main([str(folder), "--output", str(folder / "my page")]) == 0
    command = f"python -m isjax.report {folder} --output '{folder / 'my page'}'"
    pattern = rf"isjax {__version__}, \d{{4}}-\d\d-\d\d \d\d:\d\d UTC: {re.escape(command)}"
    assert re.fullmatch(pattern, origins[0])


NAMES = ["uniform", "$", "a$b$c", r"\$x^{", "cost $5 and $6 {", "bell\x07, \x1b[31m", "\ud800"]
NAMES += ["a|b", "", "\ufffe", "字", "x" * 100_000]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")  # that the font lacks
def test_any_name_is_shown(tmp_path, capsys):
    for i, name in enumerate(NAMES):
        folder, values = tmp_path / str(i), rows([2.0, 1.0], [0.1, 0.5], 1.0)
        write_run(folder, name, rows=values, dataset="".join(NAMES), num_steps=10)
        save(folder / "draws.npz", count=np.arange(9), **dict.fromkeys(COLUMNS, np.arange(1, 30.0)))
    assert report.main([str(tmp_path), "--markdown"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    heading, _, *lines = captured.out.split("\n\n")[0].splitlines()
    assert len(lines) == len(NAMES)
    for line in lines:
        assert len(line) < 300 and line.replace(r"\|", "").count("|") == heading.count("|")
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert len(page) < 2_000_000
    assert not {c for c in captured.out + page if not c.isprintable()} - {"\n"}


def artifacts(folder):
    """A run folder with every file that a report reads."""
    write_run(folder, "loss", rows=rows([2.0, 1.0], [0.1, 0.5], 1.0), num_steps=10)
    (folder / "training.jsonl").write_text('{"step": 5, "ess": 0.5}\n{"step": 10, "ess": 0.25}\n')
    save(folder / "draws.npz", count=np.arange(9), **dict.fromkeys(COLUMNS, np.arange(1, 30.0)))
    ids = np.arange(4)
    save(folder / "examples.npz", ids=ids, count=ids, loss=ids / 2, label=ids.astype(str), x=ids)
    (folder / "time.json").write_text('{"step": 5, "seconds": {"train": 1.0}}')
    (folder / "failures.json").write_text('{"train": {"data": [1], "loss": []}}')


def arrays(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


LABELS, ONES = np.full(30, "a"), np.ones(30)
DAMAGED = {
    "training.jsonl": [
        *(b"3\n", b"[]\n", b'{"step": "a"}\n', b"\xff\xfe\n", b"[" * 100_000, b"\0" * 50),
        b'{"step": 1e400}\n{"a": 1}',
        b'{"step": 1%s, "ess": 1}\n' % (b"0" * 400),
    ],
    "draws.npz": [
        *(b"", b"junk", b"PK\x03\x04 half", b"\x93NUMPY" * 9, arrays(), arrays(count=np.arange(3))),
        arrays(count=np.arange(-3, 0), **dict.fromkeys(COLUMNS, ONES)),
        arrays(count=np.arange(3), **dict.fromkeys(COLUMNS, LABELS)),
        arrays(count=np.arange(3), scores=ONES, losses=ONES[1:], probs=ONES),
        arrays(count=np.ones((3, 3)), **dict.fromkeys(COLUMNS, ONES[:, None])),
    ],
    "examples.npz": [
        *(b"", arrays(ids=np.arange(2)), arrays(ids=1, count=1, loss=1)),
        arrays(ids=np.arange(30), count=np.arange(30), loss=LABELS),
        arrays(ids=np.arange(30), count=np.arange(2), loss=ONES),
        arrays(ids=np.arange(30), count=np.arange(30), loss=ONES, label=ONES),
    ],
    "time.json": [
        *(b"", b"{", b"[]", b"3", b"{}", b"\xff", b'{"seconds": 3}', b'{"seconds": [1]}'),
        *(b'{"seconds": {"train": %s}}' % time for time in (b'"a"', b"NaN", b"-1", b"null")),
    ],
    "failures.json": [b"", b"[]", b'{"train": 1}', b"\xff", b'{"train": {"data": [1e400]}}'],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_artifacts_are_left_out_and_named(tmp_path, capsys, name):
    for i, data in enumerate(DAMAGED[name]):
        artifacts(tmp_path)
        (tmp_path / name).write_bytes(data)
        runs = load_runs([tmp_path])
        load_artifacts(runs[0])
        notes(runs)
        error = capsys.readouterr().err
        noted = f"note: {tmp_path / name}: damaged, left out" in error
        assert "pickle" not in error
        assert noted == (name not in ("training.jsonl", "failures.json")), i


def test_damaged_artifacts_leave_the_rest_of_the_report(tmp_path, capsys):
    artifacts(tmp_path)
    for name, data in DAMAGED.items():
        (tmp_path / name).write_bytes(data[-1])
    assert report.main([str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("damaged, left out") >= 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"method": "a", "seed": 1e400, "num_steps": 9, "dataset": "b"}'),
        ("config.json", '{"method": "a", "seed": 1, "num_steps": 1e400, "dataset": "b"}'),
        ("config.json", '{"method": "a", "seed": 1, "num_steps": NaN, "dataset": "b"}'),
        ("config.json", '{"method": "a", "seed": 1, "num_steps": 0, "dataset": "b"}'),
        ("config.json", '{"method": "a", "seed": 1, "num_steps": %s, "dataset": 1}' % ("9" * 99)),
        (
            "config.json",
            '{"seed": 1, "num_steps": 9, "dataset": "b", "budget": 1e300, "method": 1}',
        ),
        ("config.json", "\ufeff{}"),
        ("config.json", "[" * 100_000),
        ("metrics.jsonl", '{"step": NaN, "seconds": 1, "train_loss": 1, "test_loss": 1}\n'),
        ("metrics.jsonl", '{"step": 1e400, "seconds": 1, "train_loss": 1, "test_loss": 1}\n'),
        ("metrics.jsonl", '{"step": -1, "seconds": 1, "train_loss": 1, "test_loss": 1}\n'),
        ("metrics.jsonl", '{"step": 1, "seconds": %s, "train_loss": 1}\n' % ("9" * 400)),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
    ],
)
def test_a_damaged_run_is_named_in_one_line(tmp_path, capsys, name, text):
    artifacts(tmp_path)
    (tmp_path / name).write_text(text)
    line = error_of([tmp_path], capsys)
    assert f"{tmp_path / name}" in line and "malformed" in line


@pytest.mark.slow
def test_a_reader_that_ends_early_and_a_narrow_encoding_are_no_error(folder):
    command = f"{sys.executable} -m isjax.report {folder}"
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    for rest in ("| true", "| cat"):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{command} {rest}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert r"\xb1" in done.stdout  # ±


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_a_package_that_is_missing(folder, capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert report.main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert "uniform" in captured.out
    remedy = "pip install '.[run]' in a checkout of isjax"
    assert captured.err == f"error: no page without {name}; {remedy}\n"
    assert not (folder / "report").exists()
