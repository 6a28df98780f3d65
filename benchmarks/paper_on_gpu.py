"""Trains the authors' CIFAR-10 network by each method, at several budgets: accuracy and step cost.

    python benchmarks/paper_on_gpu.py --data cifar10_jpeg.npz [--steps 8000] [--budgets .5 .7 1]
      [--seeds 0 1 2] [--methods uniform default] [--time-limit SECONDS] [--tiny]

Takes minutes on a GPU; `--tiny` tries all methods on a CPU in some four minutes. Network, optimiser
and batch are those of the authors' code of July 2017: convolutions 3 x 3 with batch norm, 64-64,
128-128, 256-256, each pair followed by pooling and dropout, dense 1024-512; Adam at 1e-3, divided
by 10 at 50% and again at 80% of the steps of each run; batch 128, pixels in [0, 1], images flipped
and shifted. Some things differ: convolutions compute in bfloat16, shifts fill by reflection, batch
norm comes before the ReLU, and the first dense layer has no dropout (`isjax.networks.VGG` has both
as they are there). The method `authors` scores a pool of 1024 by the model's loss, as their code
does: independent draws, k = .5, no smoothing, weights that keep the mean score. It draws 100
batches uniformly first, as there only the LSTM does.

Each budget is a whole, shorter training with its own schedule. One compiled program per method
trains at all budgets and seeds, from the same initial weights for a seed. The runs that matter
least come last; a run that would not end within the time limit is left out. `reestimated` is the
test accuracy with batch norm's statistics taken from 2,560 uniform draws, not from the batches
trained on, which contain more hard examples.

Prints a line of JSON per run, and a table: means over seeds, paired differences to `uniform` with
their standard errors, and ms per step over uniform's.
"""

import argparse
import concurrent.futures
import io
import json
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import isjax
from isjax import conditions, recipes, resampling, scorers, weights
from isjax.networks import max_pool
from isjax.tasks import augmentations

BATCH, CLASSES, RATE, SHIFT, POINTS = 128, 10, 1e-3, 3, 8
REESTIMATED_FROM = 20 * BATCH
TRAIN_EVALUATED = 5_000


class VGG(nn.Module):
    """The authors' `cnn`, with `width` channels in the first of its three pairs."""

    width: int = 64
    dtype: jnp.dtype = jnp.bfloat16  # of all but the last layer; parameters are float32
    momentum: float = 0.99  # of batch norm's averages

    @nn.compact
    def __call__(self, x, train=False):
        init = nn.initializers.xavier_uniform()
        for channels in (self.width, 2 * self.width, 4 * self.width):
            for _ in range(2):
                x = nn.Conv(channels, (3, 3), dtype=self.dtype, kernel_init=init)(x)
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=self.momentum,
                    epsilon=1e-3,
                    dtype=self.dtype,
                )(x)
                x = nn.relu(x)
            x = nn.Dropout(0.25, deterministic=not train)(max_pool(x))
        x = x.reshape(x.shape[0], -1)
        for units in (16 * self.width, 8 * self.width):
            x = nn.relu(nn.Dense(units, dtype=self.dtype, kernel_init=init)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(CLASSES, kernel_init=init)(x.astype(jnp.float32))


class Task:
    """The network on images; what takes `variables` gets (params, batch statistics)."""

    def __init__(self, width, dtype, shift):
        self.network, self.shift = VGG(width, dtype), shift

    def init(self, key):
        variables = self.network.init(key, jnp.zeros((1, 32, 32, 3)))
        return variables["params"], variables["batch_stats"]

    def loss_fn(self, params, stats, batch, key, momentum=0.99):
        """The training view: augmented, with dropout and statistics of the batch."""
        flip_key, shift_key, dropout_key = jax.random.split(key, 3)
        images = augmentations.flip(flip_key, batch["x"].reshape(-1, 32, 32, 3))
        if self.shift:
            images = augmentations.crop(shift_key, images, self.shift)
        logits, changed = self.network.clone(momentum=momentum).apply(
            {"params": params, "batch_stats": stats},
            pixels(images),
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, batch), changed["batch_stats"]

    def logits(self, variables, batch):
        params, stats = variables
        images = batch["x"].reshape(-1, 32, 32, 3)
        return self.network.apply({"params": params, "batch_stats": stats}, pixels(images))

    def score(self, variables, batch):
        """The loss in evaluation mode."""
        return cross_entropy(self.logits(variables, batch), batch)

    def reestimate(self, variables, data, key):
        """The variables, with the statistics of uniform draws in training mode."""
        draw_key, loss_key = jax.random.split(key)
        ids = jax.random.randint(draw_key, (REESTIMATED_FROM,), 0, len(data["label"]))
        batch = jax.tree.map(lambda x: x[ids], data)
        return variables[0], self.loss_fn(*variables, batch, loss_key, momentum=0.0)[1]

    def evaluate(self, variables, data, start, size):
        """(correct, summed loss) of `size` examples."""
        batch = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), data)
        logits = self.logits(variables, batch)
        correct = jnp.argmax(logits, axis=1) == batch["label"]
        return jnp.array([jnp.sum(correct), jnp.sum(cross_entropy(logits, batch))], jnp.float32)


