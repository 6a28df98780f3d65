import jax
import jax.numpy as jnp
import pytest

from isjax import base, samplers, training

FIELDS = {
    base.Rows: ["history", "count", "batch", "params", "ids", "age"],
    base.Scorer: ["init", "score", "update", "history", "remember", "passes", "by_id"],
    base.ScoreTransform: ["init", "update"],
    samplers.SamplerState: ["step", "span", "buffer", "scorer", "transform"],
    base.Sampler: ["init", "sample", "update", "batch_size", "reweigh", "own_pool", "parts"],
    base.Draw: ["ids", "index", "weights", "draw_probs", "scores", "last_loss", "info"],
    base.DrawInfo: ["pool_size", "ess", "nonfinite", "passes", "mass", "k", "invalid_ids"],
    training.TrainState: ["step", "key", "params", "model_state", "opt_state", "sampler", "record"],
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_fields_are_those_of_the_design(kind):
    assert list(kind._fields) == FIELDS[kind]


def test_the_scalars_of_a_draw_have_short_names():
    info = base.DrawInfo(pool_size=8, ess=0.5, nonfinite=0, passes=0, mass=1, k=1, invalid_ids=0)
    draw = base.Draw(*[jnp.ones(3)] * 5, None, info)
    assert draw.ess == 0.5 and draw.pool_size == 8


def test_a_span_knows_its_examples_and_rows():
    span = base.Span.of(10)
    assert (span.size, span.rows, int(span.first)) == (10, 10, 0)
    assert (span.pad(4).size, span.pad(4).rows) == (10, 12)
    parts = jax.jit(lambda span: span.split(4, 10))(span)
    assert parts.size == 3 and parts.first.tolist() == [0, 3, 6, 9]
    with pytest.raises(ValueError, match="has 0 examples; sampling needs at least 1"):
        base.Span.of(0)


def test_optional_inputs_of_a_scorer_default_to_none():
    rows = base.Rows(jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32))
    assert rows.batch is None and rows.params is None


def test_a_scorer_reads_one_loss_unless_it_says_otherwise():
    assert base.Scorer(None, None, None).history == 1


def test_state_goes_through_jit_whole():
    state = samplers.SamplerState(jnp.int32(3), base.Span.of(5), {"a": jnp.ones(2)}, (), None)
    out = jax.jit(lambda s: s._replace(step=s.step + 1))(state)
    assert isinstance(out, samplers.SamplerState) and int(out.step) == 4
