"""Context in which a framework runs: without a network, and without its messages."""

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_SETTINGS: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    # Tensors are read in the calling thread: a recorder of operators is one of a thread.
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
}
"""Environment variables of the frameworks, read at their import or later."""


class NetworkRefusedError(OSError):
    """A framework asked for the network while it built or loaded a module."""


@contextmanager
def run_offline() -> Iterator[None]:
    """Refuse connections, and set the frameworks' variables for it; restore both on exit."""
    old_values = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    old_connect, old_lookup = socket.socket.connect, socket.getaddrinfo
    old_level = logging.root.manager.disable
    socket.socket.connect = _refuse_connection  # type: ignore[method-assign]
    socket.getaddrinfo = _refuse_connection
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(old_level)
        socket.socket.connect = old_connect  # type: ignore[method-assign]
        socket.getaddrinfo = old_lookup
        for name, value in old_values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _refuse_connection(*_: Any, **__: Any) -> Any:
    raise NetworkRefusedError("ckptool runs frameworks without a network")
