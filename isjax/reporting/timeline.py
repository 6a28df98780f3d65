"""Time of a training step by part, measured with the profiler of JAX."""

import pathlib
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

__all__ = ["PARTS", "PartTime", "time_by_part"]

# Named scopes of a training step, set in isjax.training and isjax.samplers, and their labels.
PARTS = {
    "score": "scoring",
    "draw": "drawing",
    "train": "training",
    "learn": "training the scorer",
    "buffer": "score buffer",
    "diagnose": "diagnostics",
    "other": "other",
}
_MAX_SECONDS, _MAX_CALLS = 0.5, 20


class PartTime(NamedTuple):
    """Cost of one part of a program in one call.

    Attributes:
        seconds: Sum over its operations, although some may run at the same time.
        operations: Number of operations run; each pass through a loop counts.
    """

    seconds: float
    operations: float


def time_by_part(
    call: Callable[[], Any], program: jax.stages.Compiled, max_calls: int = _MAX_CALLS
) -> dict[str, PartTime] | None:
    """Measures the time and the number of operations of each part of a program.

    Runs the program for half a second, but at least once and at most `max_calls` times. An
    operation that XLA fused from several parts counts for the part of its result. "other" holds
    copies and operations that XLA adds. The trace takes half a megabyte of memory for each step.

    Args:
        call: Runs the program once and returns its results.
        program: Compiled step of `make_train_step`.
        max_calls: Most calls.

    Returns:
        Costs by the names in `PARTS`; None if another trace is running, or if the device reports no
        operations.
    """
    with tempfile.TemporaryDirectory() as folder:
        calls = _trace(call, folder, max_calls)
        operations = _operations(pathlib.Path(folder)) if calls else []
    if not operations:
        return None
    scope = _scopes(program.as_text() or "")
    totals = dict.fromkeys(PARTS, PartTime(0.0, 0.0))
    for name, own in operations:
        part = scope.get(name, "other")
        seconds, number = totals[part]
        totals[part] = PartTime(seconds + own * 1e-9 / calls, number + 1 / calls)
    return totals


def _trace(call: Callable[[], Any], folder: str, max_calls: int) -> int:
    """Traces repeated calls into a folder; returns their number, 0 if another trace is running."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    try:
        jax.profiler.start_trace(folder, profiler_options=options)
    except RuntimeError:  # only one trace can run at a time
        return 0
    try:
        start, calls = time.perf_counter(), 0
        while calls < max_calls and time.perf_counter() - start < _MAX_SECONDS:
            jax.block_until_ready(call())
            calls += 1
    finally:
        jax.profiler.stop_trace()
    return calls


def _operations(folder: pathlib.Path) -> list[tuple[str, float]]:
    """Reads a trace; returns the name and the own nanoseconds of each operation run."""
    found = []
    with warnings.catch_warnings():
        # Creating jaxlib's types warns on Python 3.13; as an error, that warning ends the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        for path in folder.rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines:
                    found += _own_times(line.events)
    return found


def _own_times(events: Iterable[Any]) -> list[tuple[str, float]]:
    """Returns each operation of a thread and its nanoseconds without those of nested operations."""
    spans = []
    for event in events:
        operation = dict(event.stats).get("hlo_op")
        if operation is not None:
            spans.append((event.start_ns, -event.duration_ns, str(operation)))
    own, enclosing = [], []  # enclosing: (end, index into own) of operations that have not ended
    for start, negative, name in sorted(spans):
        while enclosing and enclosing[-1][0] <= start:
            enclosing.pop()
        if enclosing:
            own[enclosing[-1][1]][1] += negative
        enclosing.append((start - negative, len(own)))
        own.append([name, -negative])
    return [(name, max(duration, 0.0)) for name, duration in own]


def _scopes(text: str) -> dict[str, str]:
    """Returns the part of each operation in a program's text: its innermost named scope in `PARTS`.

    A fusion without a name gets the part of most operations in it. The text is the only source of
    the scopes: the instructions of `HloModule` have no metadata in Python.
    """
    found: dict[str, str] = {}
    computations: dict[str, Counter[str]] = {}  # parts of the operations in each computation
    current: Counter[str] = Counter()
    for line in text.splitlines():
        if line.endswith("{") and not line[0].isspace():
            name = line.removeprefix("ENTRY ").partition(" (")[0].lstrip("%")
            current = computations.setdefault(name, Counter())
            continue
        name, is_operation, operation = line.strip().removeprefix("ROOT ").partition(" = ")
        if not is_operation:
            continue
        name, scopes = name.lstrip("%"), _between(operation, 'op_name="', '"')
        if scopes is not None:
            part = next((s for s in reversed(scopes.split("/")) if s in PARTS), "other")
            current[part] += 1
            found[name] = part
        elif (fused := _between(operation, "calls=", ",")) is not None:
            parts = computations.get(fused.strip().lstrip("%")) or Counter(["other"])
            found[name] = parts.most_common(1)[0][0]
    return found


def _between(text: str, start: str, end: str) -> str | None:
    """Returns the text after `start`, up to the next `end`; None if there is no `start`."""
    _, found, rest = text.partition(start)
    return rest.partition(end)[0] if found else None
