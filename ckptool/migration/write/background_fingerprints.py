"""StateDict -> fingerprints by key, computed in a background thread."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Final, Self

from ckptool.model import StateDict, TensorInfo
from ckptool.values.batches.batch_runner import is_threadable
from ckptool.values.fingerprint import create_hasher
from ckptool.values.fingerprint_many import fingerprint_many

_BATCH_NBYTES: Final = 64 << 20
"""Bytes per batch; the stop flag is checked between batches."""

Fingerprints = Mapping[str, str | None]
"""Key -> fingerprint; None if only torch can read the elements."""


class BackgroundFingerprints:
    """Computes fingerprints of state_dicts in a background thread; stops on exit."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._stop = Event()
        self._futures: dict[str, Future[Fingerprints]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def start_fingerprints(self, state: StateDict) -> None:
        """Start computing the fingerprints of a state_dict, unless threads do not gain by it."""
        # Here, not in the thread: while it runs, a module's code may have changed sys.path.
        create_hasher()
        if is_threadable(state.nbytes, len(state.tensors)):
            self._submit(state)

    def get_fingerprints(self, state: StateDict) -> Fingerprints:
        """Wait for the fingerprints of a state_dict, and return them by key.

        Raises:
            ReadError: the source can no longer be read.
        """
        return self._submit(state).result()

    def _submit(self, state: StateDict) -> Future[Fingerprints]:
        """Return the future of a state_dict's fingerprints, which are computed once."""
        if state.at not in self._futures:
            self._futures[state.at] = self._pool.submit(self._compute_fingerprints, state.tensors)
        return self._futures[state.at]

    def _compute_fingerprints(self, tensors: Mapping[str, TensorInfo]) -> Fingerprints:
        fingerprints: dict[str, str | None] = {}
        for keys in _iter_batches(tensors):
            if self._stop.is_set():
                break
            batch = fingerprint_many([tensors[key] for key in keys], jobs=1)
            fingerprints |= zip(keys, batch, strict=True)
        return fingerprints


def _iter_batches(tensors: Mapping[str, TensorInfo]) -> Iterator[list[str]]:
    batch, total_nbytes = list[str](), 0
    for key, tensor in tensors.items():
        batch.append(key)
        total_nbytes += tensor.nbytes
        if total_nbytes >= _BATCH_NBYTES:
            yield batch
            batch, total_nbytes = [], 0
    yield batch
