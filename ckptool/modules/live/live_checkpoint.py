"""Live module or state_dict -> Checkpoint whose bytes are in this process's memory.

What the object saves is pickled as torch.save does, without the bytes of its storages, and read by
the reader of files: a live object and its file have the same states, entries and fingerprints.
"""

import ctypes
import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.serialization import location_tag

from ckptool.errors import ModuleError, UsageError
from ckptool.formats.files.memory import forget_memory, register_memory
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.nodes import PickleTreeError
from ckptool.formats.pickle.reader import parse_whole_pickle
from ckptool.formats.pickle.states import describe_tree
from ckptool.formats.pickle.storage_ids import check_repeated_id, parse_storage_id
from ckptool.formats.pickle.tensors.storage import SavedStorage
from ckptool.model import (
    Checkpoint,
    Container,
    Kind,
    PlainEntry,
    Skipped,
    Span,
    StateDict,
    StorageInfo,
    TensorInfo,
)
from ckptool.modules.live.snapshot import PythonValue, take_snapshot
from ckptool.modules.module_info import call_state_dict
from ckptool.modules.tensors.tensor_info import ModuleStorages, describe_tensor
from ckptool.modules.tensors.tensor_parts import find_memory_address
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import FoundTensor, walk_module
from ckptool.phrases import MAX_NAMED, join_limited, quote_code

_PROTOCOL: Final = 2
"""Pickle protocol of torch.save."""


class LiveObjects:
    """Describes live objects; their bytes can be read until the block ends."""

    def __init__(self, limits: Limits, *, with_attributes: bool = False) -> None:
        """With `with_attributes`, numbers and text in attributes of modules are described too."""
        self._limits = limits
        self._with_attributes = with_attributes
        self._paths: dict[int, Path] = {}
        """Address of a storage object -> the path of its bytes."""
        self._kept: list[object] = []
        """Keeps the described storages alive, so that no address is used twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for path in self._paths.values():
            forget_memory(path)
        self._kept.clear()

    def describe(self, live_object: object) -> Checkpoint:
        """Describe a module, or a mapping with tensors in it as torch.save would write it.

        Raises:
            ModuleError: the module cannot be examined.
            UsageError: the mapping has no tensors, or cannot be pickled.
        """
        name = type(live_object).__qualname__
        if isinstance(live_object, nn.Module):
            saved = self._describe_saved(call_state_dict(live_object, name), f"<{name}>")
            return self._add_module_state(saved, live_object, name)
        checkpoint = self._describe_saved(live_object, f"<{name}>")
        if not any(state.tensors for state in checkpoint.states):
            raise UsageError(f"a {name} without tensors was given: expected a state_dict")
        return checkpoint

    def _describe_saved(self, value: object, label: str) -> Checkpoint:
        pickler = _StoragePickler()
        try:
            with warnings.catch_warnings(), user_code():
                warnings.simplefilter("ignore")  # of torch, that typed storages are deprecated
                pickler.dump(value)
        except UserCodeError as error:
            raise UsageError(f"{label} cannot be described: pickling it raised {error}") from error
        parsed = parse_whole_pickle(pickler.content, self._limits)
        if parsed.error:
            raise UsageError(f"{label} cannot be described: {parsed.error}")
        stored: dict[str, SavedStorage] = {}
        try:
            for node in parsed.persistent_references:
                storage_id = parse_storage_id(node)
                if storage_id.key in stored:
                    node.target = check_repeated_id(stored[storage_id.key], storage_id)
                    continue
                storage = pickler.storages[int(storage_id.key)]
                span = self.locate_storage(storage, storage_id.nbytes)
                info = StorageInfo(storage_id.key, storage_id.nbytes, storage_id.location, span)
                node.target = SavedStorage(info, storage_id.dtype, storage_id.numel)
                stored[storage_id.key] = node.target
            tree = describe_tree(parsed.root, self._limits)
        except PickleTreeError as error:
            raise UsageError(f"{label} cannot be described: {error}") from error
        return Checkpoint(
            Path(label),
            Container.LIVE,
            sum(storage.info.nbytes for storage in stored.values()),
            tuple(tree.states),
            tuple(tree.entries),
            skipped=tuple(tree.skipped),
            opaque=tuple(tree.opaque),
            contents=dict(tree.contents),
        )

    def _add_module_state(self, saved: Checkpoint, module: nn.Module, name: str) -> Checkpoint:
        """Return the checkpoint with the kinds of its tensors, and with those that are not saved.

        Raises:
            ModuleError: walking through the module raises.
        """
        try:
            with user_code():
                walk = walk_module(module)
                values = take_snapshot(module).python_values
        except UserCodeError as error:
            raise ModuleError(name, f"walking through it raised {error}") from error
        others = [state for state in saved.states if state.at]
        (root,) = [state for state in saved.states if not state.at] or [StateDict("", {})]
        registered = [tensor for tensor in walk.tensors if tensor.is_registered]
        kinds = {tensor.path: tensor.kind for tensor in registered}
        registered_ids = {id(tensor.value) for tensor in registered}
        storages = _MemoryStorages(self)
        unsaved = {
            found_tensor.path: self._describe_found(found_tensor, storages)
            for found_tensor in walk.tensors
            if not (found_tensor.is_registered and found_tensor.path in root.tensors)
            and (found_tensor.is_registered or id(found_tensor.value) not in registered_ids)
        }
        tensors = {
            key: replace(tensor, kind=kinds.get(key, Kind.ATTRIBUTE))
            for key, tensor in root.tensors.items()
        }
        state = replace(root, tensors=tensors, unsaved_tensors=unsaved)
        compared = values if self._with_attributes else {}
        attributes = {path: value.text for path, value in compared.items()}
        entries = (PlainEntry(path, text) for path, text in attributes.items())
        return replace(
            saved,
            states=(state, *others),
            entries=(*saved.entries, *entries),
            contents={**saved.contents, **attributes},
            skipped=(*saved.skipped, *(() if self._with_attributes else _skip_attributes(values))),
        )

    def _describe_found(self, found_tensor: FoundTensor, storages: "_MemoryStorages") -> TensorInfo:
        value = found_tensor.value
        if isinstance(value, Tensor):
            value = value.detach()
            if value.layout is torch.strided and not value.is_quantized and not value.is_nested:
                value = value.resolve_conj().resolve_neg()
        elif not value.dtype.hasobject:
            value = _convert_array(value)
        self._kept.append(value)
        return describe_tensor(found_tensor.path, value, found_tensor.kind, storages)

    def locate_storage(self, storage: Any, nbytes: int) -> Span | None:
        """Return the span of a storage's bytes; None if it has none, as on meta."""
        if storage.device.type == "meta":
            return None
        address = int(storage._cdata)  # noqa: SLF001
        if address not in self._paths:
            self._kept.append(storage)
            self._paths[address] = register_memory(nbytes, lambda: _view_bytes(storage))
        return Span(self._paths[address], 0, nbytes)


