import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import DATA, count, count_and_draw, make_state

from isjax.experiment.compiled_steps import compile_steps


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_program_returns_state_metrics_and_draws(steps_per_call):
    for step in (count, count_and_draw):
        program = compile_steps(step, make_state(), DATA, steps_per_call)
        assert program.one(make_state(), DATA)[1].metrics.shape == (1, 5)
        state, output = program.several(make_state(), DATA)
        assert state.step == steps_per_call and output.metrics.shape == (steps_per_call, 5)
        assert "draw" not in program.names and output.chosen is None
        assert dict(zip(program.names, output.metrics[0].tolist(), strict=True)) == {
            "loss": 1,
            "skipped": 0,
            "nonfinite": 0,
            "examples_forward": 7,
            "examples_backward": 2,
        }
        if step is count:
            assert output.draw is None
        else:
            assert output.draw.ids.shape == (steps_per_call, 2)
            assert output.draw.ess.shape == (steps_per_call,)
            np.testing.assert_array_equal(output.draw.ids[0], [1, 10])


def test_a_program_returns_what_was_chosen():
    def choosing(state, data):
        state, metrics = count(state, data)
        return state, metrics | {"chosen": jnp.arange(3) + state.step}

    program = compile_steps(choosing, make_state(), DATA, 1)
    _, output = program.one(make_state(), DATA)
    np.testing.assert_array_equal(output.chosen, [[1, 2, 3]])
    assert "chosen" not in program.names


def test_the_number_of_steps_is_a_constant_of_the_program():
    """A GPU waits for the host at each turn of a loop that may end at any number."""
    text = compile_steps(count, make_state(), DATA, 3).several.as_text()
    assert text.count(" while(") == 1 and '"known_trip_count":{"n":"3"}' in text
