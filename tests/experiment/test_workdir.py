import json
import os
import pathlib
import subprocess
import sys

import optax
import pytest

from isjax.experiment.config import ConfigError, default_config
from isjax.experiment.workdir import check_workdir, locked, write_config

LINES = {"first": '{"step": 0}\n', "trained": '{"step": 0}\n{"step": 5}\n'}


def hold(workdir, lines="trained", checkpoint=True, **settings):
    """A folder as a run leaves it."""
    config = default_config()
    config.update(settings)
    write_config(workdir, config)
    text = LINES.get(lines, lines)
    (workdir / "metrics.jsonl").write_text(text, errors="surrogateescape")
    if checkpoint:
        (workdir / "checkpoints/5").mkdir(parents=True)


def test_a_new_folder_and_a_run_of_the_same_config_pass(tmp_path):
    check_workdir(tmp_path / "new", default_config())
    hold(tmp_path)
    check_workdir(tmp_path, default_config())


def test_the_settings_that_differ_are_named(tmp_path):
    hold(tmp_path, seed=3, method_options={"k": 0.5})
    with pytest.raises(ConfigError) as error:
        check_workdir(tmp_path, default_config())
    assert "config.method_options.k was 0.5 and is None, config.seed was 3 and is 0" in str(
        error.value
    )
    check_workdir(tmp_path, default_config(), allow_changes=True)


@pytest.mark.parametrize(
    ("lines", "checkpoint", "passes"),
    [
        ("trained", True, True),
        ("trained", False, False),  # finished without checkpoints, or they were deleted
        ('junk\n\udcff\n{"step": 5}\n', False, False),
        ("first", False, True),  # killed before there was one
        ('{"step": 0, "tra', False, True),  # killed while the first line was written
        ("", False, True),
    ],
)
def test_a_run_that_cannot_be_resumed_is_not_erased(tmp_path, lines, checkpoint, passes):
    hold(tmp_path, lines, checkpoint)
    if passes:
        check_workdir(tmp_path, default_config())
        return
    with pytest.raises(ConfigError, match="already holds a run, without checkpoints; choose"):
        check_workdir(tmp_path, default_config())


def test_a_run_is_not_erased_by_a_config_without_checkpoints(tmp_path):
    hold(tmp_path)
    config = default_config()
    config.checkpoint_every = 0
    with pytest.raises(ConfigError, match="already holds a run"):
        check_workdir(tmp_path, config, allow_changes=True)


@pytest.mark.parametrize("name", ["lr[0.1]", "a]", "a\\b", "all*", "which?"])
def test_a_path_where_no_checkpoints_can_be_saved_is_refused(tmp_path, name):
    config = default_config()
    for workdir in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(ConfigError, match="checkpoints cannot be saved in a folder whose path"):
            check_workdir(workdir, config)
    config.checkpoint_every = 0
    check_workdir(tmp_path / name, config)


@pytest.mark.parametrize("content", ["", "[1]", "{", "\udcff", "[" * 10**5])
def test_a_config_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        check_workdir(tmp_path, default_config())


@pytest.mark.parametrize("name", ["metrics.jsonl", "training.jsonl"])
def test_metrics_of_something_else_are_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=r"holds metrics, but no config\.json"):
        check_workdir(tmp_path, default_config())


def test_settings_that_json_cannot_hold_are_refused(tmp_path):
    config = default_config()
    config.method_options.k = optax.constant_schedule(0.5)
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        check_workdir(tmp_path, config)


def test_the_config_is_written_whole(tmp_path):
    write_config(tmp_path, default_config())
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == json.loads(json.dumps(default_config().to_dict()))
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.slow
def test_a_folder_in_use_is_refused_until_the_process_ends(tmp_path):
    script = """
import pathlib, sys
from isjax.experiment.workdir import locked
with locked(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    process.stdout.readline()
    with pytest.raises(ConfigError, match="another process trains in"), locked(tmp_path / "run"):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file cannot be written"), locked(tmp_path / "file"):
        pass
