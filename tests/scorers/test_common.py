"""Checks of a scorer's inputs, and errors that say what to pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.base import Rows
from isjax.scorers._common import require_model
from isjax.scorers._learned import labels_of


def rows_of(batch=None, params=None, size=3):
    return Rows(jnp.zeros((size, 0)), jnp.zeros(size, jnp.int32), batch, params)


X = {"x": jnp.ones((3, 2))}
LABELS = jnp.asarray([2, 0, 1])


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"batch": X}, "got no params; pass params= to sampler.sample"),
        ({"params": jnp.ones(3)}, "got no batch; pass batch= to sampler.sample"),
        ({}, "got no params; pass params="),
    ],
    ids=["no params", "no batch", "neither"],
)
def test_rows_without_what_the_model_runs_on_are_refused(given, remedy):
    with pytest.raises(ValueError, match=f"scorers.mine runs the main model.*{remedy}"):
        require_model(rows_of(**given), "scorers.mine")


@pytest.mark.parametrize("params", [(), {}, 0.0, jnp.zeros(0)])
def test_empty_params_are_params(params):
    require_model(rows_of(X, params), "scorers.mine")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_labels_are_read_by_key_or_by_function(wrap):
    by_key = wrap(lambda batch: labels_of(rows_of(batch), None, "mine"))
    by_fn = wrap(lambda batch: labels_of(rows_of(batch), lambda batch: batch[1][0], "mine"))
    np.testing.assert_array_equal(by_key(X | {"label": LABELS}), LABELS)
    np.testing.assert_array_equal(by_fn((X, [LABELS])), LABELS)
    np.testing.assert_array_equal(by_key({"label": LABELS.astype(jnp.uint8)}), LABELS)


def test_labels_without_a_batch_are_an_error():
    with pytest.raises(
        ValueError, match=r"mine reads .*pass batch= to .*sample and sampler.update"
    ):
        labels_of(rows_of(), None, "mine")
    with pytest.raises(ValueError, match="pass batch="):
        labels_of(rows_of(), lambda batch: LABELS, "mine")


@pytest.mark.parametrize("batch", [X, (X["x"],), X["x"]], ids=["dict", "tuple", "array"])
def test_missing_labels_are_an_error_that_offers_label_fn(batch):
    with pytest.raises(ValueError, match=r"mine reads .*batch\[\"label\"\].*pass label_fn="):
        labels_of(rows_of(batch), None, "mine")


def test_an_error_of_the_users_function_is_not_hidden():
    with pytest.raises(KeyError, match="class"):
        labels_of(rows_of(X), lambda batch: batch["class"], "mine")


@pytest.mark.parametrize(
    "labels",
    [LABELS[:, None], LABELS[:2], jnp.zeros(3), jnp.eye(3, dtype=int), LABELS > 0],
    ids=["column", "too few", "floats", "one-hot", "booleans"],
)
@pytest.mark.parametrize("by_function", [False, True])
def test_labels_of_another_shape_or_type_are_refused(labels, by_function):
    label_fn = (lambda batch: batch["label"]) if by_function else None
    with pytest.raises(ValueError, match=r"mine got .*one integer per example, shape \(3,\)"):
        labels_of(rows_of({"label": labels}), label_fn, "mine")
