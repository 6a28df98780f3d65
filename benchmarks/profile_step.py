"""Time of each part of a training step, and lower bounds of it.

    python benchmarks/profile_step.py [--networks mlp wrn] [--methods tree_mlp tree_lstm]
      [--bfloat16]

Networks and methods are those of step_cost.py. Each compiled step is profiled for half a second;
compilation takes longer.

Each row is a part of a step, with a JSON line:

- us: microseconds;
- ops: number of operations (kernels, on a GPU);
- over train: time over that of `train`, the main model's forward and backward pass and its update;
- work us: lower bound for what must be computed (floating point operations by XLA's count, over the
  rate of a large matrix product) or moved (bytes of the score buffer or of the sum tree's nodes,
  over the bandwidth of reading a large array);
- launch us: lower bound for launching as many operations of next to no work, one after the other.

The rates and the launch time are measured first. A learned scorer trains in one step of four; its
cost is spread over all four. On a CPU, operations run at the same time, so that their times may add
up to more than the step's, and tracing dominates the time of the smallest ones. On a GPU set
XLA_FLAGS=--xla_gpu_enable_command_buffer= so that kernels are launched one by one.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import step_cost
from common import flops_of, measure
from step_cost import BATCH, METHODS, NETWORKS, TRAIN_EVERY

from isjax.reporting import timeline
from isjax.samplers import sum_tree
from isjax.samplers._importance import rows_of

SCORERS = {"mlp": step_cost.mlp, "tree_mlp": step_cost.mlp, "tree_lstm": step_cost.lstm}
LAUNCHES = 256


def rates(dtype):
    """Measures floating point operations and bytes per second, and seconds per launch."""
    large = jax.default_backend() != "cpu"
    side, size = (8192, 2**28) if large else (2048, 2**25)
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    numbers = jnp.ones((size,), jnp.float32)

    def launches(x):
        for _ in range(LAUNCHES):
            x = jax.lax.optimization_barrier(x + 1)
        return x

    def calls(function, *args):
        run = jax.jit(function)
        return lambda state: (state, run(*args)), None

    few = jnp.zeros((8,))
    programs = {
        "product": calls(jnp.matmul, matrix, matrix),
        "read": calls(jnp.sum, numbers),
        "one": calls(lambda x: x + 1, few),
        "many": calls(launches, few),
    }
    taken = {name: values.min() for name, values in measure(programs, (), 7, 0.1).items()}
    return (
        2 * side**3 / taken["product"],
        4 * size / taken["read"],
        (taken["many"] - taken["one"]) / (LAUNCHES - 1),
    )


def work(task, name, state, pool):
    """Returns the floating point operations and the bytes that each part needs."""
    batch = jax.tree.map(lambda x: x[:BATCH], task.data)
    sampler, losses = state.sampler, jnp.ones((BATCH,))

    def train(params):
        return jax.grad(lambda p: jnp.mean(task.loss_fn(p, batch)))(params)

    flops = {"train": flops_of(train, state.params)}
    scored = BATCH if name.startswith("tree") else pool
    if name in SCORERS:
        scorer = SCORERS[name](task)
        rows = [
            rows_of(sampler, jnp.arange(n), jax.tree.map(lambda x, n=n: x[:n], task.data))
            for n in (scored, BATCH)
        ]
        flops["score"] = flops_of(scorer.score, sampler.scorer, rows[0])
        flops["learn"] = flops_of(scorer.update, sampler.scorer, rows[1], losses)
        flops["learn"] /= TRAIN_EVERY
    row = sum(leaf.nbytes // leaf.shape[0] for leaf in jax.tree.leaves(sampler.buffer))
    traffic = {"buffer": row * (scored + 2 * BATCH), "draw": 8 * scored}
    if name.startswith("tree"):
        nodes = BATCH * sum_tree.FANOUT * 4 * len(sampler.scores.levels)
        traffic["buffer"] += nodes
        traffic["draw"] = nodes
    return flops, traffic


def profile(step, state, data):
    """Measures the cost of each part in TRAIN_EVERY steps."""
    program = step.lower(state, data).compile()

    def call():
        nonlocal state
        for _ in range(TRAIN_EVERY):
            state, out = program(state, data)
        return out

    call()
    found = timeline.time_by_part(call, program)
    if found is None:
        raise SystemExit("the profiler reports no operations on this device; use another one")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["mlp", "cifar_cnn"], choices=NETWORKS)
    methods = ["tree_last_loss", "mlp", "tree_mlp", "tree_lstm"]
    parser.add_argument("--methods", nargs="+", default=methods, choices=METHODS)
    parser.add_argument("--pool", type=int, default=1024)
    parser.add_argument("--bfloat16", action="store_true", help="the main model computes in it")
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    rate, bandwidth, launch = rates(jnp.bfloat16 if args.bfloat16 else jnp.float32)
    print(f"device: {device}; {rate:.2e} operations/s, {bandwidth:.2e} bytes/s, {launch:.1e} s")
    print("network   method           part           us    ops   over train     work us  launch us")
    for network in args.networks:
        task = step_cost.make_task(*NETWORKS[network], args.bfloat16)
        for name in args.methods:
            step, state = step_cost.make_step(task, METHODS[name](task), args.pool)
            flops, traffic = work(task, name, state, args.pool)
            found = profile(step, state, task.data)
            for part, (total, operations) in found.items():
                least = max(flops.get(part, 0) / rate, traffic.get(part, 0) / bandwidth)
                row = {
                    "us": 1e6 * total / TRAIN_EVERY,
                    "operations": operations / TRAIN_EVERY,
                    "over_train": total / found["train"].seconds,
                    "work_us": 1e6 * least,
                    "launch_us": 1e6 * launch * operations / TRAIN_EVERY,
                }
                cells = "{:9.1f} {:6.0f} {:12.4f} {:11.2f} {:10.1f}".format(*row.values())
                print(f"{network:9} {name:16} {part:9}{cells}", flush=True)
                row = {"network": network, "method": name, "part": part} | row
                print(json.dumps(row | {"bfloat16": args.bfloat16, "device": device}))


if __name__ == "__main__":
    main()
