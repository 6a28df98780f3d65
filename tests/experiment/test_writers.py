import json
import struct

import pytest
from helpers import file_limit
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


@pytest.mark.parametrize("kept", [0, 5])
def test_a_line_is_written_whole_or_not_at_all(tmp_path, kept):
    """On a disk that has room for some of its bytes, or for none."""
    path = tmp_path / "training.jsonl"
    with Writer(tmp_path) as writer:
        writer.write("training", {"step": 0, "loss": 1.0})
        before = path.read_bytes()
        with (
            file_limit(len(before) + kept),
            pytest.raises(OSError, match=r"training\.jsonl cannot be written: File too large"),
        ):
            writer.write("training", {"step": 10, "loss": 2.0})
        assert path.read_bytes() == before and writer.sizes()["training"] == len(before)
        writer.write("training", {"step": 20, "loss": 3.0})
    assert [line["step"] for line in lines(tmp_path, "training.jsonl")] == [0, 20]


def fail_to_open(path):
    raise OSError(28, "No space left on device")


def open_full(path):
    return open("/dev/full", "wb")


@pytest.mark.parametrize("open_file", [fail_to_open, open_full])
def test_a_run_goes_on_where_tensorboard_has_no_room(tmp_path, monkeypatch, capfd, open_file):
    monkeypatch.setattr("tensorboardX.record_writer.open_file", open_file)
    with Writer(tmp_path) as writer:
        writer.write("evaluation", {"step": 0, "loss": 1.0})
        for step in range(100):
            writer.write("training", {"step": step, "loss": 1.0})
    assert len(lines(tmp_path, "training.jsonl")) == 100
    output = capfd.readouterr().err
    assert output.count("\n") == 1, output
    assert output.startswith(f"note: {tmp_path}/tensorboard cannot be written: No space left on de")
    assert "goes on without TensorBoard events, metrics.jsonl and" in output


@pytest.mark.parametrize(
    "junk",
    [b"junk", b"[1]", b'{"loss": 1}', b'{"step": "x"}', b'{"step": 1, "loss": null}', b"\xff"],
)
def test_a_damaged_line_is_named_by_file_and_number(tmp_path, junk):
    with Writer(tmp_path) as writer:
        writer.write("training", {"step": 0, "loss": 1.0})
    with open(tmp_path / "training.jsonl", "ab") as file:
        file.write(junk + b"\n")
    sizes = {"training": (tmp_path / "training.jsonl").stat().st_size}
    with pytest.raises(ValueError, match=r"training\.jsonl, line 2: damaged \(.*repair the line"):
        Writer(tmp_path, sizes)
