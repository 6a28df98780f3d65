"""The functions of the examples of fields, diffusion and fits, and benchmarks/science_fields.py."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

FOLDER = pathlib.Path(__file__).parent.parent / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


diffusion, fields, squares = map(example, ["diffusion", "image_field", "least_squares"])


# --- diffusion


def beta_of(snr):
    signal = snr / (1 + snr)
    return 1 - signal / np.concatenate([[1.0], signal[:-1]])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "even"])
def test_signal_to_noise_falls_and_is_that_of_a_schedule(schedule):
    snr = diffusion.signal_to_noise(schedule, 1000)
    assert np.all(np.diff(snr) < 0) and snr[0] > 1e3 and snr[-1] < 1e-4
    beta = beta_of(snr)
    assert np.all((beta > 0) & (beta < 1))
    if schedule == "linear":
        np.testing.assert_allclose(beta[[0, -1]], [1e-4, 0.02], rtol=1e-6)
    if schedule == "even":
        np.testing.assert_allclose(np.diff(np.log(snr)), np.log(snr[-1] / snr[0]) / 999)


@pytest.mark.slow
@pytest.mark.parametrize("predict", ["noise", "image"])
def test_terms_of_the_bound_are_divergences_between_gaussians(predict):
    """KL(q(x_s | x_t, x) || q(x_s | x_t, predicted x)), from the means and the variance."""
    num_timesteps, levels = 50, 17
    snr = diffusion.signal_to_noise("cosine", num_timesteps)
    loss_fn, weight = diffusion.make_losses(snr, levels, "bound", predict)
    params = diffusion.init(jax.random.key(0), 4, width=8)
    rng = np.random.default_rng(0)
    t = np.array([0, 1, 5, 20, 48])
    x = rng.integers(0, levels, (5, 4)) / 8 - 1
    noise = rng.normal(size=(5, 4))
    batch = {"x": jnp.float32(x), "t": jnp.asarray(t), "noise": jnp.float32(noise)}
    losses = np.float64(jax.jit(loss_fn)(params, batch))

    beta, signal = beta_of(snr), snr / (1 + snr)
    noisy = np.sqrt(signal[t])[:, None] * x + np.sqrt(1 - signal[t])[:, None] * noise
    output = np.float64(diffusion.denoise(params, jnp.float32(noisy), batch["t"] / num_timesteps))
    predicted = output
    if predict == "noise":
        predicted = noisy - np.sqrt(1 - signal[t])[:, None] * output
        predicted = predicted / np.sqrt(signal[t])[:, None]
    for i, step in enumerate(t[1:], 1):
        share = np.sqrt(signal[step - 1]) * beta[step] / (1 - signal[step])
        variance = beta[step] * (1 - signal[step - 1]) / (1 - signal[step])
        divergence = np.mean(np.square(share * (x[i] - predicted[i]))) / (2 * variance)
        np.testing.assert_allclose(losses[i], num_timesteps * divergence, rtol=2e-3)
        # The weight is what this error costs.
        error = x[i] - predicted[i] if predict == "image" else output[i] - noise[i]
        np.testing.assert_allclose(losses[i], weight[step] * np.mean(error**2), rtol=2e-3)
    gauss = stats.norm(loc=predicted[0], scale=1 / np.sqrt(snr[0]))
    level = -np.log(np.maximum(gauss.cdf(x[0] + 1 / 16) - gauss.cdf(x[0] - 1 / 16), 1e-12))
    np.testing.assert_allclose(losses[0], num_timesteps * np.mean(level), rtol=2e-3, atol=0.05)


@pytest.mark.slow
def test_the_simple_loss_is_the_mean_squared_error_of_the_noise():
    loss_fn, weight = diffusion.make_losses(diffusion.signal_to_noise("cosine", 20), 17, "simple")
    params = [
        (jnp.zeros(w.shape), jnp.zeros(b.shape)) for w, b in diffusion.init(jax.random.key(0), 4)
    ]
    noise = np.random.default_rng(0).normal(size=(3, 4))
    batch = {"x": jnp.ones((3, 4)), "t": jnp.asarray([0, 9, 19]), "noise": jnp.float32(noise)}
    np.testing.assert_allclose(loss_fn(params, batch), np.mean(noise**2, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(weight, np.ones(20))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["uniform", "stratified", "static", "second_moment", "loss", "root"]
)
def test_timesteps_are_drawn_with_unbiased_weights(method):
    weight = np.geomspace(1, 100, 40)
    sampler = diffusion.make_sampler(method, 32, weight)
    draw, state = jax.jit(sampler.sample)(
        jax.random.key(1), jax.jit(sampler.init, static_argnums=1)(jax.random.key(0), 40)
    )
    np.testing.assert_allclose(draw.weights, 1 / (40 * np.float64(draw.draw_probs)), rtol=1e-5)
    if method == "static":
        np.testing.assert_allclose(draw.draw_probs, weight[draw.ids] / weight.sum(), rtol=1e-5)
    jax.eval_shape(sampler.update, state, draw, jnp.ones(32))


def test_digits_have_the_grey_levels_that_the_bound_counts():
    x, levels = diffusion.load()
    assert x.shape == (1797, 64) and x.dtype == np.float32
    np.testing.assert_array_equal(np.unique(x), np.arange(levels, dtype=np.float32) / 8 - 1)


# --- image fields


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(fields.NETWORKS))
def test_a_network_maps_each_coordinate_to_a_colour(network):
    init, apply = fields.NETWORKS[network]
    params = init(jax.random.key(0), 3)
    image = np.zeros((5, 7, 3), np.float32)
    x = fields.pixels(image)["x"]
    np.testing.assert_allclose(x[[0, 6, 34]], [[-1, -1], [-1, 1], [1, 1]])
    picture = fields.render(network, params, image.shape)
    np.testing.assert_allclose(picture[4, 6], apply(params, x[34:])[0], atol=1e-5)


@pytest.mark.slow
def test_frequencies_are_not_trained():
    params = fields.init_fourier(jax.random.key(0), 1)
    x = fields.pixels(np.zeros((4, 4, 1), np.float32))["x"]
    grads = jax.grad(lambda params: jnp.sum(jnp.square(fields.fourier(params, x) - 1)))(params)
    np.testing.assert_array_equal(grads[0]["frequencies"], np.zeros((2, 64)))
    assert np.any(grads[1][0][0])


def test_errors_of_a_picture():
    image = np.zeros((4, 4, 1), np.float32)
    picture = image.copy()
    picture[1, 2] = -0.5
    assert fields.psnr(picture, image) == pytest.approx(-10 * np.log10(0.25 / 16))
    assert fields.largest_error(picture, image) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("module", [fields, squares], ids=["fields", "squares"])
def test_by_the_root_the_sampler_learns_the_norm_of_the_error(module):
    train = () if module is fields else ({"a": np.ones((8, 1), np.float32)},)
    sampler = module.make_sampler("root", *train, batch_size=4, smoothing=0.0, initial_loss=0.25)
    state = jax.jit(sampler.init, static_argnums=1)(jax.random.key(0), 8)
    draw, state = jax.jit(sampler.sample)(jax.random.key(1), state)
    np.testing.assert_allclose(draw.scores, 0.5)
    state = jax.jit(sampler.update)(state, draw, jnp.full(4, 9.0))
    draw, _ = jax.jit(sampler.sample)(jax.random.key(2), state)
    assert set(np.unique(draw.scores)) <= {0.5, 3.0} and 3.0 in draw.scores


@pytest.mark.slow
def test_pixels_are_drawn_by_the_root_of_their_tiles_mean_loss(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER.parent / "benchmarks")
    sampler = importlib.import_module("science_fields").by_tile(width=128)
    state = jax.jit(sampler.init, static_argnums=1)(jax.random.key(0), 128 * 128)
    sample = jax.jit(sampler.sample)

    def tiles(draw):
        return np.asarray(draw.ids) // 128 // 8 * 16 + np.asarray(draw.ids) % 128 // 8

    draw, state = sample(jax.random.key(1), state)
    np.testing.assert_array_equal(np.sort(tiles(draw)), np.arange(256))  # none was seen yet
    losses = jnp.where(tiles(draw) == 37, 9.0, 1.0)
    state = jax.jit(sampler.update)(state, draw, losses)
    draw, state = sample(jax.random.key(2), state)
    assert 37 in tiles(draw)
    np.testing.assert_allclose(draw.scores, np.where(tiles(draw) == 37, 3.0, 1.0))
    state = jax.jit(sampler.update)(state, draw, jnp.full(256, 4.0))
    draw, _ = sample(jax.random.key(3), state)
    assert 37 in tiles(draw)
    np.testing.assert_allclose(draw.scores[tiles(draw) == 37], np.sqrt(0.9 * 9 + 0.1 * 4))


# --- least squares


@pytest.mark.slow
@pytest.mark.parametrize("method", ["norm", "normalised", "loss"])
def test_a_fit_without_noise_reaches_the_solution(method):
    train = squares.problem(num_rows=256, size=3, spread=1.0, noise=0.0)
    fit = squares.make_fit(train, method, steps=1500)
    rate = squares.stable_rate(train, "normalised" if method == "normalised" else "norm")
    distances = np.asarray(fit(rate if method != "loss" else rate / 4, 0))
    assert distances[0] > 0.1 and distances[-1] < 1e-3


def test_normalised_rows_have_another_optimum_where_there_is_noise():
    train = squares.problem(num_rows=512, size=3, spread=1.0, noise=1.0)
    one, other = squares.optimum(train), squares.optimum(squares.normalised(train))
    residual = train["a"].astype(np.float64) @ one - train["y"]
    np.testing.assert_allclose(train["a"].T.astype(np.float64) @ residual, 0, atol=1e-8)
    assert np.linalg.norm(one - other) > 0.01 * np.linalg.norm(one)
