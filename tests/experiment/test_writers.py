import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from isjax.experiment.writers import Writer


def events(workdir):
    """Every (tag, step) -> value in TensorBoard's files, parsed from their records."""
    values = []
    for path in sorted((workdir / "tensorboard").glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            values += [((v.tag, event.step), v.simple_value) for v in event.summary.value]
    assert len(dict(values)) == len(values), "an event is there twice"
    return dict(values)


def lines(workdir, name):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def test_lines_go_to_their_files_and_to_tensorboard(tmp_path):
    with Writer(tmp_path) as writer:
        writer.write("evaluation", {"step": 0, "test_loss": 0.5})
        writer.write("training", {"step": 10, "loss": 2.0, "ess": float("nan")})
        assert lines(tmp_path, "metrics.jsonl") == [{"step": 0, "test_loss": 0.5}]  # at once
    assert lines(tmp_path, "training.jsonl")[0]["loss"] == 2.0
    found = events(tmp_path)
    assert found["evaluation/test_loss", 0] == 0.5 and found["training/loss", 10] == 2.0
    assert len(found) == 2, "TensorBoard shows no NaN"


def test_what_a_crash_left_is_cut_off_and_nothing_is_doubled(tmp_path):
    writer = Writer(tmp_path)  # never closed, as after SIGKILL
    writer.write("evaluation", {"step": 0, "loss": 1.0})
    writer.write("training", {"step": 5, "loss": 0.9})
    sizes = writer.sizes()
    writer.write("evaluation", {"step": 10, "loss": 0.8})
    with open(tmp_path / "training.jsonl", "a") as file:
        file.write('{"step": 10, "lo')
    with Writer(tmp_path, sizes) as resumed:
        resumed.write("evaluation", {"step": 10, "loss": 0.75})
        resumed.write("training", {"step": 10, "loss": 0.7})
    assert [x["loss"] for x in lines(tmp_path, "metrics.jsonl")] == [1.0, 0.75]
    assert [x["loss"] for x in lines(tmp_path, "training.jsonl")] == [0.9, 0.7]
    found = events(tmp_path)
    assert {key: pytest.approx(value) for key, value in found.items()} == {
        ("evaluation/loss", 0): 1.0,
        ("evaluation/loss", 10): 0.75,
        ("training/loss", 5): 0.9,
        ("training/loss", 10): 0.7,
    }


def test_without_sizes_a_run_begins_anew(tmp_path):
    with Writer(tmp_path) as writer:
        writer.write("evaluation", {"step": 0, "loss": 1.0})
    with Writer(tmp_path):
        pass
    assert lines(tmp_path, "metrics.jsonl") == [] and events(tmp_path) == {}


def test_other_files_of_tensorboard_are_left_alone(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/notes.txt").write_text("mine")
    with Writer(tmp_path):
        pass
    assert (tmp_path / "tensorboard/notes.txt").read_text() == "mine"


def test_a_file_that_lost_lines_is_refused(tmp_path):
    with Writer(tmp_path) as writer:
        writer.write("evaluation", {"step": 0, "loss": 1.0})
        sizes = writer.sizes()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics.jsonl has 0 bytes, but .* restore the file"):
        Writer(tmp_path, sizes)
