"""Tensors that were read from files -> their file and key, by identity of tensor and storage."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from torch import Tensor

_MAX_NODES = 200_000
"""Maximum values of a loaded or saved object that are visited."""


class TensorOrigin(Struct, frozen=True):
    """Where a tensor was read from."""

    file: str
    place: tuple[str, ...]
    """Keys that lead to it from the root of the file."""


def iter_places(value: object) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (keys, value) for all values inside dicts, lists and tuples, containers included."""
    stack: list[tuple[tuple[str, ...], Any]] = [((), value)]
    visited_ids: set[int] = set()
    for _ in range(_MAX_NODES):
        if not stack:
            return
        place, current = stack.pop()
        yield place, current
        if isinstance(current, dict | list | tuple):
            if id(current) in visited_ids:
                continue
            visited_ids.add(id(current))
            items = current.items() if isinstance(current, dict) else enumerate(current)
            stack.extend(((*place, str(key)), child) for key, child in list(items)[::-1])


def identify_storage(tensor: "Tensor") -> int | None:
    """Return the address of a tensor's storage object, None if it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except (RuntimeError, NotImplementedError):  # sparse, wrapper subclass
        return None


class TensorOrigins:
    """What was read in this process. Holds no tensor: a freed one is forgotten."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Any, list[tuple[int, TensorOrigin]]]] = {}
        """Address of a storage -> weak reference to it, and (offset, origin) of its tensors."""

    def record_file(self, file: str, content: object) -> None:
        """Remember the tensors in `content`, which was read from `file`."""
        import torch
        from torch.multiprocessing.reductions import StorageWeakRef

        make_reference: Any = StorageWeakRef
        self._drop_freed()
        for place, value in iter_places(content):
            if not isinstance(value, torch.Tensor):
                continue
            address = identify_storage(value)
            if address is None:
                continue
            entry = self._entries.get(address)
            if entry is None or entry[0].expired():
                entry = self._entries[address] = (make_reference(value.untyped_storage()), [])
            entry[1].append((int(value.storage_offset()), TensorOrigin(file, place)))

    def find_origin(self, tensor: "Tensor", name: str) -> TensorOrigin | None:
        """Return where a tensor was read from, None if it was not.

        Of tied tensors, which share a storage, the one of the same `name` is preferred.
        """
        address = identify_storage(tensor)
        entry = self._entries.get(address) if address is not None else None
        if entry is None or entry[0].expired():
            return None
        candidates = [origin for offset, origin in entry[1] if offset == tensor.storage_offset()]
        named = [origin for origin in candidates if origin.place and origin.place[-1] == name]
        return next(iter(named or candidates), None)

    def _drop_freed(self) -> None:
        freed = [address for address, entry in self._entries.items() if entry[0].expired()]
        for address in freed:
            del self._entries[address]
