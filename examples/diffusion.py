"""A diffusion model whose timesteps are drawn by importance: python examples/diffusion.py.

A step has two draws: examples uniformly, and timesteps by the second moment of their losses, as in
improved diffusion (arXiv 2102.09672). To the sampler a timestep is an id. Draws are unbiased, so
that the objective stays the variational bound. It needs `pip install '.[images]'` in a checkout.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits

import isjax
import isjax.data
from isjax import resampling, scorers

matplotlib.use("agg")
import matplotlib.pyplot as plt


def load(name="digits", data_dir=None):
    """Returns images [N, pixels] in [-1, 1], and the number of grey levels."""
    if name == "digits":
        x, levels = load_digits().data, 17
    else:
        x, levels = isjax.data.load_images(name, data_dir or None).train["x"], 256
    return np.asarray(x.reshape(len(x), -1) * (2 / (levels - 1)) - 1, np.float32), levels


def signal_to_noise(schedule, num_timesteps):
    """Returns the ratio of signal to noise of each timestep, [T] float64, falling."""
    if schedule == "cosine":  # arXiv 2102.09672
        time = np.linspace(0, 1, num_timesteps + 1)
        signal = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    elif schedule == "linear":  # arXiv 2006.11239
        beta = np.linspace(1e-4, 0.02, num_timesteps)
    else:  # "even": log-linear between the ends of the cosine schedule
        ends = signal_to_noise("cosine", num_timesteps)[[0, -1]]
        return np.geomspace(*ends, num_timesteps)
    signal = np.cumprod(1 - beta)
    return signal / (1 - signal)


def make_losses(snr, levels, objective="bound", predict="noise"):
    """Returns the loss function, of batches of `x`, `t` and `noise`, and the weight of each t.

    The mean loss over examples and timesteps is the bound, in nats per pixel and without the
    constant term of the prior (arXiv 2107.00630), or the mean squared error of the noise.
    """
    num_timesteps = len(snr)
    # What a squared error of the noise, or of the image, costs in the bound.
    ratio = np.concatenate([snr[:1] / snr[1:2], snr[:-1] / snr[1:]]) - 1
    weight = 0.5 * num_timesteps * ratio * (snr if predict == "image" else 1)
    ratio_of_errors = jnp.asarray(np.sqrt(snr), jnp.float32)
    signal = jnp.asarray(np.sqrt(snr / (1 + snr)), jnp.float32)
    spread = jnp.asarray(np.sqrt(1 / (1 + snr)), jnp.float32)
    noise_weight = jnp.asarray(0.5 * num_timesteps * ratio, jnp.float32)

    def loss_fn(params, batch):
        t = batch["t"]
        noisy = signal[t][:, None] * batch["x"] + spread[t][:, None] * batch["noise"]
        output = denoise(params, noisy, t / num_timesteps)
        error = output - batch["noise"]  # of the noise
        if predict == "image":
            error = ratio_of_errors[t][:, None] * (output - batch["x"])
        squared = jnp.mean(jnp.square(error), axis=1)
        if objective == "simple":
            return squared
        # At the first timestep: the grey level, given a Gaussian about the predicted image.
        deviation = 1 / ratio_of_errors[0]
        away = jnp.abs(error) * deviation
        half = 1 / (levels - 1)
        inside = jax.scipy.stats.norm.cdf((away + half) / deviation) - jax.scipy.stats.norm.cdf(
            (away - half) / deviation
        )
        level = -jnp.mean(jnp.log(jnp.maximum(inside, 1e-12)), axis=1)
        return jnp.where(t == 0, num_timesteps * level, noise_weight[t] * squared)

    return loss_fn, (np.ones(num_timesteps) if objective == "simple" else weight)


def init(key, pixels, width=128):
    """Returns the parameters of the denoiser, a small MLP."""
    keys = jax.random.split(key, 3)
    make = jax.nn.initializers.lecun_normal()
    sizes = [pixels + 32, width, width, pixels]
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(make(key, (before, after)), jnp.zeros(after)) for key, before, after in shapes]


def denoise(params, noisy, time):
    """Predicts the noise or the image, [b, pixels], of `noisy` [b, pixels] at `time` [b]."""
    angles = time[:, None] * jnp.geomspace(1, 1000, 16)[None]
    h = jnp.concatenate([noisy, jnp.sin(angles), jnp.cos(angles)], axis=1)
    for weight, bias in params[:-1]:
        h = jax.nn.silu(h @ weight + bias[None])
    return h @ params[-1][0] + params[-1][1][None]


def make_sampler(method, batch_size, weight, k=1.0, history=10):
    """Returns the sampler of timesteps.

    "uniform" and "stratified" draw uniformly, each by itself or evenly spread; "static" in
    proportion to `weight` [T]; "second_moment", "loss" and "root" by the losses observed.
    """
    if method == "uniform":
        return isjax.importance_sampler(
            scorers.uniform(), batch_size=batch_size, resample=resampling.categorical
        )
    if method == "stratified":
        return isjax.recipes.uniform(batch_size=batch_size)
    if method == "static":
        return isjax.recipes.given(batch_size=batch_size, importances=weight)
    scorer = scorers.last_loss(unseen_first=True)
    if method == "second_moment":
        scorer = scorers.second_moment(history)
    transform = isjax.power(0.5) if method == "root" else isjax.transforms.identity()
    transform = isjax.chain(transform, isjax.mix_uniform(0.001))
    return isjax.importance_sampler(scorer, transform, batch_size=batch_size, k=k)


def make_run(x, loss_fn, sampler, num_timesteps, steps, learning_rate):
    """Returns `start(seed) -> state` and `step(state, x) -> (state, (loss, ess))`."""
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    value_and_grad = isjax.weighted_value_and_grad(loss_fn)

    def start(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        params = init(keys[0], x.shape[1])
        return keys[1], params, tx.init(params), sampler.init(keys[2], num_timesteps)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, x):
        key, params, opt_state, is_state = state
        key, example_key, draw_key, noise_key = jax.random.split(key, 4)
        # Examples in random order: timesteps come in ascending order.
        ids = jax.random.randint(example_key, (sampler.batch_size,), 0, x.shape[0])
        draw, is_state = sampler.sample(draw_key, is_state)
        noise = jax.random.normal(noise_key, (sampler.batch_size, x.shape[1]))
        batch = {"x": x[ids], "t": draw.ids, "noise": noise}
        (_, losses), grads = value_and_grad(params, batch, draw.weights)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        is_state = sampler.update(is_state, draw, losses)
        loss = isjax.diagnostics.mean_loss(draw, losses)  # unbiased for every k
        return (key, params, opt_state, is_state), (loss, draw.ess)

    return start, step


def mean_losses(params, loss_fn, x, num_timesteps, examples=128):
    """Returns the mean loss at each timestep, [T], over examples with fixed noise."""

    @jax.jit
    def at(t):
        chosen = x[jax.random.randint(jax.random.key(7), (examples,), 0, x.shape[0])]
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(8), t), chosen.shape)
        batch = {"x": chosen, "t": jnp.full(examples, t), "noise": noise}
        return jnp.mean(loss_fn(params, batch))

    return np.asarray(jax.lax.map(at, jnp.arange(num_timesteps)), np.float64)


def fit(
    x,
    levels,
    method,
    *,
    objective="bound",
    schedule="cosine",
    predict="noise",
    num_timesteps=1000,
    steps=2000,
    batch_size=128,
    learning_rate=1e-3,
    seed=0,
    **options,
):
    """Trains a denoiser. Returns the mean loss at each timestep, [T], and the sampler's state."""
    snr = signal_to_noise(schedule, num_timesteps)
    loss_fn, weight = make_losses(snr, levels, objective, predict)
    sampler = make_sampler(method, batch_size, weight, **options)
    x = jnp.asarray(x)
    start, step = make_run(x, loss_fn, sampler, num_timesteps, steps, learning_rate)
    state = start(seed)
    for _ in range(steps):
        state, _ = step(state, x)
    return mean_losses(state[1], loss_fn, x, num_timesteps), state[3]


