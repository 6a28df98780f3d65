"""Test accuracy of draws by the last loss that end early, by where and how they end.

    python benchmarks/ending.py --config cifar10 --data-dir DATA --steps 4000
      --set "augment=()" weight_decay=2e-3 [--seeds 2]
    python benchmarks/ending.py --config fashion_mnist --data-dir DATA --steps 5000
      --set network=MLP "network_options={}" weight_decay=5e-4

One run draws by the last loss as `recipes.default(until=1)`. From copies of its state at 50%, 70%
and 85% of the steps the rest is trained by uniform draws, or by unbiased ones (k = 1). All have one
schedule of the learning rate, which decays to zero at the end. Others draw uniformly from
where the share of remembered losses above log 2, an estimate of the train error, falls below 15%,
10% and 5%. It is looked at after each percent of the steps.

Each line is a JSON object: the ending, the share of steps by importance, train and test loss and
accuracy, of all examples. The first command takes an hour a seed on one core, the second some four
minutes.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
from common import load_config, override

import isjax
from isjax import scorers
from isjax.experiment import components
from isjax.experiment.config import num_steps
from isjax.experiment.evaluation import make_evaluation

BATCH, ERRORS = 128, (0.15, 0.1, 0.05)
SHARES = dict.fromkeys((50, 70, 85), ("uniform", "k = 1"))  # where importance ends, in percent
DRAWS = {"default": (0.5, 0.25), "uniform": (1.0, jnp.inf), "k = 1": (1.0, 0.25)}  # k, smoothing


class Runs:
    """A task, and one compiled step for every way of drawing."""

    def __init__(self, config, task):
        self.task, self.steps = task, num_steps(config)
        self.tx = components.make_optimizer(config)
        self.data = jax.device_put(task.dataset.train)
        self.evaluate = make_evaluation(task, 1000, 0)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state, data, k, smoothing):
            sampler = self.sampler(k, smoothing)
            return isjax.make_train_step(task.loss_fn, self.tx, sampler)(state, data)[0]

        self.step = step

    def sampler(self, k, smoothing):
        return isjax.tree_sampler(
            scorers.last_loss(),
            batch_size=BATCH,
            k=k,
            smoothing=smoothing,
            initial_loss=self.task.initial_loss,
        )

    def start(self, seed):
        init_key, state_key = jax.random.split(jax.random.key(seed))
        params, model_state = self.task.init(init_key)
        size = isjax.training.num_examples(self.task.dataset.train)
        sampler = self.sampler(*DRAWS["default"])
        return isjax.init_train_state(state_key, params, self.tx, sampler, size, model_state)

    def error(self, state):
        """Returns the share of examples whose last known loss is above log 2."""
        losses = state.sampler.buffer.losses
        return float(jnp.mean(losses > jnp.log(2)))

    def go_on(self, state, draws, until):
        k, smoothing = map(jnp.float32, DRAWS[draws])
        for _ in range(int(state.step), until):
            state = self.step(state, self.data, k, smoothing)
        return state


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="fashion_mnist")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE settings of the config")
    args = parser.parse_args()
    config = load_config(args.config)
    config.data_dir, config.num_steps = args.data_dir, args.steps
    override(config, args.set)
    runs = Runs(config, components.make_task(config))

    def show(seed, ending, share, state):
        found = {name: round(float(value), 4) for name, value in runs.evaluate(state).items()}
        line = {"config": args.config, "steps": args.steps, "seed": seed, "ending": ending}
        print(json.dumps(line | {"by importance": share} | found), flush=True)

    for seed in range(args.seeds):
        state, errors = runs.start(seed), list(ERRORS)
        for percent in range(1, 101):
            state = runs.go_on(state, "default", round(percent / 100 * runs.steps))
            endings = [(f"{draws} from {percent}%", draws) for draws in SHARES.get(percent, ())]
            while errors and runs.error(state) < errors[0]:
                endings.append((f"uniform below an error of {errors.pop(0):.0%}", "uniform"))
            for ending, draws in endings:
                end = runs.go_on(jax.tree.map(jnp.copy, state), draws, runs.steps)
                show(seed, ending, percent / 100, end)
        show(seed, "none", 1.0, state)
        show(seed, "uniform throughout", 0.0, runs.go_on(runs.start(seed), "uniform", runs.steps))


if __name__ == "__main__":
    main()
