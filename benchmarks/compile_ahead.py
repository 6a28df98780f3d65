"""What XLA makes of a training step for an accelerator that is not there.

    python benchmarks/compile_ahead.py --target h100 [--networks mlp] [--sizes 6e4 1e6]
    python benchmarks/compile_ahead.py --target v5e:2x2 [--devices 0] [--sizes 6e4 1e6 1e7]
    python benchmarks/compile_ahead.py --check

`make ahead` installs what both targets need and prints the tables of docs/guides/accelerators.md.
Nothing is run, so nothing is measured: these are XLA's own estimates, and they show what grows.

Each row is a number of examples N and a method; `plain` is a step written by hand without isjax.

- kcycles: XLA's estimate for a TPU, without the gathers, scatters and sorts that it does not
  estimate; none for a GPU. `over plain`, `over uniform`: ratios of cycles, or of kernels on a GPU;
- kernels: launches of a step, those of a loop once for each time round; `unknown`: those without an
  estimate;
- args MB, temp MB: memory of arguments and scratch on one device;
- sent, kB: collectives, and their results.

`--check` compiles a few steps for one chip and for four. It fails where a step passes its bound in
`BOUNDS`, and where the whole score buffer is copied or sent.

128 examples a device, a pool of 1,024, momentum SGD. `--methods` takes any recipe. With several
devices, `by part` draws a share of the batch from the examples of each device (`stratified`).
"""

import argparse
import collections
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from step_cost import BATCH, CLASSES, NETWORKS, OF_TOKENS

from isjax import init_train_state, make_train_step, networks, recipes
from isjax._numerics import precision
from isjax.experiment.recipe_arguments import required_parameters
from isjax.parallel import sharding
from isjax.parallel.mesh import spread
from isjax.parallel.padding import pad_state
from isjax.samplers import stratified
from isjax.scorers import Companion, _learned

POOL, TX = 1024, optax.sgd(0.01, momentum=0.9)
ENVIRONMENT = {  # of libtpu: no host of a TPU to ask, and other processes may load it, too
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
METHODS = ("plain", "uniform", "default", "last_loss", "learned_loss", "predicted_loss")
BY_PART = ("default", "last_loss", "learned_loss", "predicted_loss")
OF_CLASSES = ("learned_loss", "predicted_loss")
# Operations that take a kernel of their own, where XLA has not fused them.
KERNELS = {
    *("fusion", "copy", "copy-start", "custom-call", "convolution", "dot", "gather", "scatter"),
    *("reduce", "reduce-window", "reshape", "sort", "broadcast", "transpose", "concatenate", "pad"),
    *("dynamic-slice", "dynamic-update-slice", "select-and-scatter"),
}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1, "f16": 2, "s8": 1}
# Most cycles of a step over those of `uniform`, on a TPU v5e; MLP, N = 10^6.
BOUNDS = {  # by the number of chips
    1: {"default": 1.4, "last_loss": 1.35, "predicted_loss": 2.75, "learned_loss": 4.9},
    4: {"default": 1.6, "last_loss": 1.4},
}
CHECKED_SIZE = 1_000_000
WHOLE_MB = 3.6  # nearly a float32 for each of these examples


class Estimate(NamedTuple):
    """What XLA says of a program."""

    cycles: int
    kernels: int
    unknown: int
    arguments: float  # MB
    scratch: float  # MB
    sent: int
    sent_kb: float
    seconds: float  # of compilation


def devices_of(target, number):
    """Devices of a target that is not there."""
    if target == "h100":
        text = (pathlib.Path(__file__).parent / "h100.txtpb").read_text()
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=text, topology="1x1x1"
        )
    else:
        found = topologies.get_topology_desc(target, "tpu")
    return found.devices[: number or None]


class Task(NamedTuple):
    """What is trained."""

    example: dict  # (shape, dtype) by name
    init: Callable  # (key) -> params
    loss_fn: Callable
    logits_fn: Callable


