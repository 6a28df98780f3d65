"""Many processes, each with devices of its own, that run one program together."""

import contextlib
import os
import re
import sys
from collections.abc import Generator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from isjax.base import PyTree

__all__ = ["PeerLostError", "alone", "connect", "fetch", "is_main", "leave", "together"]

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
        ValueError: if some of the variables are set and others are not, or the processes cannot
            be found or reached.
    """
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if jax.distributed.is_initialized() or not (given or wanted):
        return
    if given and len(given) < len(_VARIABLES):
        raise ValueError(
            f"of the variables {', '.join(_VARIABLES)} only {', '.join(given)} is set; set all, or "
            "none"
        )
    try:
        if given:
            address, number, process = given.values()
            jax.distributed.initialize(
                address, int(number), int(process), heartbeat_timeout_seconds=_HEARTBEAT
            )
        else:
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot join the other processes: {error}; set {', '.join(_VARIABLES)}, or run in one "
            "process, without config.distributed"
        ) from error


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
