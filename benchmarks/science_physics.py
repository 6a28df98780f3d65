"""Relative L2 errors of physics-informed networks, by how their points are chosen.

    python benchmarks/science_physics.py burgers --rates 1e-3 3e-3 1e-2 --out FILE

Problems, networks, losses, references and errors are those of `examples/`. A method is a way to
have points, a score, and the exponent k of the weights:

- `uniform`: fresh points, uniformly drawn;
- `remembered`: a fixed set of 16,384 points, drawn by the loss last seen of each (`tree_sampler`);
- `cells`: the same of 128 x 128 cells, with a new point in the cell at each visit;
- `pool`: fresh pools of 4 b points, scored by the residual (`importance_sampler`);
- `rad`: 2,048 points, every 500 steps drawn anew from 16,384 by RAD (arXiv 2207.10289);
- `r3`: the batch retains points above the mean residual, R3 (arXiv 2207.02338).

The score is the loss, or its root, the norm of the residual. `remembered loss k=0.5` is a method.
Batches of 128, Adam, cosine decay to zero within each budget, one initial network a seed.

1. Tunes the learning rate for uniform draws at the whole budget, with a seed of its own.
2. Trains each method for each of `--budgets` shares of the steps.
3. With `--rounds`, measures CPU seconds of a step over uniform's, methods taking turns.

FILE keeps a JSON line for each run; runs found there are not repeated. `--picture` draws the
errors, the residual of uniform's network, and the points that the first method draws for it. Prints
a table: the error at each budget, mean and standard deviation over seeds, and the share of
uniform's steps and seconds at which the mean error reaches uniform's final one (log-log between
budgets).
"""

import argparse
import functools
import importlib
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import isjax
from isjax import resampling, scorers, transforms
from isjax.data import domain
from isjax.distributions import normalize
from isjax.recipes import collocation
from isjax.reporting.plotting import COLOURS, GREY, declutter, new_figure

sys.path.append(str(pathlib.Path(__file__).parent.parent / "examples"))

BATCH, POINTS, CELLS, TUNING_SEED = 128, 2**14, (128, 128), 1000
RAD_POINTS, RAD_CANDIDATES, RAD_PERIOD = 2048, 16384, 500
BOXES = {
    "burgers": ([0, -1], [1, 1]),
    "allen_cahn": ([0, -1], [1, 1]),
    "poisson_peak": ([-1, -1], [1, 1]),
    "convection": ([0, 0], [1, 2 * np.pi]),
}
SMOOTHING = {"remembered": 1.0, "cells": 1.0, "pool": 0.25}
DEFAULT = ["uniform", "rad", "r3"] + [
    f"{ways} {score} k={k}"
    for ways in ("remembered", "pool")
    for score in ("loss", "root")
    for k in (1, 0.5, 0)
]


