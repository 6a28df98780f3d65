"""Starts Python in processes of its own, each with a given number of CPU devices."""

import json
import os
import socket

from commands import CACHED, Process

# Devices of one host wait for each other in threads of a pool: it needs one thread per device.
THREADS = {"NPROC": "32"}


def environment(devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | CACHED | THREADS | {"XLA_FLAGS": flags}


def python(script, *arguments, devices=1):
    """Runs a script and returns the last line that it prints, parsed as JSON."""
    process = Process(["-c", script, *arguments], environment(devices))
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr[-3000:]
    return json.loads(stdout.splitlines()[-1])


def start(workdir, *settings, processes=1, devices=1, of_last=()):
    """Starts `python -m isjax.main` on MNIST-1D in one or more processes.

    The last process also has the settings `of_last`.
    """
    command = ["-m", "isjax.main", "--config=configs/mnist1d.py", f"--workdir={workdir}"]
    command += [f"--config.{setting}" for setting in settings]
    return launch(command, processes, devices, [f"--config.{setting}" for setting in of_last])


def launch(command, processes=1, devices=1, of_last=()):
    """Starts Python with these arguments; several processes find each other by an address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for number in range(processes):
        joined = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
        }
        process = Process(
            [*command, *(of_last if number == processes - 1 else ())],
            environment(devices) | (joined if processes > 1 else {}),
            merged=True,
        )
        started.append(process)
    return started


def finish(started):
    """Waits for all processes, checks that none failed, and returns the output of each."""
    outputs = [process.communicate()[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return outputs


def metrics(workdir, name="metrics.jsonl"):
    """Reads the metrics that a run wrote, without the times."""
    lines = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]
