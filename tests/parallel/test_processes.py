"""What needs no second process; tests/test_many_processes.py has the rest."""

import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.parallel import processes

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture
def joined(monkeypatch):
    """What JAX was asked to join, and with what."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_alone_nothing_is_joined(joined):
    processes.connect()
    assert not joined and processes.alone() and processes.is_main()


def test_the_variables_say_what_to_join(joined, monkeypatch):
    for name, value in zip(VARIABLES, ("host:1234", "4", "2"), strict=True):
        monkeypatch.setenv(name, value)
    processes.connect()
    assert [call[0] for call in joined] == [("host:1234", 4, 2)]


def test_wanted_without_variables_it_is_left_to_jax(joined):
    processes.connect(wanted=True)
    assert [call[0] for call in joined] == [()]


def test_some_of_the_variables_are_refused(joined, monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(ValueError, match="only JAX_PROCESS_ID is set; set all, or none"):
        processes.connect()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("host", "2", "0"), "JAX_COORDINATOR_ADDRESS is host; give host:port of process 0"),
        ((":1234", "2", "0"), "JAX_COORDINATOR_ADDRESS is :1234; give host:port"),
        (("host:", "2", "0"), "JAX_COORDINATOR_ADDRESS is host:; give host:port"),
        (("host:http", "2", "0"), "JAX_COORDINATOR_ADDRESS is host:http; give host:port"),
        (("host:70000", "2", "0"), "JAX_COORDINATOR_ADDRESS is host:70000; give host:port"),
        (("host:1234", "two", "0"), "JAX_NUM_PROCESSES is two and JAX_PROCESS_ID is 0; give"),
        (("host:1234", "2", "2"), "JAX_NUM_PROCESSES is 2 and JAX_PROCESS_ID is 2; give"),
        (("host:1234", "2", "-1"), "JAX_PROCESS_ID is -1; give"),
    ],
)
def test_impossible_values_of_the_variables_are_refused(joined, monkeypatch, values, message):
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        processes.connect()
    assert not joined


def test_a_port_in_use_is_refused_by_the_process_that_needs_it(joined, monkeypatch):
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        for name, value in zip(VARIABLES, (address, "2", "0"), strict=True):
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=f"is {address}, but that port cannot be used .*; cho"):
            processes.connect()
        assert not joined
        monkeypatch.setenv("JAX_PROCESS_ID", "1")
        processes.connect()
        assert len(joined) == 1


def test_alone_a_text_is_gathered_from_no_other():
    assert processes.gather("a") == ["a"]


def test_what_cannot_be_joined_says_how_to(joined, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no cluster")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match="cannot join the other processes: no cluster; set JAX"):
        processes.connect(wanted=True)


def test_a_lost_process_is_named_among_several_only(monkeypatch):
    def lose():
        with processes.together():
            raise ValueError("Gloo all-reduce failed: Connection closed by peer")

    with pytest.raises(ValueError, match="Gloo"):
        lose()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(processes.PeerLostError, match="process 0 of 2: another process has ended"):
        lose()
    with pytest.raises(ValueError, match="mine"), processes.together():
        raise ValueError("an error of mine")


def test_what_is_here_is_fetched_as_numpy():
    found = processes.fetch({"x": jnp.arange(3)})
    assert isinstance(found["x"], np.ndarray)
    np.testing.assert_array_equal(found["x"], [0, 1, 2])


@pytest.mark.parametrize("status", [130, "isjax: why"])
def test_alone_a_process_ends_in_order(status):
    with pytest.raises(SystemExit) as ended:
        processes.leave(status)
    assert ended.value.code == status
