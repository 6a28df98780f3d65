"""Functions that several benchmarks use."""

import ast
import importlib.util
import pathlib
import time

import jax
import numpy as np

from isjax.scorers import _learned

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def load_config(name):
    """Returns the config of configs/NAME.py; after a colon, the argument of its get_config."""
    name, *argument = name.split(":")
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*argument)


def settings(pairs):
    """Parses `NAME=VALUE` texts; values are Python literals, else text."""
    found = {}
    for name, _, value in (pair.partition("=") for pair in pairs):
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found


def override(config, pairs):
    """Overrides settings of a config by `NAME=VALUE` texts."""
    for name, value in settings(pairs).items():
        config[name] = type(config)(value) if isinstance(value, dict) else value


def halve(dataset):
    """Returns a data set of images of half the height and width: means of 2 x 2 pixels.

    Images of 28 x 28 get a margin of zeros first, so that 16 x 16 are left.
    """

    def smaller(examples):
        margin = -examples["x"].shape[1] % 8 // 2
        x = np.pad(examples["x"], ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        size, height, width, channels = x.shape
        x = x.reshape(size, height // 2, 2, width // 2, 2, channels).mean((2, 4), np.float32)
        return {**examples, "x": x.round().astype(np.uint8)}

    return dataset._replace(train=smaller(dataset.train), test=smaller(dataset.test))


def measure(steps, args, rounds, seconds, multiple=1):
    """Measures seconds per step; every method takes one turn in every round.

    Args:
        steps: {name: (step, state)}, where `state, out = step(state, *args)` may donate the state.
        args: Further arguments of all steps.
        rounds: Number of turns of each method.
        seconds: Approximate seconds of a turn.
        multiple: The number of steps in a turn is a multiple of this.

    Returns:
        {name: [rounds] seconds per step}.
    """
    states = {name: state for name, (_, state) in steps.items()}
    lengths, times = {}, {name: [] for name in steps}

    def turn(name, length):
        step, state = steps[name][0], states[name]
        start = time.perf_counter()
        for _ in range(length):
            state, out = step(state, *args)
        jax.block_until_ready((state, out))
        states[name] = state
        return (time.perf_counter() - start) / length

    for name in steps:
        turn(name, 3)
        lengths[name] = max(1, round(seconds / turn(name, 4) / multiple)) * multiple
    for _ in range(rounds):
        for name in steps:
            times[name].append(turn(name, lengths[name]))
    return {name: np.array(values) for name, values in times.items()}


def flops_of(function, *args):
    """Returns the floating point operations of a call, by XLA's count.

    A function that is already jitted keeps the trace made here, with all loops of scorers unrolled.
    """
    # XLA counts the body of a loop only once, so unroll all loops.
    number, _learned.UNROLL_FROM = _learned.UNROLL_FROM, 0
    try:
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]
    finally:
        _learned.UNROLL_FROM = number


def quartiles(values):
    """Returns the median, the first and the third quartile."""
    return np.percentile(values, [50, 25, 75]).tolist()
