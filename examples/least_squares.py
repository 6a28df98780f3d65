"""Least squares with rows of unequal norm: python examples/least_squares.py.

A few large rows limit the step size of uniform draws. Draws in proportion to the square of the
norm, or by the last loss, are unbiased and take far larger steps. Dividing each row by its norm
does so too, but changes the optimum. It needs `pip install '.[run]'` in a checkout.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import isjax

matplotlib.use("agg")
import matplotlib.pyplot as plt


def problem(num_rows=4096, size=16, spread=1.5, noise=1.0, seed=0):
    """Returns rows `a` [N, size] of lognormal norms, and `y` [N] = a x + noise."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(num_rows, size)) * np.exp(spread * rng.normal(size=(num_rows, 1)))
    y = a @ rng.normal(size=size) + noise * rng.normal(size=num_rows)
    return {"a": np.asarray(a, np.float32), "y": np.asarray(y, np.float32)}


def optimum(train):
    """Returns the solution in closed form, [size] float64."""
    return np.linalg.lstsq(train["a"].astype(np.float64), train["y"].astype(np.float64))[0]


def normalised(train):
    """Returns the problem with each row, and its y, divided by the norm of the row."""
    norm = np.linalg.norm(train["a"], axis=1)
    return {"a": train["a"] / norm[:, None], "y": train["y"] / norm}


def make_sampler(method, train, batch_size, k=1.0, smoothing=0.25, initial_loss=1.0):
    """Returns the sampler: "uniform", "reshuffled", or by "norm", last "loss" or its "root"."""
    if method in ("uniform", "reshuffled"):
        return getattr(isjax.recipes, method)(batch_size=batch_size)
    if method == "norm":
        importances = np.sum(np.square(train["a"]), axis=1)
        return isjax.recipes.given(batch_size=batch_size, importances=importances, k=k)
    exponent = {"loss": 1.0, "root": 0.5}[method]
    return isjax.recipes.default(
        batch_size=batch_size,
        k=k,
        smoothing=smoothing,
        exponent=exponent,
        until=1,
        initial_loss=initial_loss**exponent,
    )


def loss_fn(x, batch):
    """Returns one loss for each row."""
    return 0.5 * jnp.square(batch["a"] @ x - batch["y"])


def make_fit(train, method, steps=2000, batch_size=8, **options):
    """Returns `fit(learning_rate, seed) -> distances` from the optimum, over its norm, [steps].

    The learning rate falls linearly to zero, at the end or after fewer steps, `decay`. Method
    "normalised" draws uniformly from the rows divided by their norms; `options` are of the sampler.
    """
    best = jnp.asarray(optimum(train), jnp.float32)
    if method == "normalised":
        train, method = normalised(train), "uniform"
    num_rows, size = train["a"].shape
    initial_loss = float(np.mean(np.square(train["y"]))) / 2
    sampler = make_sampler(method, train, batch_size, initial_loss=initial_loss, **options)
    value_and_grad = isjax.weighted_value_and_grad(loss_fn)
    train = jax.tree.map(jnp.asarray, train)

    def fit(learning_rate, seed, decay=steps):
        tx = optax.sgd(lambda step: learning_rate * jnp.maximum(1 - step / decay, 0))

        def step(state, key):
            x, opt_state, is_state = state
            pool_key, draw_key = jax.random.split(key)
            ids = None if sampler.own_pool else isjax.presample(pool_key, num_rows, batch_size)
            draw, is_state = sampler.sample(draw_key, is_state, ids)
            batch = jax.tree.map(lambda rows: rows[draw.ids], train)
            (_, losses), grads = value_and_grad(x, batch, draw.weights)
            updates, opt_state = tx.update(grads, opt_state, x)
            x = optax.apply_updates(x, updates)
            is_state = sampler.update(is_state, draw, losses)
            loss = isjax.diagnostics.mean_loss(draw, losses)  # unbiased for every k
            distance = jnp.linalg.norm(x - best) / jnp.linalg.norm(best)
            return (x, opt_state, is_state), (loss, draw.ess, distance)

        init_key, key = jax.random.split(jax.random.key(seed))
        x = jnp.zeros(size)
        state = x, tx.init(x), sampler.init(init_key, num_rows)
        _, (_, _, distances) = jax.lax.scan(step, state, jax.random.split(key, steps))
        return distances

    return jax.jit(fit)


def stable_rate(train, method):
    """Returns half of the largest stable step size of a single row, by the method's weights."""
    squares = np.sum(np.square(train["a"].astype(np.float64)), axis=1)
    if method == "normalised":
        return 0.5
    return 0.5 / float(np.mean(squares) if method == "norm" else np.max(squares))


def draw_curves(distances, path):
    """Writes the distance to the optimum against the step, of each method."""
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, values in distances.items():
        axis.plot(np.arange(1, len(values) + 1), values, label=name, linewidth=1)
    axis.set(xlabel="step", ylabel="distance to the optimum", yscale="log", xscale="log")
    axis.legend()
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    """Fits by each method, prints the distance to the optimum and writes the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["uniform", "norm", "normalised"])
    parser.add_argument("--spread", type=float, default=1.5, help="deviation of the log norm")
    parser.add_argument("--noise", type=float, default=1.0, help="deviation of the noise of y")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--k", type=float, default=1.0, help="1 is unbiased")
    parser.add_argument("--learning-rate", type=float, default=0.0, help="0 = half of the stable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="build/least_squares.png")
    args = parser.parse_args()
    train, distances = problem(spread=args.spread, noise=args.noise, seed=args.seed), {}
    norm = np.linalg.norm(train["a"], axis=1)
    print(f"largest norm of a row: {norm.max() / norm.mean():.0f} times the mean")
    for method in args.methods:
        options = {"k": args.k} if method in ("norm", "loss", "root") else {}
        rate = args.learning_rate or stable_rate(train, method)
        fit = make_fit(train, method, args.steps, **options)
        distances[method] = np.asarray(fit(rate, args.seed))
        print(f"{method}: distance {distances[method][-1]:.2e}, learning rate {rate:.1e}")
    draw_curves(distances, args.picture)


if __name__ == "__main__":
    main()
