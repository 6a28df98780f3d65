"""The command itself, in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = """
from isjax.config import default_config

def get_config():
    config = default_config()
    config.num_steps, config.num_evals = 20, 2
    return config
"""


def command(tmp_path, *arguments):
    (tmp_path / "config.py").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, "-m", "isjax.main", f"--config={tmp_path}/config.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def test_a_run_from_the_command_line(tmp_path):
    done = command(
        tmp_path,
        "--config.method=last_loss",
        "--config.method_options.k=0.25",
        f"--workdir={tmp_path}/run",
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["method"] == "last_loss" and config["method_options"] == {"k": 0.25}
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 10, 20]
    assert "last_loss, seed 0: train loss" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.methd=uniform", "--workdir=unused"], "did you mean method?"),
        (["--config.seed=1"], "--workdir is missing"),
        (["--workdir=unused", "seed=1"], "unexpected argument seed=1"),
        (["--config.num_steps=ten", "--workdir=unused"], "invalid literal for int"),
    ],
)
def test_a_mistake_is_one_line_without_traceback(tmp_path, arguments, message):
    done = command(tmp_path, *arguments)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_config_file_is_named(tmp_path):
    done = command(tmp_path, f"--config={tmp_path}/nowhere.py", "--workdir=unused")
    assert done.returncode != 0 and "nowhere.py" in done.stderr
    assert "Traceback" not in done.stderr
