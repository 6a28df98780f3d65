"""benchmarks/compile_ahead.py reads programs, here of this CPU."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def ahead():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("compile_ahead")


def estimate(ahead, function, *args):
    return ahead.estimate(jax.jit(function).lower(*args).compile(), 0.0)


def test_what_a_loop_runs_counts_once_for_each_time(ahead):
    x = jnp.ones((8, 64))

    def times(number):
        return lambda x: jax.lax.fori_loop(0, number, lambda i, x: jnp.sort(x) + 1, x)

    few, many = (estimate(ahead, times(number), x).kernels for number in (5, 50))
    assert few > 0 and many - few == 45 * (few // 5)


def test_arguments_and_kernels_without_an_estimate_are_counted(ahead):
    found = estimate(ahead, lambda x: jnp.sort(x), jnp.ones((1000, 250)))
    assert found.arguments == pytest.approx(1.0)  # MB
    assert found.cycles == 0 and found.unknown == found.kernels > 0
    assert found.sent == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plain", "uniform", "default", "last_loss"])
def test_steps_of_shapes_alone_compile(ahead, method):
    mesh = jax.make_mesh((1, 1), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)
    network, shape = ahead.NETWORKS["mlp"]
    task = ahead.make_task(network.clone(hidden=(8,)), shape, False)
    program = ahead.compiled(task, method, 2000, mesh, 1)
    row = ahead.row("mlp", method, 2000, ahead.estimate(program, 1.0), [1.0, 1.0])
    assert row.split()[1] == method and len(row.split()) == len(ahead.HEAD.split()) - 4


def test_a_step_that_passes_a_bound_is_named_with_both(ahead, monkeypatch):
    uniform = ahead.Estimate(100, 9, 9, 60.0, 1.5, 2, 3000.0, 1.0)
    steps = {"default": {"cycles": 151}, "last_loss": {"scratch": 5.2}, "mean": {"sent_kb": 6700.0}}

    class Target:
        def __init__(self, name, number):
            assert name == "v5e:2x2" and number in (1, 4)

        def estimates(self, network, size, methods):
            return [(name, uniform._replace(**steps.get(name, {}))) for name in methods]

    monkeypatch.setattr(ahead, "Target", Target)
    monkeypatch.setattr(ahead, "BOUNDS", {1: {"default": 1.5, "mean": 1.5}, 4: {"last_loss": 1.1}})
    assert ahead.check() == [
        "default on 1: 1.51 of the cycles of uniform, above 1.5",
        "mean on 1: sends the buffer, 3.7 MB more than uniform",
        "last_loss on 4: copies the buffer, 3.7 MB of scratch",
    ]
    monkeypatch.setattr(ahead, "BOUNDS", {1: {"default": 1.52}})
    assert ahead.check() == []
