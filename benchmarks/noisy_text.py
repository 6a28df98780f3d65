"""Fine-tuning a language model on text of which a share is noise: which tokens to train on.

    python benchmarks/noisy_text.py tinyshakespeare.txt --seeds 0 1 2 --workdir runs/noisy_text
    python benchmarks/noisy_text.py tinyshakespeare.txt --step-cost

A character transformer (2 layers of 64, some 0.1 million parameters) is trained on clean text, the
first tenth of the file. It goes on with the fifth from 0.4 to 0.6, in which a share of the
characters is replaced by random ones. Reported is the loss on clean text at the end of the file,
before and after. The reference of the methods by excess loss is the same network trained longer, on
the clean text from 0.1 to 0.4, with other initial parameters. Its cost is counted: the training,
and a forward pass of the fifth. `uniform, longer` takes uniform batches for as many steps as cost
the same in all.

lines.jsonl in --workdir has a line for each run; the same command goes on where it was interrupted.
All but `uniform, longer` took 23 minutes on a core that other work shared. `--step-cost` measures
ratios of steps instead: of isjax's step to one written by hand, and of a step that chooses tokens
to one that does not.
"""

import argparse
import functools
import itertools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import measure, quartiles

from isjax import data, networks, recipes, select_tokens, tasks
from isjax.training import init_train_state, make_eval_step, make_train_step

LENGTH, BATCH, POOL, KEEP = 32, 16, 64, 0.6
STEPS = {"pretrain": 500, "reference": 1000, "finetune": 250}
RATE = {"pretrain": 3e-3, "reference": 3e-3, "finetune": 1e-3}
PARTS = {  # shares of the file
    "pretrain": (0.0, 0.1),
    "reference": (0.1, 0.4),
    "finetune": (0.4, 0.6),
    "test": (0.95, 1.0),
}
# By name: how tokens are chosen, and the recipe that chooses the windows.
METHODS = {
    "uniform": (None, "uniform"),
    "tokens by excess loss, top": ({}, "uniform"),
    "tokens by raw loss, top": ({"raw": True}, "uniform"),
    "tokens by excess loss, drawn": ({"drawn": True}, "uniform"),
    "sequences by excess loss": (None, "reducible_loss"),
    "reshuffled": (None, "reshuffled"),
    "uniform, longer": (None, "uniform"),
}
NETWORK = {"features": 64, "layers": 2, "heads": 4}


def windows(tokens):
    number = (len(tokens) - 1) // LENGTH
    x, y = tokens[: number * LENGTH], tokens[1 : number * LENGTH + 1]
    return {"x": x.reshape(number, LENGTH), "y": y.reshape(number, LENGTH)}


def read(path):
    """Tokens of each part, and the vocabulary."""
    text = pathlib.Path(path).read_text(encoding="utf-8")
    vocabulary = sorted(set(text))
    index = {character: number for number, character in enumerate(vocabulary)}
    tokens = np.array([index[character] for character in text], np.int32)
    cut = {name: slice(*(round(len(tokens) * x) for x in PARTS[name])) for name in PARTS}
    return {name: tokens[where] for name, where in cut.items()}, vocabulary


def with_noise(tokens, share, size, seed):
    """Exactly a share of the characters is replaced, each by any with equal probability."""
    rng = np.random.default_rng(seed)
    tokens = tokens.copy()
    where = rng.permutation(len(tokens))[: round(share * len(tokens))]
    tokens[where] = rng.integers(0, size, len(where))
    return tokens


def make_task(part, vocabulary, choice=None):
    network = networks.Transformer(len(vocabulary), **NETWORK)
    dataset = data.from_arrays(part, part, vocabulary=vocabulary)
    return tasks.language(dataset, network, select=None if choice is None else chooser(**choice))


def chooser(raw=False, drawn=False):
    def select(losses, batch, key):
        reference = 0.0 if raw else batch["reference"]
        return select_tokens(losses, reference, KEEP, key=key if drawn else None)

    return select


