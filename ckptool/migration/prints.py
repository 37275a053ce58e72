"""StateDict -> fingerprints by key, computed in a background thread."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Final, Self

from ckptool.model import State, TensorInfo
from ckptool.values import fingerprint_many

_BATCH: Final = 64 << 20
"""Bytes per batch; the stop flag is checked between batches."""

Fingerprints = Mapping[str, str | None]
"""Key -> fingerprint; None if only torch can read the elements."""


class Prints:
    """Computes fingerprints of state_dicts in a background thread; stops on exit."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._stop = Event()
        self._running: dict[str, Future[Fingerprints]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def start(self, state: State) -> None:
        """Start computing the fingerprints of a state_dict, once."""
        if state.at not in self._running:
            self._running[state.at] = self._pool.submit(self._take, state.tensors)

    def of(self, state: State) -> Fingerprints:
        """Wait for the fingerprints of a state_dict, and return them by key.

        Raises:
            ReadError: the source can no longer be read.
        """
        self.start(state)
        return self._running[state.at].result()

    def _take(self, tensors: Mapping[str, TensorInfo]) -> Fingerprints:
        found: dict[str, str | None] = {}
        for keys in _batches(tensors):
            if self._stop.is_set():
                break
            some = fingerprint_many([tensors[key] for key in keys], jobs=1)
            found |= zip(keys, some, strict=True)
        return found


def _batches(tensors: Mapping[str, TensorInfo]) -> Iterator[list[str]]:
    batch, total = list[str](), 0
    for key, tensor in tensors.items():
        batch.append(key)
        total += tensor.nbytes
        if total >= _BATCH:
            yield batch
            batch, total = [], 0
    yield batch
