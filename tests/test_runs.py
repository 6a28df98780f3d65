import numpy as np
import pytest
from helpers import rows, write_run

from isjax.runs import load_runs


@pytest.mark.parametrize("tail", ['{"step": 30, "seco', '{"step": 30, "seconds": 4', "{"])
def test_torn_last_line_is_ignored(tmp_path, tail):
    write_run(tmp_path, rows=rows([2.0, 1.0], [0.1, 0.5], 1.0), tail=tail)
    (run,) = load_runs([tmp_path])
    np.testing.assert_array_equal(run.step, [0, 10])
    np.testing.assert_array_equal(run.train_loss, [2.0, 1.0])


def test_whole_last_line_without_newline_is_read(tmp_path):
    tail = '{"step": 30, "seconds": 4, "train_loss": 0.5, "test_accuracy": 0.5}'
    write_run(tmp_path, rows=rows([2.0, 1.0], [0.1, 0.5], 1.0), tail=tail)
    assert load_runs([tmp_path])[0].step[-1] == 30


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