class Runs:
    """The runs of a problem: one compiled program for each way to have points."""

    def __init__(self, name, batch=BATCH, points=POINTS, rad_points=RAD_POINTS, **network):
        self.problem = importlib.import_module(name)
        self.init = functools.partial(self.problem.init, **network)
        self.batch, self.points, self.rad_points = batch, points, rad_points
        self.points_of = domain.box(*BOXES[name])
        self.point_in = domain.cells(*BOXES[name], CELLS)
        self.error = jax.jit(self.problem.error)
        self.programs = {}

    def sampler(self, way, k, exponent, smoothing):
        """Returns the sampler, and the number of examples it numbers."""
        if way in ("uniform", "rad", "r3"):
            size = self.rad_points if way == "rad" else self.batch
            return isjax.recipes.uniform(batch_size=self.batch), size
        if way == "pool":
            shape = isjax.chain(transforms.power(exponent), isjax.smooth_by_mean(smoothing))
            by_loss = scorers.loss(self.problem.loss_fn)
            sampler = isjax.importance_sampler(by_loss, shape, batch_size=self.batch, k=k)
            return sampler, 4 * self.batch
        by_loss = scorers.power(scorers.last_loss(), exponent)
        sampler = isjax.tree_sampler(by_loss, batch_size=self.batch, k=k, smoothing=smoothing)
        return sampler, self.points if way == "remembered" else CELLS[0] * CELLS[1]

    def renewed(self, way, key, step, params, pool, points, losses):
        """Returns the points that the next step draws from."""
        if way in ("remembered", "cells"):
            return pool
        if way == "r3":
            fresh = self.points_of(key, self.batch)
            return collocation.retain_resample(points, jnp.sqrt(losses), fresh)
        if way == "rad":
            return jax.lax.cond(
                (step + 1) % RAD_PERIOD == 0, self.by_rad, lambda *_: pool, key, params
            )
        return self.points_of(key, pool.shape[0])

    def by_rad(self, key, params):
        keys = jax.random.split(key)
        candidates = self.points_of(keys[0], RAD_CANDIDATES)
        residuals = self.problem.residual(params, candidates)
        return collocation.rad(keys[1], candidates, residuals, self.rad_points)

    def program(self, way):
        """Returns `(seed, k, exponent, smoothing, rate, steps, stop) -> params`, compiled once."""
        value_and_grad = isjax.weighted_value_and_grad(self.problem.loss_fn)

        def train(seed, k, exponent, smoothing, rate, steps, stop):
            keys = jax.random.split(jax.random.key(seed), 4)
            sampler, size = self.sampler(way, k, exponent, smoothing)
            decay = lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))  # noqa: E731
            tx = optax.adam(decay)

            def step(i, state):
                params, opt_state, is_state, pool = state
                draw_key, point_key, pool_key = jax.random.split(jax.random.fold_in(keys[3], i), 3)
                draw, is_state = sampler.sample(draw_key, is_state, batch=pool, params=params)
                gather = self.point_in(point_key, draw.ids) if way == "cells" else pool[draw.ids]
                (_, losses), grads = value_and_grad(params, gather, draw.weights)
                updates, opt_state = tx.update(grads, opt_state, params)
                params = optax.apply_updates(params, updates)
                is_state = sampler.update(is_state, draw, losses)
                pool = self.renewed(way, pool_key, i, params, pool, gather, losses)
                return params, opt_state, is_state, pool

            params = self.init(keys[0])
            pool = self.points_of(keys[1], size)
            state = params, tx.init(params), sampler.init(keys[2], size), pool
            return jax.lax.fori_loop(0, stop, step, state)[0]

        if way not in self.programs:
            self.programs[way] = jax.jit(train)
        return self.programs[way]

    def train(self, method, seed, rate, steps, stop=None):
        """Trains by a method such as `pool root k=1`, or its first `stop` steps alone."""
        way, score, k = [*method.split(), "loss", "k=1"][:3] if " " in method else (method, "", "")
        program = self.program(way)
        exponent, k = {"root": 0.5}.get(score, 1.0), float(k.removeprefix("k=") or 1)
        numbers = map(jnp.float32, (k, exponent, SMOOTHING.get(way, 0.0), rate))
        return jax.block_until_ready(program(seed, *numbers, steps, stop or steps))


def kept_runs(runs, name, path):
    """Returns `run(method, seed, rate, steps) -> error`, which keeps finished runs in a file."""
    path.touch()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("problem", "method", "seed", "rate", "steps")
    found = {tuple(row[key] for key in keys): row["error"] for row in rows}

    def run(method, seed, rate, steps):
        case = (name, method, seed, rate, steps)
        if case not in found:
            start = time.perf_counter()
            error = float(runs.error(runs.train(method, seed, rate, steps)))
            found[case] = error
            seconds = round(time.perf_counter() - start, 1)
            row = dict(zip(keys, case, strict=True)) | {"error": error, "seconds": seconds}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        return found[case]

    return run


def step_costs(runs, methods, rounds, steps=300):
    """CPU seconds of a step: {method: [rounds]}; methods take turns."""
    seconds = {method: [] for method in ["uniform", *methods]}
    for method in seconds:
        runs.train(method, 0, 1e-3, 10_000, steps)  # compiled
    for _ in range(rounds):
        for method, values in seconds.items():
            start = time.process_time()
            runs.train(method, 0, 1e-3, 10_000, steps)
            values.append((time.process_time() - start) / steps)
    return seconds


def operations(problem):
    """Operations, by XLA's count, of the residual and of the loss's gradient."""
    params, points = problem.init(jax.random.key(0)), jnp.full((BATCH, 2), 0.3)

    def count(function):
        return jax.jit(function).lower(params, points).cost_analysis()["flops"]

    forward = count(lambda params, points: problem.u(params, *points.T))
    loss = count(problem.loss_fn)
    grad = count(jax.value_and_grad(lambda params, x: jnp.mean(problem.loss_fn(params, x))))
    return f"loss {loss / forward:.1f} of the network, gradient {grad / loss:.1f} of the loss"


def share_to(target, budgets, errors):
    """The share of the steps at which the error reaches a target, log-log between budgets."""
    logs, goal = np.log(errors), np.log(target)
    if logs[0] <= goal:
        return budgets[0], "<= "
    for i in range(1, len(budgets)):
        if logs[i] <= goal:
            part = (logs[i - 1] - goal) / (logs[i - 1] - logs[i])
            low, high = np.log(budgets[i - 1]), np.log(budgets[i])
            return float(np.exp(low + part * (high - low))), ""
    return float("inf"), ""


