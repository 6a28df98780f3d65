"""Burgers' equation by DeepXDE and by isjax, with the same network, points a step and steps.

    pip install '.[peers]'
    python benchmarks/peers_physics.py --batch 2048 --steps 4000 --rounds 5

The problem is that of `examples/burgers.py`; DeepXDE has the same network, units of t and x, and
conditions by its feature and output transforms, and runs on JAX. It trains on its whole set at
each step, so its set has as many points as isjax's batch:

- `deepxde fixed`: a fixed set;
- `deepxde resample 100`: a new set every 100 steps, by its `PDEPointResampler`; 100 is its default;
- `deepxde rad`: a new set every 500 steps by RAD, from 16,384 points, as the authors of RAD do with
  DeepXDE (github.com/lu-group/pinn-sampling);
- `uniform`, `rad`, `remembered loss k=0.5` and others: isjax, see science_physics.py. `rad` is the
  same rule with the same numbers, and `remembered loss k=0.5` is `recipes.default(smoothing=1)`.

All start from the same weights for a seed, and train by Adam with cosine decay. The learning rate
is tuned for `uniform` with a seed of its own. Points are drawn uniformly, never by DeepXDE's
Hammersley sequence. Residuals that RAD needs of its candidates, 33 a step, come on top.

With `--rounds`, CPU seconds of 500 steps are measured apart from the errors, methods taking turns,
without compilation. On JAX, `Model.predict(points, operator=residual)` compiles at each call;
`deepxde rad` here compiles that function once. The seconds of such a call are printed.
"""

import argparse
import contextlib
import functools
import io
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from science_physics import RAD_CANDIDATES, RAD_PERIOD, TUNING_SEED, Runs, kept_runs, step_costs

os.environ.setdefault("DDE_BACKEND", "jax")
import deepxde as dde

NU = 0.01 / np.pi
METHODS = [
    "uniform",
    "deepxde fixed",
    "deepxde resample 100",
    "deepxde resample 1",
    "deepxde rad",
    "rad",
    "remembered loss k=0.5",
    "remembered root k=1",
]


def residual(points, u):
    """By how much the equation fails at points (x, t) [n, 2], u being DeepXDE's output. [n, 1]."""
    u_x = dde.grad.jacobian(u, points, i=0, j=0)[0]
    u_t = dde.grad.jacobian(u, points, i=0, j=1)[0]
    u_xx = dde.grad.hessian(u, points, i=0, j=0)[0]
    return u_t + u[0] * u_x - NU * u_xx


def features(points):
    x, t = points.T
    return jnp.stack([2 * t - 1, 5 * x], axis=1)


def conditions(points, output):
    x, t = points[:, :1], points[:, 1:]
    return -jnp.sin(jnp.pi * x) + t * (1 - x**2) * output


