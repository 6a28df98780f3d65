"""Memory and traffic of sampling on many devices, read off the compiled program.

    python benchmarks/many_devices.py --devices 8 --sizes 1e6 1e9
    python benchmarks/many_devices.py --devices 256 --sizes 1e9

The program draws a batch, gathers it, and writes back its losses. It is compiled for that many
devices of a CPU but never run, so no array of size N is allocated. The model's gradient is not in
it.

Each row is a method and a size N of the data set:

- MB/device: sampler state on each device, by the program;
- formula: the same by the formula in the guide to many devices;
- choice: bytes that a step's collectives deliver to each device to choose the batch;
- examples: the same for the batch's examples, of `--example-bytes` each.
"""

import argparse
import json
import os
import re

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--devices", type=int, default=8)
parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e9])
parser.add_argument("--pool", type=int, default=0, help="B; 0 = 8 batches")
parser.add_argument("--batch", type=int, default=0, help="b; 0 = 16 a device")
parser.add_argument("--example-bytes", type=int, default=3072)
args = parser.parse_args()
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402 (jax reads the number of devices when it is imported)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from isjax import recipes  # noqa: E402
from isjax.parallel import sharding  # noqa: E402
from isjax.parallel.mesh import make_mesh, spread, take_by_part  # noqa: E402
from isjax.parallel.padding import pad, pad_state  # noqa: E402
from isjax.resampling import presample  # noqa: E402
from isjax.samplers import stratified, sum_tree  # noqa: E402

BATCH = args.batch or 16 * args.devices
POOL = args.pool or 8 * BATCH
BYTES = {"f32": 4, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
# The compiled program is known as text only: its instructions have no shapes in Python.
OPERATION = re.compile(
    r"= (.+?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)


def make_sampler(method, strata):
    options = {"num_classes": 1000} if method == "learned_loss" else {}
    sampler = getattr(recipes, method)(batch_size=BATCH // strata, **options)
    if strata == 1:
        return sampler, None if sampler.own_pool else POOL
    return stratified(sampler, strata, None if sampler.own_pool else POOL // strata), None


def compiled(sampler, pool_size, size, mesh):
    """Compiles a step of the sampler; returns it and the bytes of state on each device."""

    def step(key, state, data, losses):
        pool_key, key = jax.random.split(key)
        ids = None if pool_size is None else presample(pool_key, size, pool_size)
        pool = data if ids is None else jax.tree.map(lambda x: x[ids], data)
        draw, state = sampler.sample(key, state, ids, pool)
        batch = spread(take_by_part(data, draw.ids, sampler.parts))
        return sampler.update(state, draw, losses, batch), batch, draw.weights

    def begin(key):
        return pad_state(sampler.init(key, size), args.devices)

    def on(shapes, specs):
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, specs
        )

    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    shapes = jax.eval_shape(begin, jax.random.key(0))
    placed = sharding.shardings(shapes, mesh)
    data = {
        "x": jax.ShapeDtypeStruct((size, args.example_bytes), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    data = jax.eval_shape(lambda data: pad(data, args.devices), data)
    key = jax.eval_shape(lambda: jax.random.key(0))
    losses = jax.ShapeDtypeStruct((BATCH,), jnp.float32, sharding=rows)
    program = jax.jit(step, donate_argnums=1, out_shardings=(placed, rows, rows)).lower(
        on(key, whole), on(shapes, placed), on(data, jax.tree.map(lambda x: rows, data)), losses
    )
    state = jax.tree.leaves(
        jax.tree.map(
            lambda x, s: np.prod(s.shard_shape(x.shape), dtype=float) * x.dtype.itemsize,
            shapes,
            placed,
        )
    )
    return program.compile(), sum(state)


def sent(text):
    """Returns the bytes that collectives deliver to each device: of numbers, and of images."""
    found = [
        (kind, int(np.prod([int(n) for n in dims.split(",") if n])) * BYTES[kind])
        for result in OPERATION.findall(text)
        for kind, dims in re.findall(r"(f32|s32|u32|s8|u8|pred)\[([\d,]*)\]", result)
    ]
    images = sum(size for kind, size in found if kind in ("s8", "u8"))
    return sum(size for _, size in found) - images, images


def formula(method, size, by_part):
    """Returns the bytes of the buffer and the sum tree on each device."""
    rows = size / args.devices
    history = {"learned_loss": 10}.get(method, 1)
    buffer = rows * 4 * (history + 3)
    if method != "default":
        return buffer
    # The upper levels have 1/F + 1/F^2 + ... of the lowest level's nodes.
    upper = (rows if by_part else size) * 4 / (sum_tree.FANOUT - 1)
    return buffer + rows * 4 + upper


def main():
    mesh = make_mesh()
    print(f"{args.devices} devices, b = {BATCH}, B = {POOL}, {args.example_bytes} bytes an example")
    heads = ("N", "MB/device", "formula", "choice", "examples")
    print(f"{'method':22s}" + "".join(f"{head:>11s}" for head in heads))
    with jax.set_mesh(mesh):
        for size in map(int, args.sizes):
            for method in ("last_loss", "default", "learned_loss"):
                for strata in sorted({1, args.devices}):
                    sampler, pool_size = make_sampler(method, strata)
                    program, state = compiled(sampler, pool_size, size, mesh)
                    choice, images = sent(program.as_text())
                    name = f"{method}{', by part' if strata > 1 else ''}"
                    expected = formula(method, size, strata > 1)
                    print(
                        f"{name:22s}{size:11.0e}{state / 1e6:11.2f}{expected / 1e6:11.2f}"
                        f"{choice:11,d}{images:11,d}"
                    )
                    row = {"method": name, "N": size, "devices": args.devices, "state": state}
                    row |= {"formula": expected, "choice": choice, "examples": images}
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
