"""Losses of sequences of unequal length, and bits per byte, against NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from isjax import data, recipes, tasks
from isjax.data.text import BYTES
from isjax.experiment.evaluation import make_evaluation
from isjax.gradients import weighted_value_and_grad
from isjax.training import init_train_state

KEY = jax.random.key(0)
WORDS = ("one", "two", "three", "four", "five")


class Bigrams(nn.Module):
    """Logits from a table, a row for each token."""

    outputs: int = 5

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Embed(self.outputs, self.outputs)(jnp.maximum(x, 0))


def unequal(size=12, length=6, seed=0):
    """Sequences padded at the end, the first of padding alone, and the tokens that follow."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 5, (size, length + 1)).astype(np.int32)
    lengths = np.append(0, rng.integers(1, length + 1, size - 1))
    known = np.arange(length)[None, :] < lengths[:, None]
    return {"x": np.where(known, tokens[:, :-1], -1), "y": np.where(known, tokens[:, 1:], -1)}


@functools.cache
def masked_task():
    task = tasks.language(
        data.from_arrays(unequal(), unequal(8, seed=1), vocabulary=WORDS), Bigrams()
    )
    return task._replace(init=jax.jit(task.init))


def numpy_losses(params, part):
    """Cross-entropy of each target in float64, and where there is one."""
    table = np.asarray(params["Embed_0"]["embedding"], np.float64)
    x, y = np.maximum(part["x"], 0), np.maximum(part["y"], 0)
    losses = -np.take_along_axis(log_softmax(table[x], axis=-1), y[..., None], -1)[..., 0]
    return losses, part["y"] >= 0


def test_the_loss_of_a_sequence_is_the_sum_over_its_targets_by_one_constant():
    task, part = masked_task(), unequal()
    params, _ = task.init(KEY)
    losses, known = numpy_losses(params, part)
    number = known.sum() / len(known)  # mean targets of an example
    expected = (losses * known).sum(axis=1) / number
    found, _ = jax.jit(task.loss_fn)(params, None, part, KEY)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    metrics = jax.jit(task.metrics_fn)(params, None, part)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["targets"], known.sum(axis=1) / number, rtol=1e-6)
    assert set(metrics) == {"loss", "targets"}  # words have no bytes of their own
    assert found[0] == 0


def test_the_mean_gradient_is_that_of_the_mean_over_all_targets():
    task, part = masked_task(), unequal()
    params, _ = task.init(KEY)
    loss_fn = weighted_value_and_grad(lambda p, batch: task.loss_fn(p, None, batch, KEY)[0])
    (loss, _), grads = jax.jit(loss_fn)(params, part, jnp.ones(12))
    losses, known = numpy_losses(params, part)
    assert float(loss) == pytest.approx(losses[known].mean(), rel=1e-5)
    # By hand: the row of token i gets softmax - onehot of each of its targets, over their number.
    table = np.asarray(params["Embed_0"]["embedding"], np.float64)
    expected = np.zeros_like(table)
    for i, j in zip(part["x"][known], part["y"][known], strict=True):
        expected[i] += np.exp(log_softmax(table[i])) - np.eye(5)[j]
    np.testing.assert_allclose(grads["Embed_0"]["embedding"], expected / known.sum(), atol=1e-6)


def test_each_part_reports_the_mean_over_its_targets():
    task = masked_task()
    params, model_state = task.init(KEY)
    state = init_train_state(KEY, params, optax.sgd(0.1), recipes.uniform(batch_size=2), 12)
    result = make_evaluation(task, batch_size=5)(state._replace(model_state=model_state))
    for name, part in (("train", task.dataset.train), ("test", task.dataset.test)):
        losses, known = numpy_losses(params, part)
        assert result[f"{name}_loss"] == pytest.approx(losses[known].mean(), rel=1e-5)
        assert result[f"{name}_perplexity"] == pytest.approx(np.exp(losses[known].mean()), rel=1e-5)
        assert f"{name}_bits_per_byte" not in result