class _StoragePickler(pickle.Pickler):
    """Pickles as torch.save does; the storages are left out and listed."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        super().__init__(self._buffer, protocol=_PROTOCOL)
        self.storages: list[Any] = []
        self._numbers: dict[int, int] = {}

    @property
    def content(self) -> bytes:
        return self._buffer.getvalue()

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        """Return the id of a storage as torch.save writes it; None for another object."""
        if isinstance(obj, torch.storage.TypedStorage):
            storage, numel = obj._untyped_storage, obj._size()  # type: ignore[no-untyped-call] # noqa: SLF001
            storage_type: Any = getattr(torch, obj._pickle_storage_type())  # type: ignore[no-untyped-call] # noqa: SLF001
        elif isinstance(obj, torch.UntypedStorage):
            storage, numel, storage_type = obj, obj.nbytes(), torch.UntypedStorage
        else:
            return None
        number = self._numbers.setdefault(int(storage._cdata), len(self.storages))  # noqa: SLF001
        if number == len(self.storages):
            self.storages.append(storage)
        return ("storage", storage_type, str(number), location_tag(storage), numel)


class _MemoryStorages(ModuleStorages):
    """Storages of tensors that are not saved, with the spans of their bytes."""

    def __init__(self, live_objects: LiveObjects) -> None:
        super().__init__()
        self._live_objects = live_objects

    def describe_storage(self, tensor: Tensor) -> StorageInfo | None:
        info = super().describe_storage(tensor)
        if info is None or find_memory_address(tensor) is None:
            return info
        storage = tensor.untyped_storage()
        span = self._live_objects.locate_storage(storage, info.nbytes)
        return replace(info, key=f"unsaved {info.key}", span=span)


def _skip_attributes(values: Mapping[str, PythonValue]) -> Iterator[Skipped]:
    """Yield the check that a file has nothing for: attributes that classes of the user set."""
    paths = [path for path, value in values.items() if not value.owner.startswith("torch.")]
    if paths:
        names = join_limited(paths, MAX_NAMED, quote_code)
        yield Skipped("attributes of the module", f"a state_dict does not contain {names}")


def _convert_array(array: Any) -> Any:
    """Return a NumPy array as a tensor; itself if torch has no such dtype."""
    import numpy as np

    try:
        return torch.from_numpy(np.ascontiguousarray(array).copy())
    except TypeError:
        return array


def _view_bytes(storage: Any) -> memoryview:
    """Return the bytes of a storage; those on another device are copied."""
    local = storage if storage.device.type == "cpu" else storage.cpu()
    buffer = (ctypes.c_ubyte * local.nbytes()).from_address(local.data_ptr())
    buffer._storage = local  # noqa: SLF001 - it lives as long
    return memoryview(buffer).cast("B")
