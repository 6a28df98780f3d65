"""The Allen-Cahn equation by a physics-informed network: python examples/allen_cahn.py [PICTURE].

    u_t = 0.0001 u_xx + 5 (u - u^3),   u(0, x) = x^2 cos(pi x),   periodic in x on [-1, 1]

Steep fronts form, and move slowly. The domain is divided into cells, whose numbers are the ids of
the sampler: it remembers the squared residual seen last in each cell, and a new point is drawn
within a cell at every visit. `--method uniform` draws the cells uniformly.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.integrate

import isjax
from isjax.data import domain

SHAPE = 128, 128
point_in = domain.cells([0, -1], [1, 1], SHAPE)  # (t, x)


def init(key, sizes=(3, 32, 32, 32, 1)):
    """Returns the weights and biases of an MLP."""
    keys, glorot = jax.random.split(key, len(sizes)), jax.nn.initializers.glorot_normal()
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=False)
    return [(glorot(key, shape), jnp.zeros(shape[1])) for key, *shape in shapes]


def u(params, t, x):
    """The solution; the initial condition and the period hold by construction. [n] -> [n]."""
    h = jnp.stack([2 * t - 1, jnp.cos(jnp.pi * x), jnp.sin(jnp.pi * x)], axis=1)
    for weight, bias in params[:-1]:
        h = jnp.tanh(h @ weight + bias[None, :])
    network = (h @ params[-1][0] + params[-1][1][None, :])[:, 0]
    return x**2 * jnp.cos(jnp.pi * x) + t * network


def residual(params, points):
    """By how much the equation fails at each point. [n, 2] -> [n]."""
    t, x = points.T
    one = jnp.ones_like(x)
    _, u_t = jax.jvp(lambda t: u(params, t, x), (t,), (one,))
    with_u_x = lambda x: jax.jvp(lambda x: u(params, t, x), (x,), (one,))  # noqa: E731
    (value, _), (_, u_xx) = jax.jvp(with_u_x, (x,), (one,))
    return u_t - 1e-4 * u_xx - 5 * (value - value**3)


def loss_fn(params, points):
    """Returns one loss for each point."""
    return residual(params, points) ** 2


def samplers(k=0.5, batch_size=128):
    """Returns the samplers by name."""
    return {
        "importance": isjax.recipes.default(batch_size=batch_size, k=k, smoothing=1.0, until=1),
        "uniform": isjax.recipes.uniform(batch_size=batch_size),
    }


def train(sampler, steps, seed=0, learning_rate=3e-3):
    """Trains by Adam; returns the parameters, and how often each cell was drawn."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = init(keys[0])
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    value_and_grad = isjax.weighted_value_and_grad(loss_fn)
    num_cells = SHAPE[0] * SHAPE[1]

    def step(state, key):
        params, opt_state, is_state, visits = state
        draw_key, point_key = jax.random.split(key)
        draw, is_state = sampler.sample(draw_key, is_state)
        points = point_in(point_key, draw.ids)
        (_, losses), grads = value_and_grad(params, points, draw.weights)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        is_state = sampler.update(is_state, draw, losses)
        loss = isjax.diagnostics.mean_loss(draw, losses)  # unbiased for every k
        return (params, opt_state, is_state, visits.at[draw.ids].add(1)), (loss, draw.ess)

    visits = jnp.zeros(num_cells, jnp.int32)
    state = params, tx.init(params), sampler.init(keys[1], num_cells), visits
    state, (loss, ess) = jax.lax.scan(step, state, jax.random.split(keys[2], steps))
    print(f"loss {loss[-100:].mean():.2e}, effective sample size {ess[-100:].mean():.0%}")
    return state[0], state[3].reshape(SHAPE)


def reference(times, size=512):
    """The solution by Fourier collocation in x and SciPy's implicit solver BDF in time.

    Args:
        times: [n], ascending.
        size: number of places.

    Returns:
        Places [size] and the solution [n, size].
    """
    x = -1 + 2 * np.arange(size) / size
    wave = np.pi * np.arange(size // 2 + 1)
    transformed = np.fft.rfft(np.eye(size), axis=0)
    diffusion = -1e-4 * np.fft.irfft(wave[:, None] ** 2 * transformed, axis=0)
    with np.errstate(invalid="ignore"):  # BDF subtracts rows that it has not set yet
        found = scipy.integrate.solve_ivp(
            lambda t, u: diffusion @ u + 5 * (u - u**3),
            (0, 1),
            x**2 * np.cos(np.pi * x),
            method="BDF",
            t_eval=times,
            jac=lambda t, u: diffusion + np.diag(5 - 15 * u**2),
            rtol=1e-7,
            atol=1e-9,
        )
    return x, found.y.T


TIMES = np.linspace(0, 1, 101)  # of the error and the picture
PLACES, TRUTH = reference(TIMES)


def on_grid(function):
    """Computes a function of points at the points of the grid, [101, 512]."""
    grid = jnp.meshgrid(jnp.asarray(TIMES), jnp.asarray(PLACES), indexing="ij")
    return jax.lax.map(function, jnp.stack(grid, axis=-1))


def error(params):
    """Relative L2 error of the solution. [] float."""
    found = on_grid(lambda points: u(params, *points.T))
    return jnp.linalg.norm(found - TRUTH) / np.linalg.norm(TRUTH)


def draw_picture(params, visits, path):
    """Draws the solution, the residual and how often each cell was drawn."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = {
        "solution u": on_grid(lambda points: u(params, *points.T)),
        "residual, log10": on_grid(lambda points: jnp.log10(jnp.abs(residual(params, points)))),
        "visits of a cell": visits,
    }
    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained", sharey=True)
    for ax, (title, values) in zip(axes, shown.items(), strict=True):
        image = ax.imshow(values.T, origin="lower", extent=(0, 1, -1, 1), aspect="auto")
        figure.colorbar(image, ax=ax)
        ax.set(title=title, xlabel="t")
    axes[0].set(ylabel="x")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main():
    """Trains, and prints the error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", default="build/allen_cahn.png")
    parser.add_argument("--method", default="importance", choices=samplers())
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--k", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    params, visits = train(samplers(args.k)[args.method], args.steps, args.seed)
    print(f"{args.method}: relative L2 error {error(params):.4f} after {args.steps} steps")
    draw_picture(params, visits, args.picture)
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
