"""Poisson's equation with a sharp peak: python examples/poisson_peak.py [PICTURE].

    u_xx + u_yy = f on [-1, 1]^2,   u = 0 on the boundary

f is such that u = (1 - x^2) (1 - y^2) exp(-50 |z|^2) with z = (x - 0.5, y - 0.5): nearly all of it
lies within a tenth of the square. Each step draws a fresh pool of points, scores it by the
squared residual, and trains on a part of it. k = 1 keeps the gradient unbiased. `--method uniform`
trains on fresh points as they come.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import isjax
from isjax.data import domain

points_of = domain.box([-1, -1], [1, 1])


def exact(x, y):
    """The solution in closed form. [n] -> [n]."""
    return (1 - x**2) * (1 - y**2) * jnp.exp(-50 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))


def second(function, x):
    """Second derivative of a function that maps [n] -> [n] row by row. -> [n]."""
    one = jnp.ones_like(x)
    first = lambda x: jax.jvp(function, (x,), (one,))[1]  # noqa: E731
    return jax.jvp(first, (x,), (one,))[1]


def laplacian(function, points):
    """u_xx + u_yy of a function (x [n], y [n]) -> u [n]. -> [n]."""
    x, y = points.T
    return second(lambda x: function(x, y), x) + second(lambda y: function(x, y), y)


def init(key, sizes=(2, 32, 32, 32, 1)):
    """Returns the weights and biases of an MLP."""
    keys, glorot = jax.random.split(key, len(sizes)), jax.nn.initializers.glorot_normal()
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=False)
    return [(glorot(key, shape), jnp.zeros(shape[1])) for key, *shape in shapes]


def u(params, x, y):
    """The solution, zero on the boundary whatever the network says. [n] -> [n]."""
    h = jnp.stack([x, y], axis=1)
    for weight, bias in params[:-1]:
        h = jnp.tanh(h @ weight + bias[None, :])
    network = (h @ params[-1][0] + params[-1][1][None, :])[:, 0]
    return (1 - x**2) * (1 - y**2) * network


def residual(params, points):
    """By how much the equation fails at each point. [n, 2] -> [n]."""
    return laplacian(functools.partial(u, params), points) - laplacian(exact, points)


def loss_fn(params, points):
    """Returns one loss for each point."""
    return residual(params, points) ** 2


def samplers(k=1.0, batch_size=128):
    """Returns the samplers by name."""
    by_loss = isjax.scorers.loss(loss_fn)
    return {
        "importance": isjax.importance_sampler(
            by_loss, isjax.smooth_by_mean(0.25), batch_size=batch_size, k=k
        ),
        "uniform": isjax.recipes.uniform(batch_size=batch_size),
    }


def train(sampler, steps, seed=0, learning_rate=3e-3, pool_size=512):
    """Trains by Adam; returns the parameters and the points of the last 20 steps."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = init(keys[0])
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    value_and_grad = isjax.weighted_value_and_grad(loss_fn)

    def step(state, key):
        params, opt_state, is_state = state
        pool_key, draw_key = jax.random.split(key)
        pool = points_of(pool_key, pool_size)
        draw, is_state = sampler.sample(draw_key, is_state, batch=pool, params=params)
        points = pool[draw.ids]
        (_, losses), grads = value_and_grad(params, points, draw.weights)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        is_state = sampler.update(is_state, draw, losses)
        loss = isjax.diagnostics.mean_loss(draw, losses)  # unbiased for every k
        return (params, opt_state, is_state), (loss, draw.ess, points)

    state = params, tx.init(params), sampler.init(keys[1], pool_size)
    state, (loss, ess, points) = jax.lax.scan(step, state, jax.random.split(keys[2], steps))
    print(f"loss {loss[-100:].mean():.2e}, effective sample size {ess[-100:].mean():.0%}")
    return state[0], points[-20:].reshape(-1, 2)


SIDE = np.linspace(-1, 1, 257)  # of the grid of the error and the picture


def on_grid(function):
    """Computes a function of points at the points of the grid, [257, 257]."""
    points = jnp.stack(jnp.meshgrid(jnp.asarray(SIDE), jnp.asarray(SIDE), indexing="ij"), axis=-1)
    return jax.lax.map(function, points)


def error(params):
    """Relative L2 error of the solution. [] float."""
    truth = on_grid(lambda points: exact(*points.T))
    wrong = on_grid(lambda points: u(params, *points.T)) - truth
    return jnp.linalg.norm(wrong) / jnp.linalg.norm(truth)


def draw_picture(params, points, path):
    """Draws the solution, the residual and the points of the last steps."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = {
        "solution u": on_grid(lambda points: u(params, *points.T)),
        "residual, log10": on_grid(lambda points: jnp.log10(jnp.abs(residual(params, points)))),
    }
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained", sharey=True)
    for ax, (title, values) in zip(axes, shown.items(), strict=False):
        image = ax.imshow(values.T, origin="lower", extent=(-1, 1, -1, 1))
        figure.colorbar(image, ax=ax)
        ax.set(title=title, xlabel="x")
    axes[2].plot(*points.T, ".", markersize=1)
    axes[2].set(
        title="points of the last 20 steps", xlabel="x", aspect="equal", xlim=(-1, 1), ylim=(-1, 1)
    )
    axes[0].set(ylabel="y")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main():
    """Trains, and prints the error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", default="build/poisson_peak.png")
    parser.add_argument("--method", default="importance", choices=samplers())
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--k", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pool_size = 512 if args.method == "importance" else 128
    params, points = train(
        samplers(args.k)[args.method], args.steps, args.seed, pool_size=pool_size
    )
    print(f"{args.method}: relative L2 error {error(params):.4f} after {args.steps} steps")
    draw_picture(params, points, args.picture)
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
