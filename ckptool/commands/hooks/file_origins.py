"""FileOrigins: which file, and which place in it, the tensors of a state_dict came from."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from threading import Lock
from typing import Final

from msgspec import Struct
from torch import Tensor

_MAX_TENSORS: Final = 200_000
"""Tensors of one file that are remembered."""
_MAX_DEPTH: Final = 6
_MAX_COMPARED: Final = 64
"""Tensors of a state_dict whose origin is looked up."""


class StateOrigin(Struct, frozen=True):
    """The file of a state_dict and its place in it."""

    path: str
    at: str
    """Dotted key path, "" for the top level."""


class FileOrigins:
    """Remembers tensors that were loaded from files, as long as they are alive."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._origins: dict[int, tuple[weakref.ref[Tensor], str, StateOrigin]] = {}
        """Id of a tensor -> the tensor, its key, and the mapping that it was in."""

    def record(self, loaded: object, path: str) -> None:
        """Remember the tensors in nested mappings that were loaded from `path`."""
        with self._lock:
            for at, key, tensor in islice(_iter_tensors(loaded, "", 0), _MAX_TENSORS):
                reference = weakref.ref(tensor, self._build_cleanup(id(tensor)))
                self._origins[id(tensor)] = reference, key, StateOrigin(path, at)

    def find(self, state_dict: Mapping[str, object]) -> StateOrigin | None:
        """Return where all tensors of a state_dict came from, under the keys that they have now.

        None if one of those looked at came from elsewhere, or has another key in the file.
        """
        found: set[StateOrigin] = set()
        for _, key, value in islice(_iter_tensors(state_dict, "", 0), _MAX_COMPARED):
            entry = self._origins.get(id(value))
            if entry is None or entry[0]() is not value or entry[1] != key:
                return None
            found.add(entry[2])
        if len(found) > 1:  # a whole training checkpoint: its states are at several places
            found = {StateOrigin(origin.path, "") for origin in found}
        return found.pop() if len(found) == 1 else None

    def _build_cleanup(self, tensor_id: int) -> Callable[[object], None]:
        origins = self._origins

        def forget(reference: object) -> None:
            entry = origins.get(tensor_id)
            if entry is not None and entry[0] is reference:
                del origins[tensor_id]

        return forget


def _iter_tensors(value: object, at: str, depth: int) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (place of the mapping, key, tensor) of nested mappings."""
    if not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        return
    for key, item in value.items():
        if isinstance(item, Tensor):
            yield at, str(key), item
        else:
            yield from _iter_tensors(item, f"{at}.{key}" if at else str(key), depth + 1)
