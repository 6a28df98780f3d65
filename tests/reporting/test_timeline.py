import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import recipes
from isjax.experiment import draw_statistics
from isjax.experiment.compiled_steps import compile_steps
from isjax.reporting import timeline
from isjax.reporting.timeline import PARTS
from isjax.training import init_train_state, make_train_step

pytestmark = pytest.mark.slow  # profiles programs


@pytest.fixture(autouse=True, scope="module")
def scopes_in_cache_key():
    """JAX's compilation cache otherwise returns an equal program with the scopes of another."""
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


def event(start, duration, operation, **stats):
    stats = {"hlo_op": operation} | stats if operation else stats
    return SimpleNamespace(start_ns=start, duration_ns=duration, stats=list(stats.items()))


def own(events):
    spent = {}
    for name, duration in timeline._own_times(events):
        spent[name] = spent.get(name, 0.0) + duration
    return spent


def test_own_time_excludes_nested_operations():
    """A loop of 100 ns holds 40 of a fusion, of which 10 are a product, and 20 of a copy."""
    events = [
        event(0, 100, "while"),
        event(10, 40, "fusion"),
        event(20, 10, "dot"),
        event(60, 20, "copy"),
        event(100, 7, "after"),  # begins where the loop ends: not nested
    ]
    expected = {"while": 40, "fusion": 30, "dot": 10, "copy": 20, "after": 7}
    assert own(events) == own(events[::-1]) == expected
    assert sum(expected.values()) == 107


def test_of_two_operations_that_start_together_the_longer_encloses_the_shorter():
    assert own([event(5, 3, "inner"), event(5, 10, "outer")]) == {"inner": 3, "outer": 7}


def test_events_that_are_no_operations_are_ignored():
    pool = event(10, 20, None, name="ThreadpoolListener")
    events = [event(0, 50, "dot"), pool, event(60, 1, None)]
    assert own(events) == {"dot": 50}
    assert own([]) == {}


def test_repeated_operations_add_up_and_no_time_is_negative():
    events = [event(0, 5, "dot"), event(5, 5, "dot"), event(20, 4, "call"), event(20, 6, "dot")]
    assert own(events) == {"dot": 5 + 5 + 2, "call": 4}
    overlapping = [event(0, 4, "call"), event(1, 9, "dot")]  # clocks that do not quite agree
    assert own(overlapping) == {"call": 0, "dot": 9}


def test_an_operation_belongs_to_the_innermost_part():
    text = """
  %fusion.3 = f32[4]{0} fusion(%x), metadata={op_name="jit(several)/jit(step)/draw/score/dot" id=1}
  ROOT add.1 = f32[] add(%a, %b), metadata={op_name="jit(step)/train/transpose(jvp(MLP))/add"}
  %copy = f32[4]{0} copy(%x)
  %sort-2 = s32[4]{0} sort(%x), metadata={op_name="jit(step)/underscored/drawer/sort"}
"""
    assert timeline._scopes(text) == {"fusion.3": "score", "add.1": "train", "sort-2": "other"}


def test_a_fusion_without_a_name_belongs_where_most_of_it_does():
    text = """
%fused.1 (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  %dot.1 = f32[4,4]{1,0} dot(%p, %p), metadata={op_name="jit(step)/train/dot_general"}
  %sub.1 = f32[4,4]{1,0} subtract(%dot.1, %p), metadata={op_name="jit(step)/draw/sub"}
  ROOT %add.1 = f32[4,4]{1,0} add(%sub.1, %p), metadata={op_name="jit(step)/train/add"}
}

%fused.2 (p: f32[4,4]) -> f32[4,4] {
  ROOT %p = f32[4,4]{1,0} parameter(0)
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %custom.1 = f32[4,4]{1,0} fusion(%x), kind=kCustom, calls=%fused.1, backend_config={}
  ROOT %custom.2 = f32[4,4]{1,0} fusion(%custom.1), kind=kCustom, calls=%fused.2
}
"""
    found = timeline._scopes(text)
    assert found["custom.1"] == found["dot.1"] == "train" and found["sub.1"] == "draw"
    assert found["custom.2"] == "other"


def test_costs_are_of_one_call():
    """A loop of 20 passes and one sine: however often it was called, they count once."""
    call, compiled = program({"train": heavy, "draw": jnp.sin})
    took = timeline.time_by_part(call, compiled)
    assert 20 <= took["train"].operations < 200 and 1 <= round(took["draw"].operations, 9) < 20
    assert took["train"].seconds > took["draw"].seconds > 0
    assert list(took) == list(PARTS)


