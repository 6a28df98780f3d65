import jax
import jax.numpy as jnp
import pytest

from isjax import base, training

FIELDS = {
    base.Rows: ["history", "count", "batch", "params", "ids", "age"],
    base.Scorer: ["init", "score", "update", "history", "remember", "passes"],
    base.ScoreTransform: ["init", "update"],
    base.SamplerState: ["step", "buffer", "scorer", "transform", "first"],
    base.Sampler: ["init", "sample", "update", "weigh", "own_pool", "keeps_losses", "take"],
    training.TrainState: ["step", "key", "params", "model_state", "opt_state", "sampler", "record"],
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_fields_are_those_of_the_design(kind):
    assert list(kind._fields) == FIELDS[kind]


def test_draw_starts_with_the_fields_of_the_design():
    assert base.Draw._fields[:6] == ("ids", "index", "weights", "draw_probs", "scores", "ess")


def test_optional_inputs_of_a_scorer_default_to_none():
    rows = base.Rows(jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32))
    assert rows.batch is None and rows.params is None


def test_a_scorer_reads_one_loss_unless_it_says_otherwise():
    assert base.Scorer(None, None, None).history == 1


def test_state_goes_through_jit_whole():
    state = base.SamplerState(jnp.int32(3), {"a": jnp.ones(2)}, (), None)
    out = jax.jit(lambda s: s._replace(step=s.step + 1))(state)
    assert isinstance(out, base.SamplerState) and int(out.step) == 4
