"""Several processes on one host, which talk over loopback: trained, killed, resumed."""

import functools
import itertools
import json
import signal
import time

import numpy as np
import pytest
import tiny_tfds
from processes import finish, launch, metrics, start

pytestmark = pytest.mark.slow
SETTINGS = ("num_steps=60", "num_evals=3", "log_every=10", "checkpoint_every=20")
SETTINGS += ("network=MLP", "artifacts=False", "eval_examples=500")


def wait_for_checkpoint(workdir, step, started):
    while not (workdir / "checkpoints" / str(step)).exists():
        assert all(process.poll() is None for process in started), started[0].communicate()[0]
        time.sleep(0.02)


def kill(started):
    for process in started:
        process.send_signal(signal.SIGKILL)
    for process in started:
        process.communicate()


def assert_same_lines(parts, whole):
    for name in ("metrics.jsonl", "training.jsonl"):
        assert metrics(parts, name) == metrics(whole, name)


def test_processes_killed_together_resume_as_if_never_interrupted(tmp_path):
    """Two of two devices, which draw by part."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = functools.partial(start, processes=2, devices=2)
    settings = (*SETTINGS, "method=last_loss", "strata=4")
    finish(run(whole, *settings))
    started = run(parts, *settings)
    wait_for_checkpoint(parts, 20, started)
    kill(started)
    outputs = finish(run(parts, *settings))
    assert "resuming at step" in outputs[0]
    assert_same_lines(parts, whole)


def test_a_process_that_is_lost_ends_the_others_and_sigterm_to_one_stops_all(tmp_path):
    """Then they resume as if never interrupted. Two of one device, which draw globally."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = (*SETTINGS, "num_steps=180", "log_every=60", "checkpoint_every=60")
    settings += ("method=default",)
    outputs = finish(start(whole, *settings, processes=2))
    assert "seed 0" in outputs[0] and "seed 0" not in outputs[1]  # only process 0 speaks

    started = start(parts, *settings, processes=2)
    wait_for_checkpoint(parts, 60, started)
    started[1].send_signal(signal.SIGKILL)
    output, _ = started[0].communicate(timeout=90)
    assert started[0].returncode == 1
    assert "another process has ended" in output and "same command" in output

    started = start(parts, *settings, processes=2)
    wait_for_checkpoint(parts, 120, started)
    started[1].send_signal(signal.SIGTERM)
    output = finish(started)[0]
    assert "resuming at step" in output and "the same command resumes" in output

    outputs = finish(start(parts, *settings, processes=2))
    assert "resuming at step" in outputs[0]
    assert_same_lines(parts, whole)


def test_processes_that_read_what_they_choose_resume_as_if_never_interrupted(tmp_path):
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 90, (6, 6, 1), np.uint8) + 80 * (i % 3), i % 3) for i in range(203)]
    images = [(pixels.astype(np.uint8), label) for pixels, label in images]
    splits = {"train": images[:190], "test": images[190:]}
    tiny_tfds.write_images(tmp_path, "tiny_images", splits, (6, 6, 1), 3)
    settings = (*SETTINGS, "dataset=tiny_images", f"data_dir={tmp_path}")
    settings += ("method=default", "in_memory=False", "lag=2", "pool_size=64", "batch_size=16")
    one, whole, parts = (tmp_path / name for name in ("one", "whole", "parts"))
    finish(start(one, *settings))
    finish(start(whole, *settings, processes=2))
    for line, other in zip(metrics(one), metrics(whole), strict=True):
        for name, value in line.items():
            np.testing.assert_allclose(value, other[name], rtol=2e-3, atol=1e-4, err_msg=name)

    started = start(parts, *settings, processes=2)
    wait_for_checkpoint(parts, 20, started)
    kill(started)
    outputs = finish(start(parts, *settings, processes=2))
    assert "resuming at step" in outputs[0]
    assert_same_lines(parts, whole)


READING = """
import itertools
import json
import jax, numpy as np
from isjax.parallel.processes import connect
from isjax.data.loading import Loader
from isjax.parallel.mesh import make_mesh
from isjax.parallel.sharding import replicated, build
from isjax.data.source import Source

connect(False)
read = []

class Examples:
    def __len__(self):
        return 100

    def __getitem__(self, i):
        read.append(i)
        return np.float32(i)

mesh, ids = make_mesh(), np.arange(16, dtype=np.int32).reshape(2, 8)[:, ::-1]
pending = jax.make_array_from_callback(
    ids.shape, jax.NamedSharding(mesh, jax.P()), lambda index: ids[index]
)
with Loader(Source(Examples()), pending, mesh) as loader:
    batches = [next(loader), next(loader)]
held = [sorted(np.concatenate([s.data for s in x.addressable_shards]).tolist()) for x in batches]
print(json.dumps({"read": sorted(read), "held": held, "sum": float(jax.jit(sum)(batches[0]))}))
"""


def test_a_process_reads_only_what_its_devices_are_to_hold():
    outputs = finish(launch(["-c", READING], processes=2, devices=2))
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert first["held"] == [[4, 5, 6, 7], [12, 13, 14, 15]]
    assert second["held"] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    for found in (first, second):
        assert found["read"] == sorted(itertools.chain(*found["held"]))
        assert found["sum"] == sum(range(8))


def test_some_variables_alone_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    (process,) = start(tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "only JAX_NUM_PROCESSES is set; set all, or none" in output


def test_processes_that_were_started_differently_are_refused(tmp_path):
    of_last = ("seed=1", "method=default", "num_steps=70", "dataset_options.num_train=100")
    started = start(tmp_path, *SETTINGS, processes=2, of_last=of_last)
    outputs = [process.communicate(timeout=120)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 1
        (line,) = [line for line in output.splitlines() if line.startswith("isjax: ")]
        assert line.startswith("isjax: processes 0 and 1 were started differently: "), output
        assert line.endswith("with the same version and data")
        for setting in ("dataset_options.num_train is None and 100", "seed is 0 and 1"):
            assert f"config.{setting}" in line
        assert "config.method is uniform and default, config.num_steps is 60 and 70" in line
        assert "Traceback" not in output
    assert not (tmp_path / "metrics.jsonl").exists()
