"""Loads batches in background threads (grain) as soon as their ids are chosen."""

import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from isjax.base import Array, Batch, PyTree
from isjax.data.source import Source
from isjax.parallel.mesh import DATA, make_mesh
from isjax.parallel.sharding import bounds

__all__ = ["Loader"]

_FOREVER = 2**62  # batches


class Loader(Iterator[Batch]):
    """Iterator over batches of a `Source`, on the devices, in the order in which ids were posted.

    Post the ids of one more batch for each batch taken; the next one otherwise never comes:

        with Loader(source, pending(state.sampler)) as loader:
            for batch in loader:
                state, metrics = step(state, batch)
                loader.post(metrics["chosen"])

    Posted ids may be an array that is still being computed: the loading thread waits for it while
    training continues. Use it as a context manager, so that its threads end.
    """

    def __init__(self, source: Source, pending: Array, mesh: Mesh | None = None):
        """Starts to load the first batches.

        Args:
            source: examples to read.
            pending: [d + 1, b] int32, ids of the batches chosen so far; d + 1 batches are loaded at
                the same time, each in a thread. Examples that plain Python makes hold the
                interpreter's lock, so that more threads make them slower.
            mesh: devices; batches are divided along its data axis, and each process loads only the
                part that its own devices hold. None = the default device.

        Raises:
            ImportError: if grain is not installed.
        """
        try:
            import grain
        except ImportError as error:
            raise ImportError(
                "loading needs grain: pip install '.[run]' in a checkout of isjax"
            ) from error
        ahead, self._batch_size = pending.shape
        mesh = make_mesh(data=1) if mesh is None else mesh
        self._source, self._mesh = source, mesh
        self._sharding = NamedSharding(mesh, P(DATA))
        places = self._sharding.addressable_devices_indices_map((self._batch_size,)).values()
        starts, stops = zip(*(bounds(place, self._batch_size) for place in places), strict=True)
        self._rows = slice(min(starts), max(stops))
        self._queue = _Queue()
        self.post(jnp.copy(pending))  # a step that takes their state's buffers deletes them
        options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
        batches = grain.MapDataset.source(self._queue).map(lambda ids: source[ids[self._rows]])
        self._batches = iter(batches.to_iter_dataset(options))

    def post(self, chosen: Array) -> None:
        """Queues batches behind those posted before.

        Args:
            chosen: [b] int32, ids of a batch, or [n, b], of n batches.

        Raises:
            ValueError: if the batches have another size.
        """
        if chosen.ndim not in (1, 2) or chosen.shape[-1] != self._batch_size:
            raise ValueError(
                f"got ids of shape {chosen.shape} for batches of {self._batch_size}; post "
                f"({self._batch_size},), or (n, {self._batch_size}) for n batches"
            )
        numbers = [()] if chosen.ndim == 1 else range(chosen.shape[0])
        for number in numbers:
            self._queue.post(chosen, number)

    def sample(self) -> Batch:
        """Reads a batch of the first examples, without taking one of the queue."""
        ids = np.arange(self._batch_size)[self._rows] % len(self._source)
        return self._place(self._source[ids])

    def __next__(self) -> Batch:
        """Waits for the next batch of the queue and returns it: a pytree of arrays [b, ...].

        Raises:
            ValueError: if an example cannot be read.
        """
        return self._place(next(self._batches))

    def __enter__(self) -> "Loader":
        """Returns the loader itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the loading threads."""
        self._queue.close()

    def _place(self, batch: PyTree) -> Batch:
        if self._mesh.size == 1:
            return jax.device_put(batch)

        def of_array(x: np.ndarray) -> Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                start, stop = bounds(index, self._batch_size)
                return x[start - self._rows.start : stop - self._rows.start]

            shape = (self._batch_size, *x.shape[1:])
            return jax.make_array_from_callback(shape, self._sharding, part)

        return jax.tree.map(of_array, batch)


class _Queue:
    """Endless sequence of the ids of batches; reading one that is not yet posted waits for it."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._posted: dict[int, tuple[Array, Any]] = {}
        self._next, self._closed = 0, False

    def post(self, chosen: Array, number: Any) -> None:
        with self._news:
            self._posted[self._next] = chosen, number
            self._next += 1
            self._news.notify_all()

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()

    def __len__(self) -> int:
        return _FOREVER

    def __getitem__(self, index: int) -> np.ndarray:
        with self._news:
            self._news.wait_for(lambda: index in self._posted or self._closed)
            if self._closed:
                raise RuntimeError("the loader is closed")
            chosen, number = self._posted.pop(index)
        return np.asarray(chosen.addressable_data(0))[number]
