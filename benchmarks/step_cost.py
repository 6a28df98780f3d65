"""What a training step costs by each method, over a plain step on uniform ids.

    python benchmarks/step_cost.py [--rounds 15] [--networks mlp cnn_1d cnn_2d]

Every method takes its turn in every round, so that the ratios hold on a machine whose speed
drifts: median over rounds, with quartiles. `plain` is a hand-written step that draws 128 ids and
knows nothing of isjax; `uniform` is the recipe, with the diagnostics and guards of
`make_train_step`. `floor` is the ratio to plain by the floating point operations that XLA counts.
Batch 128, pool 1024, momentum SGD, random data.
"""

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import isjax
from isjax import networks, recipes

NUM_EXAMPLES, POOL, BATCH, CLASSES = 10_000, 1024, 128, 10
NETWORKS = {
    "mlp": (networks.MLP(CLASSES, hidden=(512, 512)), (784,)),
    "cnn_1d": (networks.CNN(CLASSES), (40, 1)),
    "cnn_2d": (networks.CNN(CLASSES), (28, 28, 1)),
}


def steps_of(network, shape):
    """{name: (step, state)}, where `state, _ = step(state, data)`; and the data."""
    x_key, label_key, key = jax.random.split(jax.random.key(0), 3)
    data = {
        "x": jax.random.normal(x_key, (NUM_EXAMPLES, *shape)),
        "label": jax.random.randint(label_key, (NUM_EXAMPLES,), 0, CLASSES),
    }
    params = network.init(key, data["x"][:1])
    tx = optax.sgd(0.01, momentum=0.9)

    def score_fn(params, batch):
        logits = network.apply(params, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    def loss_fn(params, model_state, batch, key):
        return score_fn(params, batch), model_state

    @functools.partial(jax.jit, donate_argnums=0)
    def plain(state, data):
        key, step, params, opt_state = state
        ids = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, NUM_EXAMPLES)
        batch = jax.tree.map(lambda x: x[ids], data)
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(score_fn(p, batch)))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (key, step + 1, optax.apply_updates(params, updates), opt_state), loss

    copy = jax.tree.map(jnp.array, params)
    steps = {"plain": (plain, (jax.random.key(1), jnp.zeros((), jnp.int32), copy, tx.init(copy)))}
    for name, sampler in {
        "uniform": recipes.uniform(batch_size=BATCH),
        "last_loss": recipes.last_loss(batch_size=BATCH),
        "learned_loss": recipes.learned_loss(batch_size=BATCH, num_classes=CLASSES),
        "biased_loss": recipes.biased_loss(batch_size=BATCH, loss_fn=score_fn),
    }.items():
        state = isjax.init_train_state(jax.random.key(1), params, tx, sampler, NUM_EXAMPLES)
        steps[name] = isjax.make_train_step(loss_fn, tx, sampler, pool_size=POOL), state
    return steps, data


def count_flops(network, shape):
    """Floating point operations of a step by XLA's count, {name: number}."""
    # XLA counts the body of a loop once: have all of them unrolled.
    rows, networks.UNROLL_ROWS = networks.UNROLL_ROWS, 0
    steps, data = steps_of(network, shape)
    flops = {
        name: step.lower(state, data).compile().cost_analysis()["flops"]
        for name, (step, state) in steps.items()
    }
    networks.UNROLL_ROWS = rows
    return flops


def measure(steps, data, rounds, seconds):
    """Seconds a step, [rounds] for each name; each turn lasts about `seconds`."""
    states, lengths, times = {}, {}, {name: [] for name in steps}

    def turn(name, length):
        step, state = steps[name][0], states[name]
        start = time.perf_counter()
        for _ in range(length):
            state, out = step(state, data)
        jax.block_until_ready((state, out))
        states[name] = state
        return (time.perf_counter() - start) / length

    for name, (_, state) in steps.items():
        states[name] = state
        turn(name, 3)
        lengths[name] = max(3, int(seconds / turn(name, 5)))
    for _ in range(rounds):
        for name in steps:
            times[name].append(turn(name, lengths[name]))
    return {name: np.array(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"device: {device}")
    ratio = "(quartiles)     floor"
    print(f"network  method         ms/step   over plain {ratio} over uniform {ratio}")
    for network in args.networks:
        flops = count_flops(*NETWORKS[network])
        steps, data = steps_of(*NETWORKS[network])
        times = measure(steps, data, args.rounds, args.seconds)
        for name, values in times.items():
            row = {"network": network, "method": name, "ms": float(np.median(values)) * 1e3}
            for base in ("plain", "uniform"):
                row[base] = np.percentile(values / times[base], [50, 25, 75]).tolist()
                row[f"{base}_floor"] = flops[name] / flops[base]
            ratios = [
                "{:8.2f} ({:.2f} to {:.2f}) {:6.2f}".format(*row[base], row[f"{base}_floor"])
                for base in ("plain", "uniform")
            ]
            print(f"{network:8} {name:13} {row['ms']:8.2f} {' '.join(ratios)}", flush=True)
            print(json.dumps(row | {"device": device}))


if __name__ == "__main__":
    main()