def pixels(images):
    return images.astype(jnp.float32) / 255


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def authors(task):
    sampler = isjax.importance_sampler(
        scorers.loss(task.score),
        batch_size=BATCH,
        k=0.5,
        resample=resampling.categorical,
        rescale=weights.preserve_mean_score,
    )
    return isjax.gate(sampler, conditions.after(100))


METHODS = {  # (pool, task -> sampler), in the order of the runs; None = it has its own pool
    "uniform": (1024, lambda task: recipes.uniform(batch_size=BATCH)),
    "default": (None, lambda task: recipes.default(batch_size=BATCH)),
    "mean_error": (None, lambda task: recipes.mean_error(batch_size=BATCH)),
    "biased_loss": (1024, lambda task: recipes.biased_loss(batch_size=BATCH, loss_fn=task.score)),
    "learned_loss": (
        2048,
        lambda task: recipes.learned_loss(batch_size=BATCH, num_classes=CLASSES, history=10),
    ),
    "authors": (1024, authors),
    "reshuffled": (None, lambda task: recipes.reshuffled(batch_size=BATCH)),
}


def times_given_rate():
    """Multiplies updates by minus a learning rate, its state, which whoever trains sets."""
    return optax.GradientTransformation(
        lambda params: jnp.float32(RATE),
        lambda updates, rate, params=None: (jax.tree.map(lambda u: -rate * u, updates), rate),
    )


TX = optax.chain(optax.scale_by_adam(), times_given_rate())


def rates_of(steps):
    """[steps], of a whole run."""
    done = np.arange(steps) / steps
    return np.where(done < 0.5, RATE, np.where(done < 0.8, RATE / 10, RATE / 100)).astype("float32")


def programs_of(name, task, num_train):
    """(init, chunk): `init(key) -> state`, `chunk(state, data, rates) -> (state, means)`."""
    pool, make = METHODS[name]
    sampler = make(task)
    pool = pool and min(pool, num_train)
    step = isjax.make_train_step(task.loss_fn, TX, sampler, pool_size=pool)

    def init(key):
        init_key, key = jax.random.split(key)
        params, stats = task.init(init_key)
        return isjax.init_train_state(key, params, TX, sampler, num_train, model_state=stats)

    def one(state, rate, data):
        adam, _ = state.opt_state
        state, metrics = step(state._replace(opt_state=(adam, rate)), data)
        return state, jnp.stack([jnp.float32(metrics[name]) for name in ("ess", "skipped")])

    def chunk(state, data, rates):
        if len(rates) == 1:  # a convolution inside of a loop is slow on a CPU
            return one(state, rates[0], data)
        state, metrics = jax.lax.scan(lambda state, rate: one(state, rate, data), state, rates)
        return state, jnp.mean(metrics, axis=0)

    return init, chunk


def compile_method(name, task, data_shape, per_call):
    """(init, chunk, seconds), compiled."""
    start = time.perf_counter()
    init, chunk = programs_of(name, task, data_shape["label"].shape[0])
    key, rates = jax.random.key(0), jax.ShapeDtypeStruct((per_call,), jnp.float32)
    state = jax.eval_shape(init, key)
    init = jax.jit(init).lower(key).compile()
    chunk = jax.jit(chunk, donate_argnums=0).lower(state, data_shape, rates).compile()
    return init, chunk, time.perf_counter() - start


def decode(jpegs, offsets):
    """[N, 3072] uint8."""

    def image(i):
        return np.asarray(Image.open(io.BytesIO(jpegs[offsets[i] : offsets[i + 1]]))).reshape(-1)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(image, range(len(offsets) - 1))))


