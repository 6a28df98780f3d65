"""Steps by which draws reach uniform's error: image fields, diffusion and least squares.

    python benchmarks/science_fields.py image_field --lines FILE [--set image=coffee ...]
      [--variants uniform reshuffled loss,k=1 root,k=0 ...] [--budgets 0.4 0.55 0.75 1]
      [--rates 1e-3 3e-3 1e-2] [--steps 1500] [--seeds 3]
    python benchmarks/science_fields.py diffusion --lines FILE [--set predict=image ...] ...
    python benchmarks/science_fields.py least_squares --lines FILE [--set spread=2.0 ...] ...
    python benchmarks/science_fields.py cost [--rounds 7]

The functions are those of examples/image_field.py, diffusion.py and least_squares.py. A variant is
a method of the example, followed by options of its sampler. In `image_field`, `tiles` remembers the
mean loss of each tile of `side` x `side` pixels, draws tiles by its root, and a pixel within one
uniformly.

1. Of several `--rates`, takes the one with which uniform draws end best, with a seed that is used
   for nothing else. In `least_squares` each variant takes its own best rate at each budget, by the
   worst of three such seeds.
2. Trains each variant with each seed, for each budget (share of the steps). The learning rate
   decays within each budget.
3. Prints a table: the final error of each variant at each budget, mean and standard deviation over
   seeds. Then the share of the steps at which it reaches uniform's final error, by interpolation
   between budgets (means of log errors against log budget), and in brackets the lowest and the
   highest of single seeds, each against uniform draws with the same seed. "<=" marks an error
   reached at the smallest budget, inf one never reached.

FILE keeps a JSON line for each run, which is not repeated. `cost` prints the seconds of a step over
those of a uniform step, median and quartiles of rounds in which each variant takes a turn.
"""

import argparse
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from common import measure, quartiles, settings
from iso_accuracy import reached

import isjax
import isjax.data

sys.path.append(str(pathlib.Path(__file__).parent.parent / "examples"))
import diffusion
import image_field
import least_squares

TUNING_SEEDS = (1000, 1001, 1002)
STEPS = {"image_field": 1500, "diffusion": 1500, "least_squares": 2000}
RATES = {"image_field": [5e-3], "diffusion": [2e-3], "least_squares": list(4.0 ** np.arange(9))}
BY_LOSS = [f"{score},k={k}" for score in ("loss", "root") for k in (1, 0.5, 0)]
VARIANTS = {
    "image_field": ["uniform", "reshuffled", *BY_LOSS],
    "diffusion": ["uniform", "stratified", "static", "second_moment", "loss", "root"],
    "least_squares": ["uniform", "reshuffled", "norm", "normalised", *BY_LOSS],
}


def parse(variant):
    """Returns the method and the options of its sampler."""
    method, *pairs = variant.split(",")
    return method, settings(pairs)


