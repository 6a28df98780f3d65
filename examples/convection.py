"""Convection at high speed, where sampling does not help: python examples/convection.py [PICTURE].

    u_t + 30 u_x = 0,   u(0, x) = sin(x),   periodic in x on [0, 2 pi]

The solution must travel from t = 0 through the domain. Where it has not arrived, a wrong solution
can have a small residual, so the residual does not say where to train. Three ways to choose the
points are compared: `uniform`, fresh ones; `importance`, drawn from a fresh pool by the residual,
unbiased; and `r3`, which keeps the points above the mean residual and replaces the others.
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
from isjax.recipes import collocation

points_of = domain.time_slab(0, 1, domain.box([0], [2 * np.pi]))  # (t, x)


def exact(t, x, speed=30.0):
    """The solution in closed form. [n] -> [n]."""
    return jnp.sin(x - speed * t)


def init(key, sizes=(3, 32, 32, 32, 1)):
    """Returns the weights and biases of an MLP."""
    keys, glorot = jax.random.split(key, len(sizes)), jax.nn.initializers.glorot_normal()
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=False)
    return [(glorot(key, shape), jnp.zeros(shape[1])) for key, *shape in shapes]


def u(params, t, x):
    """The solution; the initial condition and the period hold by construction. [n] -> [n]."""
    h = jnp.stack([2 * t - 1, jnp.cos(x), jnp.sin(x)], axis=1)
    for weight, bias in params[:-1]:
        h = jnp.tanh(h @ weight + bias[None, :])
    network = (h @ params[-1][0] + params[-1][1][None, :])[:, 0]
    return jnp.sin(x) + t * network


def residual(params, points, speed=30.0):
    """By how much the equation fails at each point: a derivative along (1, speed). -> [n]."""
    t, x = points.T
    one = jnp.ones_like(x)
    return jax.jvp(functools.partial(u, params), (t, x), (one, speed * one))[1]


def loss_fn(params, points):
    """Returns one loss for each point."""
    return residual(params, points) ** 2


def methods(k=1.0, batch_size=128):
    """Returns by name a sampler, the size of its pool, and whether points are retained."""
    by_residual = isjax.importance_sampler(
        isjax.scorers.loss(loss_fn), isjax.smooth_by_mean(0.25), batch_size=batch_size, k=k
    )
    uniform = isjax.recipes.uniform(batch_size=batch_size)
    return {
        "importance": (by_residual, 4 * batch_size, False),
        "uniform": (uniform, batch_size, False),
        "r3": (uniform, batch_size, True),
    }


def train(method, steps, seed=0, learning_rate=3e-3):
    """Trains by Adam; returns the parameters and the points of the last 20 steps."""
    sampler, pool_size, retain = method
    keys = jax.random.split(jax.random.key(seed), 4)
    params = init(keys[0])
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    value_and_grad = isjax.weighted_value_and_grad(loss_fn)

    def step(state, key):
        params, opt_state, is_state, pool = state
        draw_key, pool_key = jax.random.split(key)
        draw, is_state = sampler.sample(draw_key, is_state, batch=pool, params=params)
        points = pool[draw.ids]
        (_, losses), grads = value_and_grad(params, points, draw.weights)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        is_state = sampler.update(is_state, draw, losses)
        loss = isjax.diagnostics.mean_loss(draw, losses)  # unbiased for every k
        pool = points_of(pool_key, pool_size)
        if retain:
            pool = collocation.retain_resample(points, jnp.sqrt(losses), pool)
        return (params, opt_state, is_state, pool), (loss, draw.ess, points)

    pool = points_of(keys[1], pool_size)
    state = params, tx.init(params), sampler.init(keys[2], pool_size), pool
    state, (loss, ess, points) = jax.lax.scan(step, state, jax.random.split(keys[3], steps))
    print(f"loss {loss[-100:].mean():.2e}, effective sample size {ess[-100:].mean():.0%}")
    return state[0], points[-20:].reshape(-1, 2)


GRID = np.linspace(0, 1, 101), np.linspace(0, 2 * np.pi, 257)  # of the error and the picture


def on_grid(function):
    """Computes a function of points at the points of the grid, [101, 257]."""
    points = jnp.stack(jnp.meshgrid(*map(jnp.asarray, GRID), indexing="ij"), axis=-1)
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
    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained", sharey=True)
    for ax, (title, values) in zip(axes, shown.items(), strict=False):
        image = ax.imshow(values.T, origin="lower", extent=(0, 1, 0, 2 * np.pi), aspect="auto")
        figure.colorbar(image, ax=ax)
        ax.set(title=title, xlabel="t")
    axes[2].plot(*points.T, ".", markersize=1)
    axes[2].set(title="points of the last 20 steps", xlabel="t", xlim=(0, 1))
    axes[0].set(ylabel="x")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main():
    """Trains, and prints the error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", default="build/convection.png")
    parser.add_argument("--method", default="r3", choices=methods())
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--k", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    params, points = train(methods(args.k)[args.method], args.steps, args.seed)
    print(f"{args.method}: relative L2 error {error(params):.4f} after {args.steps} steps")
    draw_picture(params, points, args.picture)
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
