"""Shared by several test files: score pools, many draws at once, and 5-sigma tests."""

import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from isjax import recipes

SIGMAS = 5.0
# `given` needs numbers that neither task nor config has; `by_source` needs sources.
BY_CONFIG = sorted(set(recipes.__all__) - {"by_source", "given"})


def six_decades(size, seed=0):
    """Scores 10**uniform(-6, 0), float32."""
    return (10 ** np.random.default_rng(seed).uniform(-6, 0, size)).astype(np.float32)


def probabilities(scores):
    """Probabilities in float32, normalised in float64."""
    scores = np.asarray(scores, np.float64)
    return jnp.asarray(scores / scores.sum(), jnp.float32)


# For programs that would run for more than a second as conftest.py has them compiled.
OPTIMISED = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": False}


@functools.cache
def _over_keys(resample, num, optimised):
    draw = jax.vmap(lambda key, probs: resample(key, probs, num), in_axes=(0, None))
    return jax.jit(draw, compiler_options=OPTIMISED if optimised else None)


def draws(resample, probs, num, trials, seed=0):
    """Makes `trials` independent draws: index [trials, num], draw_probs [trials, num]."""
    draw = _over_keys(resample, num, optimised=trials * num * len(probs) > 1e8)
    index, draw_probs = draw(jax.random.split(jax.random.key(seed), trials), probs)
    return np.asarray(index), np.asarray(draw_probs, np.float64)


def assert_binomial(counts, trials, prob):
    """Checks each count against Binomial(trials, prob), at the tail probability of 5 sigma."""
    tail = stats.norm.sf(SIGMAS)
    assert np.all(stats.binom.sf(np.asarray(counts) - 1, trials, prob) > tail)
    assert np.all(stats.binom.cdf(counts, trials, prob) > tail)


def assert_mean(samples, expected):
    """Checks that the mean over rows of `samples` is within 5 standard errors of `expected`."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    z = (samples.mean(axis=0) - expected) / error
    assert np.max(np.abs(z)) < SIGMAS


@contextlib.contextmanager
def file_limit(size):
    """Lets no file grow beyond `size` bytes: what is beyond fails as on a full disk."""
    import resource  # POSIX only

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def damage(path, how):
    """Damages a file in one of `DAMAGES`."""
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        place = len(content) * 2 // 3
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(b"\x80\x04K\x01. a pickle of 1, which NumPy advises to load unsafely")


DAMAGES = ("cut", "flipped", "empty", "pickle")


def write_run(
    folder,
    method="uniform",
    seed=0,
    rows=(),
    num_steps=20,
    dataset="mnist",
    tail="",
    budget=None,
    metric="test_accuracy",
):
    """Writes the folder of a run; `rows` are (step, seconds, train_loss, metric).

    Without a budget the config has no such key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"method": method, "seed": seed, "num_steps": num_steps, "dataset": dataset}
    config |= {} if budget is None else {"budget": budget}
    (folder / "config.json").write_text(json.dumps(config))
    keys = ("step", "seconds", "train_loss", metric)
    lines = [json.dumps({"test_loss": 1.0} | dict(zip(keys, row, strict=True))) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines) + tail)


def rows(losses, accuracies, seconds):
    return [(10 * i, seconds * i, *v) for i, v in enumerate(zip(losses, accuracies, strict=True))]


def innermost(state):
    """A sampler's state within all wrappers."""
    return innermost(state.inner) if hasattr(state, "inner") else state


def with_innermost(state, **fields):
    """A sampler's state with other fields within all wrappers."""
    if hasattr(state, "inner"):
        return state._replace(inner=with_innermost(state.inner, **fields))
    return state._replace(**fields)


@contextlib.contextmanager
def accelerator():
    """Lets isjax run on this CPU what it would run on an accelerator, all of it traced anew."""
    choose = jax.lax.platform_dependent
    jax.clear_caches()
    jax.lax.platform_dependent = lambda *args, default, **platforms: default(*args)
    try:
        yield
    finally:
        jax.lax.platform_dependent = choose
        jax.clear_caches()


@functools.cache
def compiled(sampler):
    """Returns the sampler with its functions jitted, to compile once for each shape."""
    return sampler._replace(
        init=jax.jit(sampler.init, static_argnums=1),
        sample=jax.jit(sampler.sample),
        update=jax.jit(sampler.update),
    )
