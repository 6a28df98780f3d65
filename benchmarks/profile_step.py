"""Where the time of a training step goes, and how far its parts are from their floors.

    python benchmarks/profile_step.py [--networks mlp wrn] [--methods tree_mlp tree_lstm]
      [--bfloat16]

Networks and methods as in step_cost.py. From a profile of the compiled step, for each part of it:
microseconds, how many operations (kernels, on a GPU), and its time over that of `train`, the main
model's forward and backward pass and its update. Beside them two floors, in microseconds: `work`,
for what must be computed (floating point operations by XLA's count, over the rate of a large
product of matrices) or moved (bytes of the score buffer's rows or the tree's nodes, over the
bandwidth of reading a large array), and `launch`, for so many operations of next to no work, one
after the other. Both rates and the launch are measured first. Scorers that learn do so in one step
of four, whose cost is spread over all. On a CPU operations run side by side, so that their times
may add up to more than the step's, and being traced is most of what the smallest ones take. On a
GPU set XLA_FLAGS=--xla_gpu_enable_command_buffer= so that kernels are launched one by one.
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
    """Floating point operations and bytes a second, and seconds to launch an operation."""
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
    """Floating point operations and bytes that each part needs, by part."""
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
        nodes = BATCH * sum_tree.FANOUT * 4 * len(sampler.transform.scores.levels)
        traffic["buffer"] += nodes
        traffic["draw"] = nodes
    return flops, traffic


def profile(step, state, data):
    """What each part takes of TRAIN_EVERY steps."""
    program = step.lower(state, data).compile()

    def call():
        nonlocal state
        for _ in range(TRAIN_EVERY):
            state, out = program(state, data)
        return out

    call()
    found = timeline.time_by_part(call, program)
    if found is None:
        raise SystemExit("the profiler says nothing of a program's operations on this device")
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