def load(path):
    """(train, test), NumPy; random images that show their class by brightness without a path."""
    if path is None:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, CLASSES, (2, 512)).astype("int32")
        x = np.clip(rng.normal(25 * labels[..., None], 40, (2, 512, 3072)), 0, 255).astype("uint8")
        return [{"x": x[i], "label": labels[i]} for i in range(2)]
    with np.load(path) as file:
        parts = {name: file[name] for name in file.files}
    return [
        {
            "x": decode(parts[f"{part}_jpeg"].tobytes(), parts[f"{part}_offsets"]),
            "label": parts[f"{part}_labels"].astype("int32"),
        }
        for part in ("train", "test")
    ]


def sizes_of(path):
    """Of train and test, before they are decoded."""
    if path is None:
        return 512, 512
    with np.load(path) as file:
        return len(file["train_labels"]), len(file["test_labels"])


class Evaluator:
    """Accuracy and loss, by two compiled functions that all methods share."""

    def __init__(self, task, reestimate):
        self.reestimates = reestimate
        self.reestimate = jax.jit(task.reestimate)
        self.evaluate = jax.jit(task.evaluate, static_argnums=3)

    def total(self, variables, data, number):
        """(share correct, mean loss) of the first `number` examples."""
        size = next(size for size in (1000, 500, 256, number) if number % size == 0)
        parts = [self.evaluate(variables, data, jnp.int32(i), size) for i in range(0, number, size)]
        return sum(parts[1:], parts[0]) / number

    def __call__(self, state, train, test):
        variables, size = (state.params, state.model_state), len(test["label"])
        found = [self.total(variables, test, size)]
        found.append(self.total(variables, train, min(TRAIN_EVALUATED, len(train["label"]))))
        if self.reestimates:
            fresh = self.reestimate(variables, train, jax.random.key(0))
            found.append(self.total(fresh, test, size))
        found = np.round(np.array(jax.device_get(found), float), 5).tolist()
        named = {"test_accuracy": found[0][0], "test_loss": found[0][1]}
        named |= {"train_accuracy": found[1][0], "train_loss": found[1][1]}
        if self.reestimates:
            named |= {
                "test_accuracy_reestimated": found[2][0],
                "test_loss_reestimated": found[2][1],
            }
        return named


