"""The transformer against NumPy, and what must be true of any: causality, relative positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from isjax._numerics import precision
from isjax.networks import Transformer, rotate

WORDS, FEATURES, LAYERS, HEADS = 11, 8, 2, 2
TOKENS = np.random.default_rng(0).integers(0, WORDS, (3, 6)).astype(np.int32)


@functools.cache
def model(**options):
    """Network, random parameters and its jitted apply."""
    options = {"features": FEATURES, "layers": LAYERS, "heads": HEADS, "max_length": 7} | options
    network = Transformer(WORDS, **options)
    params = jax.jit(network.init)(jax.random.key(0), TOKENS)
    return network, params, jax.jit(network.apply)


def numpy_norm(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def numpy_rotate(x):
    """Multiplies pairs of entries, as complex numbers [b, T, heads, D / 2], by exp(i t theta)."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * np.outer(np.arange(x.shape[1]), 1e4 ** (-np.arange(half) / half)))
    turned = (x[..., :half] + 1j * x[..., half:]) * turn[None, :, None, :]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def numpy_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_logits(params, tokens, positions, tied):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    kernels = (params[f"Dense_{i}"]["kernel"] for i in range(4 * LAYERS + (not tied)))
    scales = (params[f"RMSNorm_{i}"]["scale"] for i in range(2 * LAYERS + 1))
    table, length = params["Embed_0"]["embedding"], tokens.shape[1]
    x = table[tokens]
    if positions == "learned":
        x = x + params["positions_table"]["embedding"][:length]
    for _ in range(LAYERS):
        inner = numpy_norm(x, next(scales)) @ next(kernels)
        q, k, v = np.moveaxis(inner.reshape(*tokens.shape, 3, HEADS, FEATURES // HEADS), 2, 0)
        if positions == "rotary":
            q, k = numpy_rotate(q), numpy_rotate(k)
        scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(FEATURES // HEADS)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        mixed = np.einsum("bhts,bshd->bthd", softmax(scores, axis=-1), v)
        x = x + mixed.reshape(x.shape) @ next(kernels)
        x = x + numpy_gelu(numpy_norm(x, next(scales)) @ next(kernels)) @ next(kernels)
    x = numpy_norm(x, next(scales))
    return x @ (table.T if tied else next(kernels))


@pytest.mark.slow
@pytest.mark.parametrize(("positions", "tied"), [("rotary", False), ("learned", True)])
def test_the_logits_are_those_of_the_formulas(positions, tied):
    _, params, apply = model(positions=positions, tied=tied)
    logits = apply(params, TOKENS)
    assert logits.shape == (3, 6, WORDS) and logits.dtype == np.float32
    expected = numpy_logits(params, TOKENS, positions, tied)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_later_token_does_not_change_an_earlier_logit(positions):
    _, params, apply = model(positions=positions, tied=positions == "learned")
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % WORDS
    before, after = apply(params, TOKENS), apply(params, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(before[:, 4:] != after[:, 4:], axis=-1))


@pytest.mark.slow
def test_padding_does_not_change_the_logits_before_it():
    _, params, apply = model()
    padded = TOKENS.copy()
    padded[0, 4:], padded[2] = -1, -1
    logits = apply(params, padded)
    np.testing.assert_array_equal(logits[0, :4], apply(params, TOKENS)[0, :4])
    assert np.isfinite(logits).all()  # even of a sequence of padding alone
    last, params_too, apply_last = model(every_position=False)
    assert last.outputs == WORDS and jax.tree.all(
        jax.tree.map(lambda x, y: bool(jnp.all(x == y)), params, params_too)
    )
    expected = np.stack([logits[0, 3], logits[1, 5]])
    np.testing.assert_allclose(apply_last(params, padded)[:2], expected, rtol=1e-5)


def test_rotary_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)
    turned = [np.asarray(rotate(jnp.tile(x, (1, 40, 1, 1))))[0, :, 0] for x in (query, key)]
    products = turned[0].astype(np.float64) @ turned[1].T
    for distance in (0, 3, 17):
        along = np.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], atol=1e-4)
    assert np.ptp(products[0]) > 0.5  # and on that it does depend
    np.testing.assert_allclose(np.linalg.norm(turned[0], axis=-1), np.linalg.norm(query), rtol=1e-5)
    np.testing.assert_array_equal(turned[0][0], query[0, 0, 0])  # position 0 is not turned


@pytest.mark.slow
@pytest.mark.parametrize(("positions", "tied"), [("rotary", True), ("learned", False)])
def test_the_number_of_parameters_is_that_of_the_docstring(positions, tied):
    _, params, _ = model(positions=positions, tied=tied)
    d, layer = FEATURES, 12 * FEATURES**2 + 2 * FEATURES
    expected = WORDS * d + LAYERS * layer + d
    expected += (not tied) * d * WORDS + (positions == "learned") * 7 * d
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


def test_in_bfloat16_it_predicts_nearly_the_same():
    network, params, apply = model()
    half = precision.bfloat16(network)
    shapes = jax.eval_shape(network.apply, precision.cast(params, jnp.bfloat16), TOKENS)
    assert shapes.dtype == jnp.bfloat16  # all of it, and not from some layer on
    logits = jax.jit(half.apply)(params, TOKENS)
    assert logits.dtype == np.float32
    exact = log_softmax(apply(params, TOKENS), axis=-1)
    error = np.abs(log_softmax(logits, axis=-1) - exact)
    assert 0 < error.mean() < 0.01 and error.max() < 0.1  # a unit in the last place of 4 is 0.03


def test_it_drops_only_in_training():
    network, params, apply = model(dropout=0.5)
    train = jax.jit(functools.partial(network.apply, train=True))
    one, other = (train(params, TOKENS, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert np.any(one != other)
    np.testing.assert_array_equal(apply(params, TOKENS), model()[2](params, TOKENS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "3 heads cannot share 8 features; choose a divisor"),
        ({"heads": 8}, "a head has 1 features, but rotary positions turn pairs; choose an even"),
        ({"positions": "sine"}, 'positions is \'sine\'; choose "rotary" or "learned"'),
        ({"positions": "learned", "max_length": 5}, "has 6 tokens, but max_length is 5; raise it"),
        ({"tied": True, "vocabulary": 9}, "a vocabulary of 9 and 11 outputs; both must be the"),
        ({"dropout": 1.0}, r"dropout is 1.0; choose a share in \[0, 1\)"),
    ],
)
def test_it_refuses_what_it_cannot_be(options, message):
    network = Transformer(WORDS, **{"features": FEATURES, "heads": HEADS, "layers": 1} | options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), TOKENS)