def make_task(network, shape, bfloat16):
    """The task of a network of NETWORKS."""
    model = precision.bfloat16(network) if bfloat16 else precision.float32(network)
    of_tokens = isinstance(network, OF_TOKENS)
    kind = jnp.int32 if of_tokens else jnp.uint8
    if isinstance(network, networks.MLP):
        shape = (896,)  # a multiple of 128, as `sharding.place` pads rows for a TPU
    label = shape if of_tokens else ()
    example = {"x": (shape, kind), "label": (label, jnp.int32)}

    def init(key):
        return model.init(key, prepared(jnp.zeros((1, *shape), kind)))

    def prepared(x):
        return x if of_tokens else x / 64 - 2

    def logits_fn(params, batch):
        return model.apply(params, prepared(batch["x"]))

    def loss_fn(params, batch):
        logits = logits_fn(params, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return jnp.mean(losses.reshape(len(losses), -1), axis=1)

    return Task(example, init, loss_fn, logits_fn)


def arguments_of(method, task, size):
    """What a recipe asks for, beside the size of its batches."""
    of_classes = task.example["label"][0] == ()
    score = np.ones(size, np.float32)
    known = {
        "companion": Companion(
            lambda key: (task.init(key), None),
            lambda params, model_state, batch, key: (task.loss_fn(params, batch), model_state),
            lambda params, model_state, batch: task.loss_fn(params, batch),
        ),
        "example": {
            name: np.zeros((1, *shape), kind) for name, (shape, kind) in task.example.items()
        },
        "importances": score,
        "logits_fn": task.logits_fn,
        "loss_fn": task.loss_fn,
        "num_classes": CLASSES,
        "reference": score,
        "scores": score,
        "source": np.arange(size) % 4,
    }
    asked = required_parameters(getattr(recipes, method)) - {"batch_size"}
    if of_classes and method in OF_CLASSES:
        asked |= {"num_classes"}
    return {name: known[name] for name in asked}


def plain_step(init, loss_fn, size, batch):
    """(step, begin) of a step written by hand."""

    def step(state, data):
        key, step, params, opt_state = state
        ids = jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, size)
        chosen = spread(jax.tree.map(lambda x: x[ids], data))
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(loss_fn(p, chosen)))(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return (key, step + 1, optax.apply_updates(params, updates), opt_state), loss

    def begin(key):
        params = init(key)
        return key, jnp.zeros((), jnp.int32), params, TX.init(params)

    return step, begin


def recipe_step(method, task, size, devices, parts):
    """(step, begin) of a recipe, perhaps by part."""
    options = arguments_of(method, task, size)
    sampler = getattr(recipes, method)(batch_size=BATCH * devices // parts, **options)
    pool = None if sampler.own_pool else POOL * devices // parts
    if parts > 1:
        sampler, pool = stratified(sampler, parts, pool), None

    def loss(params, model_state, batch, key):
        return task.loss_fn(params, batch), model_state

    def begin(key):
        return pad_state(init_train_state(key, task.init(key), TX, sampler, size), devices)

    return make_train_step(loss, TX, sampler, pool_size=pool), begin


def compiled(task, method, size, mesh, parts, steps=1):
    """The program of one step or more, for arrays of which there are only shapes."""
    devices = mesh.shape["data"]
    if method == "plain":
        step, begin = plain_step(task.init, task.loss_fn, size, BATCH * devices)
    else:
        step, begin = recipe_step(method, task, size, devices, parts)
    state = jax.eval_shape(begin, jax.random.key(0))
    placed, rows = sharding.shardings(state, mesh), NamedSharding(mesh, PartitionSpec("data"))
    state = jax.tree.map(lambda x, place: x.update(sharding=place), state, placed)
    padded = size + -size % devices
    data = {
        name: jax.ShapeDtypeStruct((padded, *shape), kind, sharding=rows)
        for name, (shape, kind) in task.example.items()
    }
    one = step

    def several(state, data):
        return jax.lax.scan(lambda state, _: one(state, data), state, length=steps)

    with jax.set_mesh(mesh):
        step = jax.jit(
            one if steps == 1 else several, donate_argnums=0, out_shardings=(placed, None)
        )
        return step.lower(state, data).compile()


def operations(module):
    """(opcode, text, times) of what runs; of a conditional, all branches."""
    found = {computation.name: computation for computation in module.computations()}
    called = re.compile(r"(?:to_apply|calls|body|condition|\w+_computation)=%?([\w.-]+)")

    def trips(name):
        """The largest number that the condition of a loop compares with."""
        numbers = [1]
        for instruction in found[name].instructions():
            text = instruction.to_string()
            numbers += [int(n) for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", text)]
            numbers += [trips(inner) for inner in called.findall(text)]
        return max(numbers)

    def of(name, times):
        for instruction in found[name].instructions():
            text, code = instruction.to_string(), code_of(instruction)
            if code == "while":
                body, condition = (
                    re.search(rf"{x}=%?([\w.-]+)", text)[1] for x in ("body", "condition")
                )
                yield from of(body, times * trips(condition))
            elif code in ("conditional", "call"):
                listed = re.search(r"branch_computations=\{(.*?)\}", text)
                names = (
                    re.findall(r"[\w.-]+", listed[1].replace("%", ""))
                    if listed
                    else called.findall(text)
                )
                for inner in names:
                    yield from of(inner, times)
            else:
                yield code, text, times

    yield from of(module.computations()[-1].name, 1)


def code_of(instruction):
    """`fusion`, of an instruction `%x = f32[8]{0} fusion(...)`."""
    return re.search(r"= (?:\(.*?\)|\S+) ([\w-]+)\(", instruction.to_string())[1]


def estimate(program, seconds):
    """Reads an `Estimate` off a program."""
    cycles = kernels = unknown = sent = sent_bytes = 0
    for code, text, times in operations(program.runtime_executable().hlo_modules()[0]):
        if code.removesuffix("-start") in COLLECTIVES:
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", text.split(f" {code}(")[0].split("=", 1)[1])
            sent += times
            sent_bytes += times * sum(
                BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n)
                for kind, dims in shapes
            )
        if code not in KERNELS:
            continue
        known = re.search(r'"estimated_cycles":"(\d+)"', text)
        kernels += times
        unknown += 0 if known else times
        cycles += times * int(known[1]) if known else 0
    memory = program.memory_analysis()
    arguments, scratch = memory.argument_size_in_bytes / 1e6, memory.temp_size_in_bytes / 1e6
    return Estimate(cycles, kernels, unknown, arguments, scratch, sent, sent_bytes / 1e3, seconds)


class Target:
    """Devices of a target, as a mesh."""

    def __init__(self, name, number):
        devices = devices_of(name, number)
        self.number, self.kind = len(devices), devices[0].device_kind
        kinds = (AxisType.Auto,) * 2
        self.mesh = jax.make_mesh((self.number, 1), ("data", "model"), kinds, devices=devices)

    def estimates(self, network, size, methods, bfloat16=False, steps=1, text=None):
        """Prints a table, and yields the name and the `Estimate` of each step."""
        task, base = make_task(*NETWORKS[network], bfloat16), {}
        for method in methods:
            for parts in sorted({1, self.number if method in BY_PART else 1}):
                name = method + (", by part" if parts > 1 else "")
                start = time.perf_counter()
                program = compiled(task, method, size, self.mesh, parts, steps)
                found = estimate(program, time.perf_counter() - start)
                if text:
                    file = pathlib.Path(text) / f"{network}-{size}-{name}.txt"
                    file.write_text(program.as_text())
                base[name] = cost = found.cycles or found.kernels
                over = [cost / base.get(x, math.nan) for x in ("plain", "uniform")]
                print(row(network, name, size, found, over), flush=True)
                yield name, found


def check():
    """Compiles what `BOUNDS` names; says what passes a bound."""
    broken = []
    for number, bounds in BOUNDS.items():
        target = Target("v5e:2x2", number)
        found = dict(target.estimates("mlp", CHECKED_SIZE, ["uniform", *bounds]))
        uniform = found["uniform"]
        for method, bound in bounds.items():
            step, name = found[method], f"{method} on {number}"
            if step.cycles > bound * uniform.cycles:
                ratio = step.cycles / uniform.cycles
                broken.append(f"{name}: {ratio:.2f} of the cycles of uniform, above {bound}")
            if (scratch := step.scratch - uniform.scratch) > WHOLE_MB / number:
                broken.append(f"{name}: copies the buffer, {scratch:.1f} MB of scratch")
            if (sent := (step.sent_kb - uniform.sent_kb) / 1e3) > WHOLE_MB:
                broken.append(f"{name}: sends the buffer, {sent:.1f} MB more than uniform")
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="v5e:2x2", help="h100, or a TPU such as v5e:16x16")
    parser.add_argument("--devices", type=int, default=1, help="0 = all of the target")
    parser.add_argument("--sizes", type=float, nargs="+", default=[6e4, 1e6, 1e7])
    parser.add_argument("--networks", nargs="+", default=["mlp"], choices=NETWORKS)
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, choices=("plain", *recipes.__all__)
    )
    parser.add_argument("--bfloat16", action="store_true", help="the main model computes in it")
    parser.add_argument("--steps", type=int, default=1, help="in a loop; the row is of all")
    parser.add_argument("--text", help="folder for the text of each program")
    parser.add_argument("--check", action="store_true", help="fail where a step passes its bound")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # of this process itself
    os.environ |= ENVIRONMENT
    _learned.UNROLL_FROM = 0  # as on an accelerator
    if args.check:
        print(HEAD)
        sys.exit("\n".join(check()) or None)
    target = Target(args.target, args.devices)
    print(f"{target.number} of {target.kind}, jax {jax.__version__}; estimates, not times")
    print(HEAD)
    for network in args.networks:
        for size in map(int, args.sizes):
            rows = target.estimates(
                network, size, args.methods, args.bfloat16, args.steps, args.text
            )
            collections.deque(rows, maxlen=0)  # they print themselves


HEAD = (
    "network    method                       N  kcycles  over plain  over uniform  kernels  unknown"
    "   args MB  temp MB  sent       kB  seconds"
)


def row(network, name, size, found, over):
    """A line of the table."""
    return (
        f"{network:10} {name:22}{size:8.0e}{found.cycles / 1e3:9.0f}{over[0]:12.2f}{over[1]:14.2f}"
        f"{found.kernels:9d}{found.unknown:9d}{found.arguments:10.1f}{found.scratch:9.1f}"
        f"{found.sent:6d}{found.sent_kb:9.1f}{found.seconds:9.1f}"
    )


if __name__ == "__main__":
    main()
