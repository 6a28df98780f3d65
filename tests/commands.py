"""Runs commands such as `python -m isjax.main` in forks of processes that have imported JAX."""

import functools
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
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
# Reads [arguments of Python, environment, file of stdout, file of stderr], and answers with the id
# of the process; reads an id, and answers with the exit status, or null while the process runs.
SERVER = """
import gc, json, os, runpy, sys
import isjax.experiment, isjax.reporting.learning_curves, ml_collections, orbax.checkpoint

gc.freeze()  # or each fork would look through all that was imported, at its end as well
for line in sys.stdin:
    request = json.loads(line)
    if isinstance(request, int):
        ended, status = os.waitpid(request, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
        continue
    arguments, environment, *files = request
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    option, code, *sys.argv[1:] = arguments
    if option == "-m":
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    else:
        exec(code, {"__name__": "__main__"})
    sys.exit()
"""
_turns = itertools.count()


class Done(NamedTuple):
    """Of a command that has ended."""

    returncode: int
    stdout: str
    stderr: str


class Process:
    """`python ARGUMENTS` from the root of the repository; with the methods of `subprocess.Popen`.

    `arguments` are `["-m", module, ...]` or `["-c", script, ...]`. JAX has been imported with the
    settings of ENVIRONMENT; `environment` holds all other variables.
    """

    def __init__(self, arguments, environment=ENVIRONMENT, merged=False):
        """Starts it; stderr goes to stdout if `merged`."""
        self._server = _server(next(_turns) % 2)
        open_file = functools.partial(tempfile.NamedTemporaryFile, "r")
        self._stdout = open_file()
        self._stderr = self._stdout if merged else open_file()
        files = self._stdout.name, self._stderr.name
        self.pid = self._ask([list(map(str, arguments)), dict(environment), *files])
        self.returncode = None

    def _ask(self, request):
        self._server.stdin.write(json.dumps(request) + "\n")
        return json.loads(self._server.stdout.readline())

    def poll(self):
        if self.returncode is None:
            self.returncode = self._ask(self.pid)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=float("inf")):
        """Waits for the end, and returns what was written to stdout and stderr."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.pid, timeout)
            time.sleep(0.02)
        return self._stdout.read(), self._stderr.read()


@functools.cache
def _server(number):
    """One of two, which take turns: Python orders sets of strings differently in each."""
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
    process = Process(["-m", f"isjax.{name}", *arguments])
    stdout, stderr = process.communicate()
    return Done(process.returncode, stdout, stderr)