def draw_picture(runs, name, budgets, errors, rate, path):
    """Draws the errors, the residual after uniform draws, and where a method then draws points."""
    uniform, method = list(errors)[:2]
    figure = new_figure(11, 3.2)
    curves, residual, places = figure.subplots(1, 3)
    for color, (label, of_seeds) in zip([GREY, *COLOURS], errors.items(), strict=False):
        curves.loglog(budgets, of_seeds.T, ".", color=color, alpha=0.4)
        curves.loglog(budgets, of_seeds.mean(axis=0), color=color, label=label)
    curves.set(xlabel="steps", ylabel="relative L2 error", title=name.replace("_", " "))
    curves.set_xticks(budgets, [f"{steps:,}" for steps in budgets])
    curves.minorticks_off()
    curves.legend(frameon=False, fontsize=7)
    declutter(curves)
    low, high = BOXES[name]
    params = runs.train(uniform, 0, rate, budgets[-1])
    sides = [jnp.linspace(*ends, 256) for ends in zip(low, high, strict=True)]
    grid = jnp.stack(jnp.meshgrid(*sides, indexing="ij"), axis=-1)
    size = jnp.abs(jax.lax.map(lambda points: runs.problem.residual(params, points), grid))
    image = residual.pcolormesh(*sides, jnp.log10(size).T, rasterized=True)
    figure.colorbar(image, ax=residual)
    residual.set(title="residual after uniform draws, log10")
    pool = runs.points_of(jax.random.key(0), 2**16)
    scores = runs.problem.loss_fn(params, pool) ** (0.5 if "root" in method else 1)
    probs = normalize(scores + SMOOTHING[method.split()[0]] * jnp.mean(scores))
    index, _ = resampling.systematic(jax.random.key(1), probs, 4000)
    places.plot(*pool[index].T, ".", markersize=1, color=COLOURS[0])
    places.set(title=f"where {method} draws", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    for ax in (residual, places):
        ax.set(xlabel="x" if name == "poisson_peak" else "t")
        ax.set(ylabel="y" if name == "poisson_peak" else "x")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=BOXES)
    parser.add_argument("--methods", nargs="+", default=DEFAULT)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--rounds", type=int, default=0, help="of the measurement of time")
    parser.add_argument("--picture", help="a file to draw into")
    parser.add_argument("--out", default="runs/science_physics.jsonl", type=pathlib.Path)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs = Runs(args.problem)
    run = kept_runs(runs, args.problem, args.out)
    tuned = {rate: run("uniform", TUNING_SEED, rate, args.steps) for rate in args.rates}
    rate = min(tuned, key=tuned.get)
    print(f"{args.problem}, {args.steps} steps, jax {jax.__version__}, {args.seeds} seeds")
    print(f"learning rate {rate}, by uniform's error with another seed: {tuned}", flush=True)
    print(f"operations: {operations(runs.problem)}", flush=True)
    methods = list(dict.fromkeys(["uniform", *args.methods]))
    budgets = [round(share * args.steps) for share in sorted(args.budgets)]
    errors = {method: np.zeros((args.seeds, len(budgets))) for method in methods}
    for seed in range(args.seeds):
        for method in methods:
            for i, steps in enumerate(budgets):
                errors[method][seed, i] = run(method, seed, rate, steps)
    costs = step_costs(runs, methods, args.rounds) if args.rounds else {}
    target = errors["uniform"][:, -1].mean()
    heads = " | ".join(f"error at {steps:,}" for steps in budgets)
    print(f"\n| method | {heads} | steps to uniform's | cost of a step | seconds to uniform's |")
    print("| --- |" + " --: |" * (len(budgets) + 3))
    for method, of_seeds in errors.items():
        mean, deviation = of_seeds.mean(axis=0), of_seeds.std(axis=0, ddof=min(1, args.seeds - 1))
        cells = [f"{m:.4f} ± {s:.4f}" for m, s in zip(mean, deviation, strict=True)]
        share, least = share_to(target, [steps / budgets[-1] for steps in budgets], mean)
        cost = np.median(np.divide(costs[method], costs["uniform"])) if costs else float("nan")
        cells += [f"{least}{share:.2f}", f"{cost:.2f}", f"{least}{share * cost:.2f}"]
        print(f"| {method} | {' | '.join(cells)} |")
    if args.picture:
        draw_picture(runs, args.problem, budgets, errors, rate, args.picture)


if __name__ == "__main__":
    main()