def run(programs, evaluator, train, test, seed, rates, per_call, with_curve):
    """Trains and evaluates. -> what is reported of it."""
    init, chunk = programs
    state, times, curve = init(jax.random.key(seed)), [], []
    jax.block_until_ready(state)
    calls = len(rates) // per_call
    points = {calls * (i + 1) // POINTS for i in range(POINTS - 1)} - {0} if with_curve else set()
    total = np.zeros(2)
    for call, part in enumerate(rates.reshape(calls, per_call), 1):
        start = time.perf_counter()
        state, means = chunk(state, train, part)
        means = jax.device_get(means)
        times.append(time.perf_counter() - start)
        total[1] += per_call * means[1]
        if call in points:
            curve.append({"step": call * per_call} | evaluator(state, train, test))
    final = evaluator(state, train, test)
    return {
        "steps": len(rates),
        "ms_per_step": float(np.median(times)) / per_call * 1e3,
        **final,
        "ess": float(means[0]),  # of the last call
        "skipped": round(total[1]),
        "curve": [*curve, {"step": len(rates)} | final] if with_curve else [],
    }


def print_table(rows, methods, budgets):
    """Means over seeds, and what uniform draws with the same seed and budget have less."""
    by = {(row["method"], row["budget"], row["seed"]): row for row in rows}
    columns = ["test_accuracy", "test_accuracy_reestimated", "test_loss", "train_accuracy"]
    print("method        budget seeds  " + "  ".join(f"{x[-20:]:>27}" for x in columns) + "  cost")
    for method in methods:
        for budget in sorted(budgets):
            found = [row for row in rows if (row["method"], row["budget"]) == (method, budget)]
            if not found:
                continue
            pairs = [(row, by.get(("uniform", budget, row["seed"]))) for row in found]
            pairs = [(row, base) for row, base in pairs if base]
            texts = []
            for name in columns:
                text = f"{np.mean([row.get(name, np.nan) for row in found]):.4f}"
                gains = [row.get(name, np.nan) - base.get(name, np.nan) for row, base in pairs]
                if gains and method != "uniform":
                    error = np.std(gains, ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.nan
                    text += f" ({np.mean(gains):+.4f} ± {error:.4f})"
                texts.append(f"{text:>27}")
            ratios = [row["ms_per_step"] / base["ms_per_step"] for row, base in pairs]
            cost = f"{np.median(ratios):.2f}" if ratios else "   -"
            print(f"{method:13} {budget:6} {len(found):5}  " + "  ".join(texts) + f"  {cost}")


def main():
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, help="npz of JPEG images and labels")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, help="of the whole budget; 8000")
    parser.add_argument("--budgets", nargs="+", type=float, help="shares of it; .5 .7 1")
    parser.add_argument("--seeds", nargs="+", type=int, help="0 1 2")
    parser.add_argument("--width", type=int, help="channels of the first convolutions; 64")
    parser.add_argument("--shift", type=int, default=SHIFT, help="pixels; 0 = images are flipped")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    parser.add_argument(
        "--reestimate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also evaluate with batch statistics of uniform draws",
    )
    parser.add_argument("--steps-per-call", type=int, help="by default 100, on a CPU 1")
    parser.add_argument("--time-limit", type=float, default=np.inf, help="seconds, in all")
    parser.add_argument("--tiny", action="store_true", help="width 4, 12 steps: does it run?")
    args = parser.parse_args()
    small = {"steps": 12, "budgets": [0.5, 1.0], "seeds": [0], "width": 4}
    full = {"steps": 8000, "budgets": [0.5, 0.7, 1.0], "seeds": [0, 1, 2], "width": 64}
    for name, value in (small if args.tiny else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.data is None and not args.tiny:
        parser.error("give --data, or --tiny for random images")
    methods = [name for name in METHODS if name in args.methods]
    device = jax.devices()[0]
    per_call = args.steps_per_call or (1 if device.platform == "cpu" else 100)
    budgets = [b for b in (1.0, 0.5, 0.7) if b in args.budgets]
    budgets += [b for b in args.budgets if b not in budgets]
    length = {b: max(1, round(b * args.steps / per_call)) * per_call for b in budgets}
    task = Task(args.width, jnp.float32 if args.float32 else jnp.bfloat16, args.shift)
    evaluator = Evaluator(task, args.reestimate)

    num_train = min(sizes_of(args.data)[0], 512 if args.tiny else 10**9)
    shape = {
        "x": jax.ShapeDtypeStruct((num_train, 3072), jnp.uint8),
        "label": jax.ShapeDtypeStruct((num_train,), jnp.int32),
    }
    with concurrent.futures.ThreadPoolExecutor(len(methods) + 1) as pool:
        loading = pool.submit(load, args.data)  # images are decoded while XLA compiles
        compiling = {
            name: pool.submit(compile_method, name, task, shape, per_call) for name in methods
        }
        train, test = loading.result()
        if args.tiny:
            train, test = ({k: v[:512] for k, v in part.items()} for part in (train, test))
        train, test = jax.device_put(train), jax.device_put(test)
        print(f"data: {time.perf_counter() - began:.1f} s after the start", flush=True)
        programs = {name: future.result() for name, future in compiling.items()}
    expected = {}  # seconds a step; the first calls of a program, on a state that is thrown away
    rates = np.full(per_call, RATE, "float32")
    for name, (init, chunk, seconds) in programs.items():
        state, _ = jax.block_until_ready(chunk(init(jax.random.key(0)), train, rates))
        start = time.perf_counter()
        state, _ = jax.block_until_ready(chunk(state, train, rates))
        expected[name] = (time.perf_counter() - start) / per_call
        print(
            f"{name:13} compiled in {seconds:.1f} s, {expected[name] * 1e3:.3f} ms/step", flush=True
        )
    evaluator(state, train, test)
    start = time.perf_counter()
    evaluator(state, train, test)
    evaluation = time.perf_counter() - start
    del state
    ready = time.perf_counter() - began
    kind = device.device_kind
    print(f"ready after {ready:.1f} s, an evaluation {evaluation:.2f} s, on {kind}", flush=True)

    rows, left_out = [], 0
    for seed in args.seeds:
        for budget in budgets:
            for name in methods:
                with_curve = budget == 1
                wanted = expected[name] * length[budget] + evaluation * (
                    POINTS if with_curve else 1
                )
                if time.perf_counter() - began + wanted > args.time_limit:
                    left_out += 1
                    continue
                row = {"method": name, "seed": seed, "budget": budget, "device": kind}
                row |= run(
                    programs[name][:2],
                    evaluator,
                    train,
                    test,
                    seed,
                    rates_of(length[budget]),
                    per_call,
                    with_curve,
                )
                expected[name] = row["ms_per_step"] / 1e3
                row |= {"width": args.width, "float32": args.float32}
                row["at"] = round(time.perf_counter() - began, 1)
                print(json.dumps(row), flush=True)
                rows.append(row)
    print(f"{len(rows)} runs, {left_out} left out, {time.perf_counter() - began:.0f} s")
    print_table(rows, methods, budgets)


if __name__ == "__main__":
    main()
