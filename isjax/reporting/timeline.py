"""Where the time of a step goes, as the profiler of JAX sees the compiled program run."""

import pathlib
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

__all__ = ["PARTS", "Spent", "shares", "spent"]

# The named scopes of a step (isjax.training, isjax.samplers._importance, isjax.tree_sampler), and in words.
PARTS = {
    "score": "scoring",
    "draw": "drawing",
    "train": "training",
    "learn": "training the scorer",
    "buffer": "score buffer",
    "diagnose": "diagnostics",
    "other": "other",
}
_MOST_SECONDS, _MOST_CALLS = 0.5, 20


class Spent(NamedTuple):
    """What a part of a program takes in one call.

    Attributes:
        seconds: of its operations, added up, though some may run side by side.
        operations: that were run, each pass through a loop counted.
    """

    seconds: float
    operations: float


def shares(call: Callable[[], Any], program: jax.stages.Compiled) -> dict[str, float] | None:
    """The share of each of `PARTS` in the time that the operations of a program take; see `spent`.

    Returns:
        By part; or None, as `spent` does.
    """
    seconds = {part: took.seconds for part, took in (spent(call, program) or {}).items()}
    whole = sum(seconds.values())
    return {part: took / whole for part, took in seconds.items()} if whole else None


def spent(call: Callable[[], Any], program: jax.stages.Compiled) -> dict[str, Spent] | None:
    """What each of `PARTS` takes of a program.

    Costs half a second, or one call. An operation that XLA fused out of several parts counts for
    the one that its result belongs to; "other" are copies, and what XLA itself adds.

    Args:
        call: runs the program once, and returns its results.
        program: compiled, of a step of `make_train_step`.

    Returns:
        By part; or None if nothing was seen, be it that a trace is being taken already, or that the
        device does not tell.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        try:
            jax.profiler.start_trace(folder, profiler_options=options)
        except RuntimeError:  # there is one trace at a time
            return None
        try:
            start, calls = time.perf_counter(), 0
            while calls < _MOST_CALLS and time.perf_counter() - start < _MOST_SECONDS:
                jax.block_until_ready(call())
                calls += 1
        finally:
            jax.profiler.stop_trace()
        operations = _operations(pathlib.Path(folder))
    scope = _scopes(program.as_text() or "")
    totals = dict.fromkeys(PARTS, Spent(0.0, 0.0))
    for name, own in operations:
        part = scope.get(name, "other")
        seconds, number = totals[part]
        totals[part] = Spent(seconds + own * 1e-9 / calls, number + 1 / calls)
    return totals if operations else None


def _operations(folder: pathlib.Path) -> list[tuple[str, float]]:
    """What a trace saw run: the name of each operation, and its own nanoseconds."""
    found = []
    with warnings.catch_warnings():
        # Python 3.13 warns of jaxlib's types as they are made, and where a warning is an error that
        # ends the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        for path in folder.rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines:
                    found += _own_times(line.events)
    return found


def _own_times(events: Iterable[Any]) -> list[tuple[str, float]]:
    """Each operation of a thread, and its nanoseconds without those of operations within it."""
    spans = []
    for event in events:
        operation = dict(event.stats).get("hlo_op")
        if operation is not None:
            spans.append((event.start_ns, -event.duration_ns, str(operation)))
    own, open_ = [], []  # open_: (end, place in own) of the operations that the next may be within
    for start, negative, name in sorted(spans):
        while open_ and open_[-1][0] <= start:
            open_.pop()
        if open_:
            own[open_[-1][1]][1] += negative
        open_.append((start - negative, len(own)))
        own.append([name, -negative])
    return [(name, max(duration, 0.0)) for name, duration in own]


def _scopes(text: str) -> dict[str, str]:
    """The part of each operation of a program, by the innermost of the named scopes it is in.

    One that XLA gave no name belongs where most of what it fuses does.
    """
    found: dict[str, str] = {}
    fused: dict[str, Counter[str]] = {}  # by the name of a computation, its operations by part
    within: Counter[str] = Counter()
    for line in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            within = fused.setdefault(opened[1], Counter())
        named = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
        if not named:
            continue
        if path := re.search(r'op_name="([^"]*)"', line):
            part = ["other", *(part for part in path[1].split("/") if part in PARTS)][-1]
            within[part] += 1
        elif called := re.search(r"calls=%?([\w.\-]+)", line):
            part = (fused.get(called[1]) or Counter(["other"])).most_common(1)[0][0]
        else:
            continue
        found[named[1]] = part
    return found
