"""Address of a Dask scheduler -> BatchRunner that sends its batches to the cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ckptool.errors import UsageError, WorkerError
from ckptool.values.batches.batch_runner import BatchRunner

_BATCHES_PER_THREAD: Final = 4
"""Batches that may be pending for each thread of the cluster."""
_CONNECT_TIMEOUT: Final = "10s"


@contextmanager
def dask_batch_runner(
    address: str, progress: Callable[[int], None] | None
) -> Iterator[BatchRunner]:
    """Yield a BatchRunner on a Dask cluster, whose workers must see the files at the same paths.

    Raises:
        UsageError: `distributed` is not installed, or no scheduler answers at `address`.
        WorkerError: workers died repeatedly, cannot import the code, or the work was cancelled.
    """
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise UsageError(
            f"--dask {address}: needs Dask: pip install 'ckptool[cluster]' ({error})"
        ) from error
    from concurrent.futures import CancelledError

    try:
        client = distributed.Client(address, timeout=_CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--dask {address}: no Dask scheduler responds: {error}") from error
    with client:
        max_pending = _BATCHES_PER_THREAD * max(1, sum(client.nthreads().values()))
        try:
            yield BatchRunner(
                executor=client.get_executor(),
                max_pending=max_pending,
                folder=Path.cwd(),
                progress=progress,
            )
        except distributed.KilledWorker as error:
            raise WorkerError(f"--dask {address}: {error}") from error
        except ImportError as error:
            reason = f"its workers cannot import a required package: {error}"
            raise WorkerError(f"--dask {address}: {reason}") from error
        except CancelledError as error:
            raise WorkerError(f"--dask {address}: the work was cancelled on the cluster") from error