def draw_curves(losses, path):
    """Writes the mean loss of each timestep, of each method."""
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, values in losses.items():
        axis.plot(values / len(values), label=f"{name}: {values.mean():.2f}", linewidth=1)
    axis.set(xlabel="timestep", ylabel="nats per pixel", yscale="log", title="Terms of the bound")
    axis.legend(title="sum, by draws")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Trains by each way of drawing timesteps, prints the losses and writes the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="digits, or fashion_mnist")
    parser.add_argument("--data-dir", default="", help="folder of tensorflow-datasets")
    parser.add_argument("--methods", nargs="+", default=["uniform", "static", "second_moment"])
    parser.add_argument("--objective", choices=["bound", "simple"], default="bound")
    parser.add_argument("--schedule", choices=["cosine", "linear", "even"], default="cosine")
    parser.add_argument("--predict", choices=["noise", "image"], default="noise")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="build/diffusion.png")
    args = parser.parse_args()
    (x, levels), losses = load(args.data, args.data_dir), {}
    for method in args.methods:
        losses[method], _ = fit(
            x,
            levels,
            method,
            objective=args.objective,
            schedule=args.schedule,
            predict=args.predict,
            steps=args.steps,
            learning_rate=args.learning_rate,
            seed=args.seed,
        )
        print(f"{method}: {args.objective} {losses[method].mean():.3f}")
    draw_curves(losses, args.picture)


if __name__ == "__main__":
    main()
