"""Burgers' equation by a physics-informed network: python examples/burgers.py [PICTURE].

    u_t + u u_x = nu u_xx,   u(0, x) = -sin(pi x),   u(t, -1) = u(t, 1) = 0,   nu = 0.01 / pi

A shock forms at x = 0, and nearly all of the residual lies there. The collocation points are a
fixed set. The sampler remembers the squared residual of each point and draws the high ones more
often. `--method uniform` draws uniformly. `--x64 --lbfgs 300` ends the run by L-BFGS in float64.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import isjax
from isjax.data import domain

NU = 0.01 / np.pi
points_of = domain.box([0, -1], [1, 1])  # (t, x)


def init(key, sizes=(2, 32, 32, 32, 1)):
    """Returns the weights and biases of an MLP."""
    keys, glorot = jax.random.split(key, len(sizes)), jax.nn.initializers.glorot_normal()
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=False)
    return [(glorot(key, shape), jnp.zeros(shape[1])) for key, *shape in shapes]


def u(params, t, x):
    """The solution; initial and boundary conditions hold whatever the network says. [n] -> [n]."""
    h = jnp.stack([2 * t - 1, 5 * x], axis=1)  # a shock in x needs steep units
    for weight, bias in params[:-1]:
        h = jnp.tanh(h @ weight + bias[None, :])
    network = (h @ params[-1][0] + params[-1][1][None, :])[:, 0]
    return -jnp.sin(jnp.pi * x) + t * (1 - x**2) * network


def residual(params, points):
    """By how much the equation fails at each point. [n, 2] -> [n]."""
    t, x = points.T
    one = jnp.ones_like(x)
    _, u_t = jax.jvp(lambda t: u(params, t, x), (t,), (one,))
    with_u_x = lambda x: jax.jvp(lambda x: u(params, t, x), (x,), (one,))  # noqa: E731
    (value, u_x), (_, u_xx) = jax.jvp(with_u_x, (x,), (one,))
    return u_t + value * u_x - NU * u_xx


def loss_fn(params, points):
    """Returns one loss for each point."""
    return residual(params, points) ** 2


def samplers(k=0.5, batch_size=128):
    """Returns the samplers by name."""
    return {
        "importance": isjax.recipes.default(batch_size=batch_size, k=k, smoothing=1.0, until=1),
        "uniform": isjax.recipes.uniform(batch_size=batch_size),
    }


def train(sampler, steps, seed=0, learning_rate=3e-3, num_points=2**14):
    """Trains by Adam; returns the parameters, the points, and how often each was drawn."""
    keys = jax.random.split(jax.random.key(seed), 4)
    points = points_of(keys[0], num_points)
    params = init(keys[1])
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    value_and_grad = isjax.weighted_value_and_grad(loss_fn)

    def step(state, key):
        params, opt_state, is_state, visits = state
        draw, is_state = sampler.sample(key, is_state)
        (_, losses), grads = value_and_grad(params, points[draw.ids], draw.weights)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        is_state = sampler.update(is_state, draw, losses)
        loss = isjax.diagnostics.mean_loss(draw, losses)  # unbiased for every k
        return (params, opt_state, is_state, visits.at[draw.ids].add(1)), (loss, draw.ess)

    visits = jnp.zeros(num_points, jnp.int32)
    state = params, tx.init(params), sampler.init(keys[2], num_points), visits
    state, (loss, ess) = jax.lax.scan(step, state, jax.random.split(keys[3], steps))
    print(f"loss {loss[-100:].mean():.2e}, effective sample size {ess[-100:].mean():.0%}")
    return state[0], points, state[3]


def finish(params, steps, seed=0, num_points=4096):
    """Trains further by L-BFGS, which needs the same points at each step."""
    points = points_of(jax.random.key(seed), num_points)
    tx, mean_loss = optax.lbfgs(), lambda params: jnp.mean(loss_fn(params, points))
    value_and_grad = optax.value_and_grad_from_state(mean_loss)

    def step(state, _):
        params, opt_state = state
        value, grad = value_and_grad(params, state=opt_state)
        updates, opt_state = tx.update(
            grad, opt_state, params, value=value, grad=grad, value_fn=mean_loss
        )
        return (optax.apply_updates(params, updates), opt_state), value

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return params


def reference(t, x):
    """The exact solution by the Cole-Hopf transform and Gauss-Hermite quadrature, in float64.

    Args:
        t: [n] times, above 0.
        x: [m] places.

    Returns:
        [n, m].
    """
    nodes, weights = np.polynomial.hermite.hermgauss(200)
    y = x[None, :, None] - 2 * np.sqrt(NU * t[:, None, None]) * nodes
    exponent = -np.cos(np.pi * y) / (2 * np.pi * NU)
    mass = weights * np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    return -np.sum(mass * np.sin(np.pi * y), axis=-1) / np.sum(mass, axis=-1)


GRID = np.linspace(0.01, 1, 100), np.linspace(-1, 1, 257)  # of the error and the picture
TRUTH = reference(*GRID)


def on_grid(function):
    """Computes a function of points at the points of the grid, [100, 257]."""
    points = jnp.stack(jnp.meshgrid(*map(jnp.asarray, GRID), indexing="ij"), axis=-1)
    return jax.lax.map(function, points)


def error(params):
    """Relative L2 error of the solution. [] float."""
    found = on_grid(lambda points: u(params, *points.T))
    return jnp.linalg.norm(found - TRUTH) / np.linalg.norm(TRUTH)


def draw_picture(params, points, visits, path):
    """Draws the solution, the residual and how often each point was drawn."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained", sharey=True)
    shown = {
        "solution u": on_grid(lambda points: u(params, *points.T)),
        "residual, log10": on_grid(lambda points: jnp.log10(jnp.abs(residual(params, points)))),
    }
    for ax, (title, values) in zip(axes, shown.items(), strict=False):
        figure.colorbar(ax.pcolormesh(*GRID, values.T, shading="nearest", rasterized=True), ax=ax)
        ax.set(title=title, xlabel="t")
    dots = axes[2].scatter(*points.T, s=0.3, c=np.log10(1 + visits), rasterized=True)
    figure.colorbar(dots, ax=axes[2])
    axes[2].set(title="visits of a point, log10(1 + n)", xlabel="t", xlim=(0, 1), ylim=(-1, 1))
    axes[0].set(ylabel="x")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main():
    """Trains, and prints the error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", default="build/burgers.png")
    parser.add_argument("--method", default="importance", choices=samplers())
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--k", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lbfgs", type=int, default=0, help="steps of L-BFGS after those of Adam")
    parser.add_argument("--x64", action="store_true", help="compute in float64")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", args.x64)
    params, points, visits = train(samplers(args.k)[args.method], args.steps, args.seed)
    print(f"{args.method}: relative L2 error {error(params):.4f} after {args.steps} steps of Adam")
    if args.lbfgs:
        params = finish(params, args.lbfgs, args.seed)
        print(f"relative L2 error {error(params):.5f} after {args.lbfgs} steps of L-BFGS")
    draw_picture(params, points, visits, args.picture)
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
