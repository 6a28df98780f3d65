"""Runs commands such as `python -m isjax.main` in forks of one process that has imported JAX."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax

ROOT = pathlib.Path(__file__).parent.parent
# For processes that tests start: they compile quickly, on the CPU.
QUICK = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
# They also share the compilation cache of the tests.
CACHED = QUICK | {
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
ENVIRONMENT = os.environ | CACHED
# Reads [name, arguments, file of stdout, file of stderr], and answers with the exit status.
SERVER = """
import json, os, runpy, sys
import isjax.experiment, isjax.reporting.learning_curves

for line in sys.stdin:
    name, arguments, *files = json.loads(line)
    child = os.fork()
    if not child:
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY), number)
        sys.argv[1:] = arguments
        runpy.run_module(f"isjax.{name}", run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """Of a command that has ended."""

    returncode: int
    stdout: str
    stderr: str


@functools.cache
def _server():
    return subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
        cwd=ROOT,
        env=ENVIRONMENT,
    )


def run_command(name, *arguments):
    """`python -m isjax.NAME ARGUMENTS`, from the root of the repository."""
    server = _server()
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        server.stdin.write(json.dumps([name, arguments, stdout.name, stderr.name]) + "\n")
        status = int(server.stdout.readline())
        return Done(status, stdout.read(), stderr.read())
