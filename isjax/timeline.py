"""Where the time of a step goes, as the profiler of JAX sees the compiled program run."""

import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

__all__ = ["PARTS", "shares"]

# The named scopes of a step (isjax.training, isjax.sampler, isjax.tree_sampler), and in words.
PARTS = {
    "score": "scoring",
    "draw": "drawing",
    "train": "training",
    "observe": "scorer and buffer",
    "diagnose": "diagnostics",
    "other": "other",
}
_MOST_SECONDS, _MOST_CALLS = 0.5, 20


def shares(call: Callable[[], Any], program: jax.stages.Compiled) -> dict[str, float] | None:
    """The share of each of `PARTS` in the time that the operations of a program take.

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
            start = time.perf_counter()
            for _ in range(_MOST_CALLS):
                jax.block_until_ready(call())
                if time.perf_counter() - start > _MOST_SECONDS:
                    break
        finally:
            jax.profiler.stop_trace()
        spent: dict[str, float] = {}
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines:
                    for name, own in _own_times(line.events):
                        spent[name] = spent.get(name, 0.0) + own
    scope = _scopes(program.as_text() or "")
    totals = dict.fromkeys(PARTS, 0.0)
    for name, own in spent.items():
        totals[scope.get(name, "other")] += own
    whole = sum(totals.values())
    return {part: total / whole for part, total in totals.items()} if whole else None


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
    """The part of each operation of a program, by the innermost of the named scopes it is in."""
    found = {}
    for name, path in re.findall(r'%?([\w.\-]+) = [^\n]*?op_name="([^"]*)"', text):
        inside = [part for part in path.split("/") if part in PARTS]
        found[name] = inside[-1] if inside else "other"
    return found
