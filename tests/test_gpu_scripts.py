"""The scripts for a lent GPU run, here on a CPU with tiny sizes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # starts several programs

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


def run(script, folder, *args):
    """Runs a script with this interpreter, on a CPU."""
    environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    command = ["bash", str(BENCHMARKS / script), str(folder), *args]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    errors = [file.read_text() for file in folder.glob("*.err")]
    assert "stopped or failed" not in done.stdout, errors
    assert (folder / "about.txt").read_text().split("jax ")[1].startswith("0.")


def test_draws_steps_and_their_profile(tmp_path):
    run("on_gpu.sh", tmp_path, "--tiny")
    for name in ("draw", "step_cost", "profile"):
        lines = (tmp_path / f"{name}.txt").read_text().splitlines()
        assert any(json.loads(line) for line in lines if line.startswith("{")), name


def test_the_authors_experiment(tmp_path):
    run("paper_on_gpu.sh", tmp_path, "--tiny", "--methods", "uniform")
    lines = (tmp_path / "paper.txt").read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert {line["method"] for line in found} == {"uniform"}
