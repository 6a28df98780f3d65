"""Runs killed at random moments and resumed, against runs never interrupted; whole processes.

Each process compiles all that it runs.
"""

import json
import random
import signal
import time

import numpy as np
import pytest
from commands import Process

WITHOUT_CACHE = """
import jax

jax.config.update("jax_enable_compilation_cache", False)
"""
IMAGES = """
import sys
import numpy as np
from isjax import data, experiment
from isjax.experiment.config import default_config

rng = np.random.default_rng(0)
label = rng.integers(0, 3, 300).astype(np.int32)
images = rng.integers(0, 200, (300, 8, 8, 1)) + 25 * label[:, None, None, None]
part = {"x": images.astype(np.uint8), "label": label}
config = default_config()
config.update({"network": "CNN", "network_options": {"channels": (4,), "hidden": 8, "kernel": 3}})
config.update({"augment": ("flip", "crop"), "method": "biased_loss", "weight_decay": 1e-3})
"""
# The images of IMAGES, read from disk once they are chosen; what takes longest is read out of turn.
READ = """
import time

class Examples:
    def __len__(self):
        return len(label)

    def __getitem__(self, i):
        time.sleep(2e-4 * (i % 3))
        return {"x": part["x"][i], "label": label[i]}

from isjax.data.source import Source

train = Source(Examples())
config.update({"method": "default", "lag": 2})
"""
LANGUAGE = """
import sys
from isjax import experiment
from isjax.experiment.config import default_config

config = default_config()
config.update({"task": "language", "dataset": "ptb", "data_dir": sys.argv[2]})
config.update({"network": "LSTM", "method": "last_loss", "optimizer": "adam"})
config.network_options = {"features": 8, "embedding": 8, "dropout": 0.1}
config.dataset_options = {"format": "windows", "length": 6}
"""
COMMON = """
config.update({"num_steps": 600, "num_evals": 6, "checkpoint_every": 37, "log_every": 10})
config.update({"batch_size": 16, "pool_size": 32})
experiment.run(config, sys.argv[1], %s)
"""


def start(script, workdir, folder):
    return Process(["-c", WITHOUT_CACHE + script, workdir, folder], merged=True)


def finish(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def lines(workdir, name):
    """What a run wrote, but for the times; every line must be whole."""
    text = (workdir / name).read_text()
    assert text.endswith("\n")
    entries = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in e.items() if not k.endswith("seconds")} for e in entries]


def kill_while_training(process, workdir, moment, number):
    """Waits until the run has written `moment` more bytes of metrics, then signals it."""
    path = workdir / "training.jsonl"
    size = lambda: path.stat().st_size if path.exists() else 0  # noqa: E731
    before = size()
    while process.poll() is None and size() - before < moment:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.05))
    process.send_signal(number)
    return process.communicate()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(IMAGES + COMMON % "data.from_arrays(part, part, 3)", id="images"),
        pytest.param(
            IMAGES + READ + COMMON % "data.from_arrays(train, part, 3)", id="read when chosen"
        ),
        pytest.param(LANGUAGE + COMMON % "None", id="language"),
    ],
)
def test_a_run_killed_three_times_and_resumed_equals_one_never_interrupted(tmp_path, script):
    rng = random.Random(0)
    words = ["the", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "big", "small"]
    for part, number in (("train", 400), ("valid", 60), ("test", 60)):
        text = "\n".join(" ".join(rng.choices(words, k=9)) for _ in range(number))
        (tmp_path / f"ptb.{part}.txt").write_text(text)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(start(script, whole, tmp_path))

    total = (whole / "training.jsonl").stat().st_size
    moments = [random.uniform(0.02, 0.3) * total for _ in range(3)]
    print("killed after bytes of metrics:", moments)  # shown if the test fails
    for moment, number in zip(
        moments, [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM], strict=True
    ):
        process = start(script, parts, tmp_path)
        output = kill_while_training(process, parts, moment, number)
        if number == signal.SIGTERM:
            assert process.returncode == 0 and "the same command resumes" in output, output
        else:
            assert process.returncode == -signal.SIGKILL, output
    assert "resuming at step" in finish(start(script, parts, tmp_path))
    for name in ("metrics.jsonl", "training.jsonl"):
        assert lines(parts, name) == lines(whole, name)
    with np.load(whole / "draws.npz") as expected, np.load(parts / "draws.npz") as found:
        assert found.files == expected.files and expected["count"].sum() == 600 * 16
        for name in expected.files:  # in the ring they are in the same order, too
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
