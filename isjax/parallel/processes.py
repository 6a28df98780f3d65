"""Many processes, each with devices of its own, that run one program together."""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Generator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from isjax.base import PyTree

__all__ = ["PeerLostError", "alone", "connect", "fetch", "gather", "is_main", "leave", "together"]

# What a collective says when another process is gone: of Gloo, of NCCL, of JAX's coordinator.
_LOST = re.compile("gloo|nccl|connection (closed|reset)|coordination|heartbeat|barrier", re.I)
_HEARTBEAT = 60  # seconds after which a process that is silent counts as dead
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class PeerLostError(RuntimeError):
    """Another process of the run has ended, or cannot be reached."""


def connect(wanted: bool = False) -> None:
    """Joins the other processes, before JAX has looked for devices; once joined, does nothing.

    Where `JAX_COORDINATOR_ADDRESS` ("host:port" of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID` are set, by these; else, if `wanted`, as `jax.distributed.initialize` finds
    out from Slurm, MPI, Kubernetes or a TPU pod.

    Raises:
        ValueError: if some of the variables are set and others are not, one has an impossible
            value, the port is in use, or the processes cannot be found or reached.
    """
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if jax.distributed.is_initialized() or not (given or wanted):
        return
    if given and len(given) < len(_VARIABLES):
        raise ValueError(
            f"of the variables {', '.join(_VARIABLES)} only {', '.join(given)} is set; set all, or "
            "none"
        )
    if given:
        address, number, process = _checked(*given.values())
    try:
        if given:
            jax.distributed.initialize(
                address, number, process, heartbeat_timeout_seconds=_HEARTBEAT
            )
        else:
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot join the other processes: {error}; set {', '.join(_VARIABLES)}, or run in one "
            "process, without config.distributed"
        ) from error


def _checked(address: str, number: str, process: str) -> tuple[str, int, int]:
    """The values of the three variables; refuses what JAX would abort or hang on."""
    host, _, port = address.rpartition(":")
    if not (host and _is_int(port) and 0 < int(port) < 2**16):
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS is {address}; give host:port of process 0, such as "
            "localhost:1234"
        )
    if not (_is_int(number) and _is_int(process) and int(process) < int(number)):
        raise ValueError(
            f"JAX_NUM_PROCESSES is {number} and JAX_PROCESS_ID is {process}; give the number of "
            "processes, and to each process its own number, counted from 0"
        )
    if int(process) == 0 and not os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        try:
            _bind(int(port))
        except OSError as error:
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS is {address}, but that port cannot be used "
                f"({error.strerror}); choose another for all processes"
            ) from error
    return address, int(number), int(process)


def _is_int(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _bind(port: int) -> None:
    """Binds the port and frees it; JAX itself would share it with another program, and wait."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def alone() -> bool:
    """Whether there is no other process."""
    return jax.process_count() == 1


def fetch(tree: PyTree) -> PyTree:
    """NumPy arrays, whole in each process, of arrays that lie anywhere; all must call it."""
    if alone():
        return jax.device_get(tree)

    def whole(x: jax.Array) -> np.ndarray:
        here = x.is_fully_replicated or x.is_fully_addressable
        return np.asarray(x if here else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(whole, tree)


def gather(text: str) -> list[str]:
    """Collects a text of each process, in order; all must call it.

    Args:
        text: of this process.

    Returns:
        The texts, the same in each process.
    """
    if alone():
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def together() -> Generator[None]:
    """Says in plain words that another process was lost, where a collective fails for that.

    Raises:
        PeerLostError: in place of what JAX raised.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if alone() or not _LOST.search(str(error)):
            raise
        raise PeerLostError(
            f"process {jax.process_index()} of {jax.process_count()}: another process has ended, "
            f"or cannot be reached ({str(error)[:200]}); start all of them again by the same "
            "command, and the run goes on from its last checkpoint"
        ) from error


def leave(status: int | str) -> NoReturn:
    """Ends a process that failed, with a status or a message; among several at once.

    An orderly end would wait for the others, which wait for this one. So they notice at their next
    collective.
    """
    if not jax.distributed.is_initialized():
        sys.exit(status)
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)