def make_sampler(recipe, task):
    if recipe != "reducible_loss":
        return getattr(recipes, recipe)(batch_size=BATCH), None
    sampler = recipes.reducible_loss(
        batch_size=BATCH,
        loss_fn=lambda params, batch: task.score_fn(params, None, batch),
        reference=lambda batch: batch["reference"].mean(axis=1, dtype=jnp.float32),
    )
    return sampler, POOL


@functools.cache
def optimizer(phase, steps):
    rate = optax.warmup_cosine_decay_schedule(0, RATE[phase], steps // 20, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))


class Trainer:
    """Trains by one method; compiled once, for all seeds and shares of noise."""

    def __init__(self, phase, task, recipe, steps):
        self.sampler, pool_size = make_sampler(recipe, task)
        self.tx, self.steps = optimizer(phase, steps), steps
        self.step = make_train_step(task.loss_fn, self.tx, self.sampler, pool_size=pool_size)

    def __call__(self, key, params, part):
        part = jax.device_put(part)
        state = init_train_state(key, params, self.tx, self.sampler, len(part["x"]))
        skipped = []
        for _ in range(self.steps):
            state, metrics = self.step(state, part)
            skipped.append(metrics["skipped"])
        self.skipped = int(np.sum(skipped))
        return state


class Experiment:
    """Models and data, each made once."""

    def __init__(self, path):
        self.texts, self.vocabulary = read(path)
        self.parts = {name: windows(tokens) for name, tokens in self.texts.items()}
        self.plain = make_task(self.parts["pretrain"], self.vocabulary)
        self.init = jax.jit(self.plain.init)
        self.evaluate = make_eval_step(self.plain.token_losses_fn)
        size = len(self.parts["finetune"]["x"])
        # In forward passes: a step takes three for each window, the reference's losses one.
        cost = STEPS["reference"] * 3 * BATCH + size
        self.longer = STEPS["finetune"] + round(cost / (3 * BATCH))

    def token_losses(self, state, part):
        part = {name: part[name] for name in ("x", "y")}
        cuts = [jax.tree.map(lambda x: x[i : i + 250], part) for i in range(0, len(part["x"]), 250)]  # noqa: B023
        return np.concatenate([np.asarray(self.evaluate(state, cut)) for cut in cuts])

    def test_loss(self, state):
        return float(self.token_losses(state, self.parts["test"]).mean())

    @functools.cache  # noqa: B019 (lives as long as the program)
    def trainer(self, phase, method="reshuffled"):
        choice, recipe = METHODS[method]
        part = {**self.parts["finetune"], "reference": np.zeros_like(self.parts["finetune"]["y"])}
        steps = self.longer if method.endswith("longer") else STEPS[phase]
        return Trainer(phase, make_task(part, self.vocabulary, choice), recipe, steps)

    @functools.cache  # noqa: B019 (lives as long as the program)
    def model(self, phase, seed):
        """State after training on clean text, and its test loss."""
        number = list(STEPS).index(phase)
        key = jax.random.fold_in(jax.random.key(seed), number)
        params, _ = self.init(key)
        state = self.trainer(phase)(jax.random.fold_in(key, 1), params, self.parts[phase])
        return state, self.test_loss(state)

    @functools.cache  # noqa: B019 (lives as long as the program)
    def noisy(self, noise, seed):
        """The part to go on with, and the token losses of the reference, as stored."""
        part = windows(with_noise(self.texts["finetune"], noise, len(self.vocabulary), seed))
        reference = self.token_losses(self.model("reference", seed)[0], part)
        return {**part, "reference": reference.astype(np.float16)}

    def run(self, noise, seed, method):
        """A line of results."""
        (start, before), (_, of_reference) = (
            self.model(phase, seed) for phase in ("pretrain", "reference")
        )
        key = jax.random.fold_in(jax.random.key(seed), 10)
        trainer = self.trainer("finetune", method)
        state = trainer(key, start.params, self.noisy(noise, seed))
        losses = {"before": before, "reference": of_reference, "after": self.test_loss(state)}
        steps = {"steps": trainer.steps, "skipped": trainer.skipped}
        return {"noise": noise, "seed": seed, "method": method, **losses, **steps}


def run_all(args):
    experiment, path = Experiment(args.text), pathlib.Path(args.workdir, "lines.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["noise"], line["seed"], line["method"]) for line in lines}
    print(f"jax {jax.__version__}, {time.strftime('%Y-%m-%d')}", flush=True)
    for noise, method, seed in itertools.product(args.noise, args.methods, args.seeds):
        wanted = noise == max(args.noise) or not method.endswith("longer")
        if wanted and (noise, seed, method) not in done:
            lines.append(experiment.run(noise, seed, method))
            print(json.dumps(lines[-1]), flush=True)
            with open(path, "a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print_table(lines, args)


def spread(values, sign=""):
    """Mean ± standard deviation over seeds."""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.3f}{deviation}"


def print_table(lines, args):
    """Losses after, and in brackets their differences to those before of the same seeds."""

    def cells(method, name="after"):
        for noise in args.noise:
            found = [x for x in lines if x["noise"] == noise and x["method"] == method]
            losses, before = (np.array([x[key] for x in found]) for key in (name, "before"))
            bracket = f" ({spread(losses - before, sign='+')})" if name == "after" else ""
            yield spread(losses) + bracket if found else ""

    print("| test loss | " + " | ".join(f"{noise:.0%} noise" for noise in args.noise) + " |")
    print("| --- " + "| --: " * len(args.noise) + "|")
    print("| before fine-tuning | " + " | ".join(cells(args.methods[0], "before")) + " |")
    print("| the reference itself | " + " | ".join(cells(args.methods[0], "reference")) + " |")
    for method in args.methods:
        print(f"| {method} | " + " | ".join(cells(method)) + " |")


def measure_steps(args):
    """Ratios within one run: isjax's step to a step by hand, and with tokens chosen to without."""
    texts, vocabulary = read(args.text)
    part = windows(texts["finetune"])
    part["reference"] = np.ones(part["y"].shape, np.float16)
    part = jax.device_put(part)
    tx = optimizer("finetune", 1000)
    task = make_task(part, vocabulary)
    params, _ = jax.jit(task.init)(jax.random.key(0))

    @functools.partial(jax.jit, donate_argnums=0)
    def by_hand(state, part):
        params, opt_state, key, step = state
        ids = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, len(part["x"]))
        x, y = part["x"][ids], part["y"][ids]

        def mean_loss(params):
            logits = networks.Transformer(len(vocabulary), **NETWORK).apply({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key, step + 1), loss

    copy = functools.partial(jax.tree.map, jnp.array)
    start = (copy(params), tx.init(params), jax.random.key(1), jnp.zeros((), jnp.int32))
    steps = {"by hand": (by_hand, start)}
    for name, choice in (("isjax", None), ("top share", {}), ("drawn", {"drawn": True})):
        task = make_task(part, vocabulary, choice)
        sampler = recipes.uniform(batch_size=BATCH)
        step = make_train_step(task.loss_fn, tx, sampler)
        state = init_train_state(jax.random.key(2), params, tx, sampler, len(part["x"]))
        steps[name] = (step, state)
    times = measure(steps, (part,), args.rounds, 1.0)
    print(f"by hand: {np.median(times['by hand']) * 1e3:.1f} ms a step of {BATCH} x {LENGTH}")
    for name, base in (("isjax", "by hand"), ("top share", "isjax"), ("drawn", "isjax")):
        middle, low, high = quartiles(times[name] / times[base])
        print(f"{name} / {base}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="tinyshakespeare.txt, or another text of about a megabyte")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.2, 0.0, 0.1])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--workdir", default="runs/noisy_text")
    parser.add_argument("--step-cost", action="store_true")
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    measure_steps(args) if args.step_cost else run_all(args)


if __name__ == "__main__":
    main()
