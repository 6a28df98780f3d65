"""Runs in processes of their own, with as many devices as one likes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# Devices of one host wait for each other in threads of a pool, which must have one for each.
THREADS = {"NPROC": "32"}


def environment(devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | THREADS | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def python(script, *arguments, devices=1):
    """What a script prints on so many devices, as JSON of its last line."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment(devices), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def start(workdir, *settings, processes=1, devices=1):
    """`python -m isjax.main` on MNIST-1D in so many processes."""
    command = ["-m", "isjax.main", "--config=configs/mnist1d.py", f"--workdir={workdir}"]
    command += [f"--config.{setting}" for setting in settings]
    return launch(command, processes, devices)


def launch(command, processes=1, devices=1):
    """Python with these arguments in so many processes, which may join."""
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
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment(devices) | (joined if processes > 1 else {}),
        )
        started.append(process)
    return started


def finish(started):
    """What each printed, once all have ended well."""
    outputs = [process.communicate()[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return outputs


def metrics(workdir, name="metrics.jsonl"):
    """The lines that a run wrote, but for the times."""
    lines = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]