def shares(call, compiled, *max_calls):
    """Each part's share of the time; None if nothing could be measured."""
    costs = timeline.time_by_part(call, compiled, *max_calls)
    if costs is None:
        return None
    total = sum(cost.seconds for cost in costs.values())
    return {part: cost.seconds / total for part, cost in costs.items()}


def program(functions):
    """Compiles a program that calls each function on a matrix, in its named scope."""

    def run(x):
        for part, function in functions.items():
            with jax.named_scope(part):
                x = function(x)
        return x

    x = jnp.ones((300, 300)) / 300
    compiled = jax.jit(run).lower(x).compile()
    return (lambda: compiled(x)), compiled


def heavy(x):
    return jax.lax.fori_loop(0, 20, lambda _, y: jnp.tanh(y @ x), x)


def test_shares_sum_to_one_and_name_the_part_that_takes_longest():
    """Twenty products of matrices against one sine: a hundred times the work and more."""
    found = shares(*program({"draw": jnp.sin, "train": heavy}))
    assert list(found) == list(PARTS)
    assert sum(found.values()) == pytest.approx(1) and min(found.values()) >= 0
    assert found["train"] > 0.5 > found["draw"] > 0
    assert found["score"] == found["learn"] == 0
    swapped = shares(*program({"train": jnp.sin, "score": heavy}))
    assert swapped["score"] > 0.5 > swapped["train"]


def test_the_program_is_called_at_most_20_times():
    call, compiled = program({"train": jnp.sin})
    calls = []
    assert shares(lambda: calls.append(1) or call(), compiled)
    assert 1 <= len(calls) <= 20
    calls.clear()
    assert shares(lambda: calls.append(1) or call(), compiled, 1)
    assert len(calls) == 1


def test_no_operations_give_none():
    _, compiled = program({"train": jnp.sin})
    assert shares(lambda: None, compiled) is None


def test_a_running_trace_is_left_alone(tmp_path):
    call, compiled = program({"train": jnp.sin})
    calls = []
    with jax.profiler.trace(tmp_path):
        assert shares(lambda: calls.append(1), compiled) is None
        call().block_until_ready()
    assert not calls and list(tmp_path.rglob("*.xplane.pb"))
    assert shares(call, compiled)  # works again once the trace has ended


def test_a_call_that_fails_leaves_no_trace_running():
    call, compiled = program({"train": jnp.sin})

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shares(fail, compiled)
    assert shares(call, compiled)


def test_other_threads_do_not_disturb():
    call, compiled = program({"train": heavy})
    stop = threading.Event()
    other = jax.jit(jnp.cos)

    def busy():
        while not stop.is_set():
            other(jnp.ones(8)).block_until_ready()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        found = shares(call, compiled)
    finally:
        stop.set()
        thread.join()
    assert sum(found.values()) == pytest.approx(1) and found["train"] > 0.3


@pytest.mark.parametrize("steps_per_call", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_each_part_of_a_step_is_found_in_its_program(steps_per_call):
    size, b = 64, 16
    rng = np.random.default_rng(0)
    data = {"x": jnp.float32(rng.normal(size=(size, 8))), "y": jnp.float32(rng.normal(size=size))}

    def losses(params, batch):
        return jnp.square(jnp.tanh(batch["x"] @ params[0]) @ params[1] - batch["y"])

    def loss_fn(params, model_state, batch, key):
        return losses(params, batch), model_state

    tx = optax.adam(1e-2)
    sampler = recipes.learned_loss(batch_size=b)
    params = (jnp.ones((8, 8)) / 8, jnp.ones(8))
    state = init_train_state(jax.random.key(0), params, tx, sampler, size)
    state = state._replace(record=draw_statistics.init(size))
    step = draw_statistics.record_draws(
        make_train_step(loss_fn, tx, sampler, pool_size=32, with_draw=True)
    )
    compiled = compile_steps(step, state, data, steps_per_call)
    found = timeline._scopes(compiled.several.as_text())
    assert set(found.values()) >= set(PARTS) - {"other"}

    def call():
        nonlocal state
        state, *_ = compiled.several(state, data)
        return state

    measured = shares(call, compiled.several)
    assert all(measured[part] > 0 for part in ("score", "draw", "train", "learn", "buffer"))
    assert measured["other"] < 0.5
