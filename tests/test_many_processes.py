"""Several processes on one host, which talk over loopback: trained, killed, resumed."""

import signal
import time

import pytest
from processes import finish, metrics, start

pytestmark = pytest.mark.slow
SETTINGS = ("num_steps=60", "num_evals=3", "log_every=10", "checkpoint_every=10")


def wait_for_checkpoint(workdir, step, started):
    while not (workdir / "checkpoints" / str(step)).exists():
        assert all(process.poll() is None for process in started), started[0].communicate()[0]
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, ("method=default",)),
        (4, ("method=last_loss", "strata=4")),
    ],
    ids=["two, global draws", "four, draws by part"],
)
def test_processes_killed_together_resume_as_if_never_interrupted(tmp_path, processes, settings):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outputs = finish(start(whole, *SETTINGS, *settings, processes=processes))
    assert "seed 0" in outputs[0]
    assert not any("seed 0" in output for output in outputs[1:])  # only process 0 speaks

    started = start(parts, *SETTINGS, *settings, processes=processes)
    wait_for_checkpoint(parts, 30, started)
    for process in started:
        process.send_signal(signal.SIGKILL)
    for process in started:
        process.communicate()
    outputs = finish(start(parts, *SETTINGS, *settings, processes=processes))
    assert "resuming at step" in outputs[0]
    for name in ("metrics.jsonl", "training.jsonl"):
        assert metrics(parts, name) == metrics(whole, name)


def test_a_process_that_is_lost_ends_the_others_and_sigterm_to_one_stops_all(tmp_path):
    settings = (*SETTINGS, "num_steps=5000", "method=default")
    started = start(tmp_path, *settings, processes=2)
    wait_for_checkpoint(tmp_path, 10, started)
    started[1].send_signal(signal.SIGKILL)
    output, _ = started[0].communicate(timeout=90)
    assert started[0].returncode == 1
    assert "another process has ended" in output and "same command" in output

    started = start(tmp_path, *settings, processes=2)
    wait_for_checkpoint(tmp_path, 30, started)
    started[1].send_signal(signal.SIGTERM)
    output = finish(started)[0]
    assert "resuming at step" in output and "the same command resumes" in output


def test_some_variables_alone_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    (process,) = start(tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "only JAX_NUM_PROCESSES is set; set all, or none" in output