def by_tile(width, side=8, decay=0.9, k=0.5, smoothing=0.25, initial_loss=0.1):
    """Draws pixels by the root of their tile's mean loss, a moving average over its visits."""
    across = width // side
    mean_loss = isjax.scorers.loss_change(change=0, decay=decay)
    tiles = isjax.tree_sampler(
        isjax.scorers.power(mean_loss, 0.5),
        batch_size=256,
        k=k,
        smoothing=smoothing,
        initial_loss=initial_loss**0.5,
    )

    def init(key, num_pixels):
        return tiles.init(key, num_pixels // side**2)

    def sample(key, state, ids=None):
        draw, state = tiles.sample(key, state)
        row, column = jnp.divmod(draw.ids, across)
        down, right = jax.random.randint(key, (2, len(draw.ids)), 0, side)
        pixel = (side * row + down) * width + side * column + right
        return draw._replace(ids=pixel), state  # the weight of a tile is that of each pixel in it

    def update(state, draw, losses):
        row, column = jnp.divmod(draw.ids, width)
        return tiles.update(state, draw._replace(ids=row // side * across + column // side), losses)

    return tiles._replace(init=init, sample=sample, update=update)


def run_image_field(
    variant, steps, rate, seeds, image="camera", size=96, width=128, network="fourier"
):
    """Yields the errors of each seed."""
    method, options = parse(variant)
    picture = isjax.data.bundled_image(image, size)
    train = jax.tree.map(jnp.asarray, image_field.pixels(picture))
    variance = float(picture.var())
    if method == "tiles":
        sampler = by_tile(picture.shape[1], initial_loss=variance, **options)
    else:
        sampler = image_field.make_sampler(method, 256, initial_loss=variance, **options)
    start, step = image_field.make_run(train, network, sampler, steps, rate, width)
    for seed in seeds:
        state = start(seed)
        for _ in range(steps):
            state, _ = step(state, train)
        found = image_field.render(network, state[1], picture.shape)
        decibels = image_field.psnr(found, picture)
        yield {
            "error": 10 ** (-decibels / 10),
            "psnr": decibels,
            "largest": image_field.largest_error(found, picture),
        }


def run_diffusion(variant, steps, rate, seeds, **options):
    """Yields the loss of each seed, and its terms at the first and the last timestep."""
    method, of_sampler = parse(variant)
    data = options.pop("data", "digits")
    (x, levels), num_timesteps = diffusion.load(data), options.pop("num_timesteps", 1000)
    snr = diffusion.signal_to_noise(options.pop("schedule", "cosine"), num_timesteps)
    loss_fn, weight = diffusion.make_losses(snr, levels, **options)
    sampler, x = diffusion.make_sampler(method, 128, weight, **of_sampler), jnp.asarray(x)
    start, step = diffusion.make_run(x, loss_fn, sampler, num_timesteps, steps, rate)
    for seed in seeds:
        state = start(seed)
        for _ in range(steps):
            state, _ = step(state, x)
        losses = diffusion.mean_losses(state[1], loss_fn, x, num_timesteps)
        parts = losses / num_timesteps
        yield {"error": losses.mean(), "first": parts[0], "last": parts[-1]}


@functools.cache
def fits(variant, steps, spread, noise):
    """Returns `fit(rates, seeds, decays) -> distances` for all triples of them."""
    method, options = parse(variant)
    train = least_squares.problem(spread=spread, noise=noise)
    fit = least_squares.make_fit(train, method, steps, **options)
    of_decays = jax.vmap(lambda rate, seed, decay: fit(rate, seed, decay)[-1], (None, None, 0))
    of_seeds = jax.vmap(of_decays, (None, 0, None))
    return jax.jit(jax.vmap(of_seeds, (0, None, None)))


def run_least_squares(args, variant, spread=1.5, noise=1.0):
    """Yields lines: the distance at each budget and seed, by uniform's rate and the best one.

    Rates are multiples of the largest that is safe for uniform draws.
    """
    train = least_squares.problem(spread=spread, noise=noise)
    norms = np.linalg.norm(train["a"], axis=1)
    safe = least_squares.stable_rate(train, "normalised" if variant == "normalised" else "uniform")
    rates = np.array(args.rates) * safe
    seeds = np.array([*TUNING_SEEDS, *range(args.seeds)])
    decays = np.array(args.budgets) * args.steps
    fit = fits(variant, args.steps, spread, noise)
    found = np.asarray(fit(rates, seeds, decays), np.float64)
    found = np.where(np.isfinite(found), found, np.inf)
    for number, budget in enumerate(args.budgets):
        best = int(np.argmin(found[:, : len(TUNING_SEEDS), number].max(axis=1)))
        for seed in range(args.seeds):
            line = {
                "rate": args.rates[best],
                "error": float(found[best, seed + len(TUNING_SEEDS), number]),
            }
            yield {
                "budget": budget,
                "seed": seed,
                "norm_over_mean": norms.max() / norms.mean(),
            } | line


RUNS = {"image_field": run_image_field, "diffusion": run_diffusion}


def known(args):
    """Returns the lines of the file that are of this task and these settings."""
    path = pathlib.Path(args.lines)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if all(line[name] == args.of_all[name] for name in args.of_all)]


def keep(args, line):
    """Prints a line, and adds it to the file."""
    text = json.dumps({name: _rounded(value) for name, value in (args.of_all | line).items()})
    print(text, flush=True)
    with pathlib.Path(args.lines).open("a") as file:
        file.write(text + "\n")


def _rounded(value):
    return float(f"{float(value):.5g}") if isinstance(value, float | np.floating) else value


def tuned(args):
    """Returns the rate with which uniform draws end best."""
    if len(args.rates) == 1:
        return args.rates[0]
    run, errors = RUNS[args.task], {}
    for rate in args.rates:
        (line,) = run("uniform", args.steps, rate, TUNING_SEEDS[:1], **args.options)
        errors[rate] = line["error"]
        print(f"uniform, rate {rate}: error {line['error']:.5g}", flush=True)
    return min(errors, key=errors.get)


def train_all(args):
    """Trains what the file does not hold yet."""
    rate = None if args.task == "least_squares" else tuned(args)
    done = {(line["variant"], line["budget"], line["seed"]) for line in known(args)}
    for variant in args.variants:
        if args.task == "least_squares":
            if (variant, args.budgets[-1], 0) not in done:
                for line in run_least_squares(args, variant, **args.options):
                    keep(args, {"variant": variant} | line)
            continue
        for budget in args.budgets:
            seeds = [seed for seed in range(args.seeds) if (variant, budget, seed) not in done]
            steps = round(budget * args.steps)
            lines = RUNS[args.task](variant, steps, rate, seeds, **args.options) if seeds else ()
            for seed, line in zip(seeds, lines, strict=False):
                head = {"variant": variant, "budget": budget, "seed": seed, "rate": rate}
                keep(args, head | line)


def report(args):
    """Prints the table of all lines that the file holds of this task and these settings."""
    lines = known(args)
    errors, rates = {}, {}
    for line in lines:
        of_budget = errors.setdefault(line["variant"], {}).setdefault(line["budget"], {})
        of_budget[line["seed"]] = line["error"]
        rates[line["variant"]] = line["rate"]
    uniform = {seed: -np.log(error) for seed, error in errors["uniform"][1.0].items()}
    print(f"\n{args.of_all}, {len(uniform)} seeds of uniform draws")
    for variant, by_budget in errors.items():
        shown = []
        for budget in sorted(by_budget):
            values = np.array(list(by_budget[budget].values()))
            spread = values.std(ddof=1) if len(values) > 1 else np.nan
            shown.append(f"{budget:g}: {values.mean():.4g} ± {spread:.2g}")
            if args.task == "image_field":
                decibels = -10 * np.log10(values)
                spread = decibels.std(ddof=1) if len(values) > 1 else np.nan
                shown[-1] = f"{budget:g}: {decibels.mean():.2f} ± {spread:.2f} dB"
        budgets = np.array(sorted(by_budget))
        seeds = sorted(set(uniform).intersection(*(by_budget[budget] for budget in budgets)))
        curves = -np.log([[by_budget[budget][seed] for budget in budgets] for seed in seeds])
        targets = [uniform[seed] for seed in seeds]
        share = reached(budgets, curves.mean(axis=0), np.mean(targets))
        shares = [reached(budgets, *pair) for pair in zip(curves, targets, strict=True)]
        sign = "<= " if share == budgets[0] else ""
        ratio = f"{sign}{share:.3f} [{min(shares):.3f}, {max(shares):.3f}]"
        print(f"{variant} | {' | '.join(shown)} | {ratio} | rate {rates[variant]:g}")


def cost(args):
    """Prints the seconds of a step over those of a uniform step."""
    picture = isjax.data.bundled_image("camera", 128)
    train = jax.tree.map(jnp.asarray, image_field.pixels(picture))
    steps = {}
    for network in ("fourier", "siren"):
        for method in ("uniform", "reshuffled", "loss", "root"):
            sampler = image_field.make_sampler(method, 256)
            start, step = image_field.make_run(train, network, sampler, 1000, 1e-3)
            steps[network, method] = functools.partial(_with, step, train), start(0)
    x, levels = diffusion.load()
    x = jnp.asarray(x)
    loss_fn, weight = diffusion.make_losses(diffusion.signal_to_noise("cosine", 1000), levels)
    for method in ("uniform", "static", "second_moment"):
        sampler = diffusion.make_sampler(method, 128, weight)
        start, step = diffusion.make_run(x, loss_fn, sampler, 1000, 1000, 1e-3)
        steps["diffusion", method] = functools.partial(_with, step, x), start(0)
    times = measure(steps, (), args.rounds, 1.0)
    for task, method in steps:
        middle, low, high = quartiles(times[task, method] / times[task, "uniform"])
        milliseconds = 1000 * np.median(times[task, method])
        print(f"{task}, {method}: {middle:.2f} ({low:.2f} to {high:.2f}), {milliseconds:.2f} ms")


def _with(step, data, state):
    return step(state, data)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=[*STEPS, "cost"])
    parser.add_argument("--lines", default="science_fields.jsonl")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE options of the task")
    parser.add_argument("--variants", nargs="+")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0])
    parser.add_argument("--rates", type=float, nargs="+")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.task == "cost":
        cost(args)
        return
    args.steps = args.steps or STEPS[args.task]
    args.rates = args.rates or RATES[args.task]
    args.variants = args.variants or VARIANTS[args.task]
    args.budgets = sorted(args.budgets)
    args.options = settings(args.set)
    args.of_all = {"task": args.task, "steps": args.steps, "options": args.options}
    train_all(args)
    report(args)


if __name__ == "__main__":
    main()