class Peers(Runs):
    """Runs by isjax, and by DeepXDE for methods `deepxde ...`."""

    def __init__(self, batch, points, width):
        self.sizes = (2, width, width, width, 1)
        super().__init__("burgers", batch, points, rad_points=batch, sizes=self.sizes)

    @functools.cache  # noqa: B019
    def model(self, rate, steps):
        """Returns a model and its residual, compiled once for all of DeepXDE's methods."""
        geometry = dde.geometry.GeometryXTime(
            dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1)
        )
        data = dde.data.TimePDE(
            geometry, residual, [], num_domain=self.batch, train_distribution="pseudo"
        )
        network = dde.nn.FNN(self.sizes, "tanh", "Glorot normal")
        network.apply_feature_transform(features)
        network.apply_output_transform(conditions)
        model = dde.Model(data, network)
        model.compile(optax.adam(optax.cosine_decay_schedule(rate, steps)), verbose=0)

        @jax.jit
        def residual_of(params, points):
            u = functools.partial(network.apply, params)
            return residual(points, (u(points), u))[:, 0]

        return model, residual_of

    def train(self, method, seed, rate, steps, stop=None):
        if not method.startswith("deepxde"):
            return super().train(method, seed, rate, steps, stop)
        with contextlib.redirect_stdout(io.StringIO()):
            return self.train_deepxde(method.split()[1:], seed, rate, steps, stop or steps)

    def train_deepxde(self, way, seed, rate, steps, stop):
        (model, residual_of), rng = self.model(rate, steps), np.random.default_rng(seed)
        np.random.seed(seed)  # DeepXDE draws its points by it
        layers = self.init(jax.random.split(jax.random.key(seed), 4)[0])
        model.net.params = {
            "params": {f"denses_{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(layers)}
        }
        model.params = [model.net.params, []]
        model.opt_state = model.opt.init(model.params)
        model.data.anchors = None
        model.data.resample_train_points()
        train = functools.partial(model.train, display_every=2**30, verbose=0)
        if way[0] == "rad":
            for start in range(0, stop, RAD_PERIOD):
                train(iterations=min(RAD_PERIOD, stop - start))
                if stop - start >= RAD_PERIOD:
                    candidates = model.data.geom.random_points(RAD_CANDIDATES)
                    size = np.abs(np.float64(residual_of(model.net.params, candidates)))
                    probs = size / size.mean() + 1
                    probs /= probs.sum()
                    chosen = rng.choice(len(probs), self.batch, replace=False, p=probs)
                    model.data.replace_with_anchors(candidates[chosen])
        elif way[0] == "resample":
            train(iterations=stop, callbacks=[dde.callbacks.PDEPointResampler(int(way[1]))])
        else:
            train(iterations=stop)
        return weights(model)


def weights(model):
    """The weights of DeepXDE's network, as those of examples/burgers.py."""
    layers = model.net.params["params"]
    return [(layers[f"denses_{i}"]["kernel"], layers[f"denses_{i}"]["bias"]) for i in range(4)]


def predict_cost(runs, calls=3):
    """CPU seconds of `Model.predict` of the residuals of RAD's candidates, compilation included."""
    model, _ = runs.model(1e-3, 10_000)
    points = model.data.geom.random_points(RAD_CANDIDATES)
    start = time.process_time()
    for _ in range(calls):
        model.predict(points, operator=residual)
    return (time.process_time() - start) / calls


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--batch", type=int, default=256, help="points a step")
    parser.add_argument("--points", type=int, default=2**16, help="that are remembered")
    parser.add_argument("--width", type=int, default=32, help="of the three hidden layers")
    parser.add_argument("--steps", type=int, default=15000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3])
    parser.add_argument("--rounds", type=int, default=0, help="of the measurement of time")
    parser.add_argument("--out", default="runs/peers_physics.jsonl", type=pathlib.Path)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs = Peers(args.batch, args.points, args.width)
    run = kept_runs(runs, f"burgers b={args.batch} width={args.width}", args.out)
    tuned = {rate: run("uniform", TUNING_SEED, rate, args.steps) for rate in args.rates}
    rate = min(tuned, key=tuned.get)
    print(f"{args.steps} steps of {args.batch} points, width {args.width}, {args.seeds} seeds")
    print(f"jax {jax.__version__}, DeepXDE {dde.__version__}")
    print(f"learning rate {rate}, by uniform's error with another seed: {tuned}", flush=True)
    errors = {method: [] for method in args.methods}
    for seed in range(args.seeds):
        for method, of_seeds in errors.items():
            of_seeds.append(run(method, seed, rate, args.steps))
    costs = step_costs(runs, args.methods, args.rounds, RAD_PERIOD) if args.rounds else {}
    heads = ["method", "error", "by seed", *(["ms a step", "cost of a step"] if costs else [])]
    print(f"\n| {' | '.join(heads)} |\n| --- |{' --: |' * (len(heads) - 1)}")
    for method, of_seeds in errors.items():
        cells = [f"{np.mean(of_seeds):.4f} ± {np.std(of_seeds, ddof=min(1, args.seeds - 1)):.4f}"]
        cells.append(", ".join(f"{error:.4f}" for error in of_seeds))
        if costs:
            ratio = np.median(np.divide(costs[method], costs["uniform"]))
            cells += [f"{1000 * np.median(costs[method]):.2f}", f"{ratio:.2f}"]
        print(f"| {method} | {' | '.join(cells)} |")
    if costs:
        print(f"\nCPU seconds of a call of Model.predict: {predict_cost(runs):.2f}")


if __name__ == "__main__":
    main()