def test_losses_of_tokens_are_given_where_asked():
    task, part = masked_task(), unequal()
    params, _ = task.init(KEY)
    losses, known = numpy_losses(params, part)
    found = jax.jit(task.token_losses_fn)(params, None, part)
    assert found.shape == part["y"].shape and found.dtype == np.float32
    np.testing.assert_allclose(found, losses * known, rtol=1e-5)


def test_a_part_of_masks_alone_has_no_mean_and_cannot_be_trained_on():
    task = masked_task()
    assert np.isnan(task.summarise({"loss": 0.0, "targets": 0.0})["loss"])
    part = {"x": np.zeros((2, 3), np.int32), "y": np.full((2, 3), -1, np.int32)}
    dataset = data.from_arrays(part, part, vocabulary=WORDS)
    with pytest.raises(ValueError, match='each "y" of the training part is negative; give targets'):
        tasks.language(dataset, Bigrams())


@pytest.mark.parametrize(
    ("vocabulary", "bytes_of"),
    [("aé€𝄞\n", (1, 2, 3, 4, 1)), (("a", "b", "c", "é", "<unk>"), (1, 1, 1, 2, 1))],
)
def test_bits_per_byte_count_the_bytes_of_each_character(vocabulary, bytes_of):
    part = unequal()
    task = tasks.language(data.from_arrays(part, part, vocabulary=vocabulary), Bigrams())
    params, _ = jax.jit(task.init)(KEY)
    losses, known = numpy_losses(params, part)
    metrics = jax.jit(task.metrics_fn)(params, None, part)
    means = {name: float(np.mean(values)) for name, values in metrics.items()}
    expected = losses[known].sum() / np.log(2) / np.array(bytes_of)[part["y"][known]].sum()
    assert task.summarise(means)["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("token", "size"), [(130, 1.0), (256, 4.0)])
def test_a_token_of_text_by_byte_is_one_byte_a_longer_one_several(token, size):
    part = {"x": np.full((2, 3), 226, np.int32), "y": np.full((2, 3), token, np.int32)}
    vocabulary = (*BYTES, " the")
    task = tasks.language(data.from_arrays(part, part, vocabulary=vocabulary), Bigrams(257))
    params, _ = jax.jit(task.init)(KEY)
    assert set(np.asarray(task.metrics_fn(params, None, part)["bytes"])) == {size}
    assert task.summarise({"loss": np.log(2), "targets": 1.0, "bytes": 1.0})["bits_per_byte"] == 1


def test_selected_tokens_alone_are_trained_on_and_every_token_is_tested():
    part = unequal()
    part["reference"] = np.random.default_rng(2).exponential(size=part["y"].shape)
    dataset = data.from_arrays(part, part, vocabulary=WORDS)
    task = tasks.language(dataset, Bigrams(), select=tasks.excess_loss(keep=0.5))
    params, _ = jax.jit(task.init)(KEY)
    losses, known = numpy_losses(params, part)
    excess = np.where(known, losses - part["reference"], -np.inf)
    number = round(0.5 * known.sum())
    kept = excess >= np.sort(excess.ravel())[-number]
    weights = kept * known.sum() / number
    of_batch = weighted_value_and_grad(lambda p, batch: task.loss_fn(p, None, batch, KEY)[0])
    (loss, found), grads = jax.jit(of_batch)(params, part, jnp.ones(12))
    expected = (weights * losses).sum(axis=1) / (known.sum() / 12)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(loss) == pytest.approx(losses[kept].mean(), rel=1e-5)
    # No gradient flows through the choice: that of the loss is that of the tokens kept.
    table = np.asarray(params["Embed_0"]["embedding"], np.float64)
    by_hand = np.zeros_like(table)
    for i, j in zip(part["x"][kept], part["y"][kept], strict=True):
        by_hand[i] += np.exp(log_softmax(table[i])) - np.eye(5)[j]
    np.testing.assert_allclose(grads["Embed_0"]["embedding"], by_hand / number, atol=1e-6)
    plain = jax.jit(task.score_fn)(params, None, part)
    np.testing.assert_allclose(plain, (losses * known).sum(axis=1) / (known.sum() / 12), rtol=1e-5)
