"""Weights & Biases without a network: its own files of offline runs, read back."""

import functools
import json
import struct
import sys

import pytest
import wandb
from test_experiment import lines_of, make_config, make_dataset, stopped_after
from wandb.proto.wandb_internal_pb2 import Record

from isjax import experiment
from isjax.experiment import _run
from isjax.experiment.wandb_writer import WandbWriter

BLOCK = 32768  # https://github.com/google/leveldb/blob/main/doc/log_format.md


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield
    wandb.teardown()  # ends the process of W&B, for which Python would wait at its own end


def records(path):
    """The records of an offline run: LevelDB's log of protocol buffers, after a head of 7 bytes."""
    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # no head fits: padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


def sent(workdir):
    """What each process sent: `(id, name, project, rows, exit code)`, in the order of time."""
    wandb.teardown()  # until then W&B may be writing still
    processes = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        rows, run, code = [], None, None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
            elif kind == "exit":
                code = record.exit.exit_code
            elif kind == "history":
                items = record.history.item
                rows.append({x.key or x.nested_key[0]: json.loads(x.value_json) for x in items})
        processes.append((run.run_id, run.display_name, run.project, rows, code))
    return processes


def wanted(workdir):
    """The lines of both files as rows."""
    lines = [
        (line["step"], kind, {f"{kind}/{name}": x for name, x in line.items() if name != "step"})
        for kind, name in (("training", "training.jsonl"), ("evaluation", "metrics.jsonl"))
        for line in lines_of(workdir, name)
    ]
    return [{"step": step, **numbers} for step, _, numbers in sorted(lines, key=lambda x: x[0])]


def without(rows, *endings):
    """Rows without W&B's own columns and those that end so."""
    return [
        {k: v for k, v in row.items() if k[0] != "_" and not k.endswith(endings)} for row in rows
    ]


@pytest.mark.slow
def test_the_lines_of_a_run_arrive(tmp_path):
    config = make_config(wandb="trials", log_every=15)
    experiment.run(config, tmp_path / "one", make_dataset())
    ((identity, name, project, rows, code),) = sent(tmp_path / "one")
    assert (name, project, code) == ("one", "trials", 0)
    assert without(rows, "/") == wanted(tmp_path / "one")
    assert [row["step"] for row in rows] == [0, 15, 20, 30, 40, 45, 60, 60]
    assert json.loads((tmp_path / "one/wandb.json").read_text())["id"] == identity


@pytest.mark.slow
def test_without_the_setting_nothing_is_sent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # cannot be imported
    experiment.run(make_config(), tmp_path, make_dataset())
    assert not list(tmp_path.glob("wandb*"))


@pytest.mark.slow
def test_resumed_runs_send_each_line_once_to_the_same_run(tmp_path, monkeypatch):
    """Also where a process sent lines after its last checkpoint, and was then killed."""
    config = make_config(wandb="trials", checkpoint_every=25, log_every=7, seed=1)
    for number in (1, 34):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(_run, "stop_on_signal", functools.partial(stopped_after, number))
            experiment.run(config, tmp_path, make_dataset())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        add = WandbWriter.write

        def dies(self, kind, line):  # at step 49: after the checkpoint of 25, and that of 40
            add(self, kind, line)
            if line["step"] == 49:
                raise KeyboardInterrupt

        patch.setattr(WandbWriter, "write", dies)
        experiment.run(config, tmp_path, make_dataset())
    experiment.run(config, tmp_path, make_dataset())

    processes = sent(tmp_path)
    assert len(processes) == 4 and len({process[:3] for process in processes}) == 1
    assert [code for *_, code in processes] == [0, 0, 1, 0]
    rows = [row for *_, rows, _ in processes for row in rows]
    places = [row["_step"] for row in rows]
    assert places == sorted(set(places)), "W&B's steps must increase"
    assert without(rows, "seconds") == without(wanted(tmp_path), "seconds")


def test_a_line_that_was_not_sent_is_sent_by_the_next_process(tmp_path):
    writer = WandbWriter("trials", tmp_path, {})
    with writer:
        writer.write("evaluation", {"step": 0, "loss": 2.0})
    with writer:
        for kind, step in (("evaluation", 0), ("training", 5), ("evaluation", 5), ("training", 5)):
            writer.write(kind, {"step": step, "loss": 1.0})
    assert [[row["step"] for row in rows] for *_, rows, _ in sent(tmp_path)] == [[0], [5, 5]]


def test_what_the_server_has_counts_for_more_than_what_was_sent(tmp_path):
    """Online, what was on its way when the machine died is sent again."""
    got = []

    class Run:
        step = 21  # after the training line of step 10

        def log(self, row, step, commit):
            got.append((step, row))

        def define_metric(self, name, step_metric):
            assert (name, step_metric) == ("*", "step")

        def finish(self, exit_code):
            pass

    writer = WandbWriter("trials", tmp_path, {})
    (tmp_path / "wandb.json").write_text('{"id": "abc", "next": 40}')
    writer._wandb = type("wandb", (), {"init": lambda **_: Run(), "Error": RuntimeError})
    with writer:
        for kind, step in (("training", 10), ("evaluation", 10), ("training", 12)):
            writer.write(kind, {"step": step, "loss": 1.0})
    assert got == [
        (21, {"step": 10, "evaluation/loss": 1.0}),
        (24, {"step": 12, "training/loss": 1.0}),
    ]


def test_without_wandb_it_is_said_how_to_install_it_before_anything_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"config.wandb is trials.*pip install '\.\[wandb\]'"):
        experiment.run(make_config(wandb="trials"), tmp_path / "run", make_dataset())
    assert not (tmp_path / "run").exists()


def test_an_error_of_wandb_says_what_to_do(tmp_path):
    with pytest.raises(ConnectionError, match=r"config.wandb is a/b: .*WANDB_MODE=offline"):
        WandbWriter("a/b", tmp_path, {}).__enter__()


def test_a_damaged_id_begins_another_run(tmp_path, capfd):
    (tmp_path / "wandb.json").write_text('{"id": "abc", "ne')
    with WandbWriter("project", tmp_path, {}) as writer:
        writer.write("training", {"step": 0, "loss": 1.0})
    assert json.loads((tmp_path / "wandb.json").read_text())["next"] == 1
    assert "wandb.json is damaged" in capfd.readouterr().err
