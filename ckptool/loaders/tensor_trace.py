"""TensorTrace: of which tensors of a file a loader makes the tensors of a module, by what."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from msgspec.structs import replace
from torch import Tensor

from ckptool.compare.framework.loading_info import TensorConversion
from ckptool.compare.load_outcome import LoadStepKind
from ckptool.model import natural_sort_key
from ckptool.modules.dispatch_mode import DispatchMode

_WORDS: Final = {
    "stack": "stacked",
    "cat": "concatenated",
    "slice": "split",
    "split": "split",
    "split_with_sizes": "split",
    "index_select": "permuted",
    "index": "permuted",
    "flip": "permuted",
    # These keep the elements as they are; what changes them shows in strides and shapes.
    "_to_copy": "",
    "copy_": "",
    "clone": "",
    "detach": "",
    "alias": "",
    "view": "",
    "_unsafe_view": "",
    "contiguous": "",
    "_reshape_copy": "",
}
"""Operator -> what it does to tensors of the file; "" says nothing."""
_FILLED_OPERATORS: Final = frozenset({"empty", "empty_like", "empty_strided", "new_empty"})
_MAX_SOURCES: Final = 1_000_000
"""Maximum number of pairs of result and source that are recorded."""


class TensorTrace(DispatchMode):
    """While entered, records for each storage from which tensors of a file it is computed.

    It works on meta, where no element is read or computed.
    """

    def __init__(self, state: Mapping[str, Any], fill: int) -> None:
        """Make a trace.

        Args:
            state: the tensors of the file, by key.
            fill: what uninitialized memory is filled with outside meta, so that it can be seen.
        """
        super().__init__()
        self._fill = fill
        self._sources: dict[int, frozenset[str]] = {}
        self._words: dict[int, tuple[str, ...]] = {}
        self._sizes: dict[int, tuple[int, ...]] = {}
        self._kept: list[Tensor] = []
        """Tensors that were seen: the id of a storage is given again once it is gone."""
        self._recorded = 0
        self._overwritten_keys: dict[str, str] = {}
        """Key of the file -> the key whose tensor was copied over it later."""
        for key, tensor in state.items():
            if isinstance(tensor, Tensor):
                storage = identify_storage(tensor)
                self._sources[storage] = self._sources.get(storage, frozenset()) | {key}
                self._sizes[storage] = tuple(tensor.shape)
                self._kept.append(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and record what its result is made of."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _FILLED_OPERATORS:
            if not result.is_meta:
                result.fill_(self._fill)
            return result
        if name == "copy_" and _fills_storage(args[0]):
            self._forget(args[0], args[1])
        inputs = [t for t in _iter_tensors((args, kwargs)) if identify_storage(t) in self._sources]
        if inputs:
            for output in _iter_tensors(result):
                self._record(output, inputs, name)
        return result

    def list_conversions(
        self, tensors: Mapping[str, Tensor], name_in_file: Callable[[str], str] = str
    ) -> list[TensorConversion]:
        """Return how each tensor of the module is made, without those that no file key is part of.

        A tied tensor that was loaded under one of its names has no operation under the others.

        Args:
            tensors: the tensors of the loaded module, by key.
            name_in_file: key of the module -> the name that files have for it.
        """
        names: dict[int, set[str]] = {}
        for key, tensor in tensors.items():
            names.setdefault(identify_storage(tensor), set()).add(name_in_file(key))
        conversions = []
        for key, tensor in tensors.items():
            conversion = self.find_conversion(key, tensor)
            if conversion is None:
                continue
            is_renamed = conversion.operation == LoadStepKind.RENAMED
            if is_renamed and conversion.file_keys[0] in names[identify_storage(tensor)]:
                conversion = replace(conversion, operation="")
            conversions.append(conversion)
        return conversions

    def list_overwritten(self, conversions: Sequence[TensorConversion]) -> dict[str, str]:
        """Return key of the file -> the key that is loaded over it, where nothing else is of it."""
        used_keys = {key for conversion in conversions for key in conversion.file_keys}
        return {k: kept for k, kept in self._overwritten_keys.items() if k not in used_keys}

    def find_conversion(self, key: str, tensor: Tensor) -> TensorConversion | None:
        """Return how a tensor of the module is made of the file's; None if it is not.

        The operation of a copy by name is "".
        """
        storage = identify_storage(tensor)
        file_keys = self._sources.get(storage)
        if not file_keys:
            return None
        words = [*self._words.get(storage, ())]
        if not words:
            # Tied in the file under several names: its own is the source.
            file_keys = frozenset({key}) if key in file_keys else file_keys
            file_keys = frozenset({min(file_keys)})
        words += self._describe_view(tensor, storage)
        is_named_so = file_keys == {key}
        operation = ", ".join(dict.fromkeys(words)) or ("" if is_named_so else LoadStepKind.RENAMED)
        return TensorConversion(key, tuple(sorted(file_keys, key=natural_sort_key)), str(operation))

    def _forget(self, target: Tensor, source: Tensor) -> None:
        """Forget what `target` was made of, where all of it is overwritten by `source`."""
        storage, sources = identify_storage(target), self._sources.get(identify_storage(source))
        if sources and identify_storage(source) != storage:
            self._words.pop(storage, None)
            lost_keys = self._sources.pop(storage, frozenset()) - sources
            self._overwritten_keys.update(dict.fromkeys(lost_keys, min(sources)))

    def _record(self, output: Tensor, inputs: list[Tensor], name: str) -> None:
        storage = identify_storage(output)
        input_storages = {identify_storage(tensor) for tensor in inputs}
        sources = frozenset().union(*(self._sources[i] for i in input_storages))
        if storage in input_storages:
            self._add_sources(storage, sources, name)
            return
        self._recorded += len(sources)
        if self._recorded > _MAX_SOURCES:
            raise RuntimeError("the loader combines too many tensors to trace")
        words = [word for i in sorted(input_storages) for word in self._words.get(i, ())]
        words += [word for tensor in inputs for word in self._describe_view(tensor)]
        words.append(_WORDS.get(name, f"computed ({name})"))
        self._sources[storage] = sources
        self._words[storage] = tuple(dict.fromkeys(word for word in words if word))
        self._sizes[storage] = tuple(output.shape)
        self._kept.append(output)

    def _add_sources(self, storage: int, sources: frozenset[str], name: str) -> None:
        """Record that an operator wrote into a part of a storage that others are in already."""
        if sources != self._sources[storage]:
            word = "concatenated" if name == "copy_" else f"computed ({name})"
            self._sources[storage] = sources
            self._words[storage] = tuple(dict.fromkeys((*self._words.get(storage, ()), word)))

    def _describe_view(self, tensor: Tensor, storage: int | None = None) -> list[str]:
        """Return what distinguishes a view from the tensor that its storage was made for."""
        size = self._sizes.get(identify_storage(tensor) if storage is None else storage, ())
        if tensor.numel() != torch.Size(size).numel():
            return ["split"]
        if not tensor.is_contiguous():
            return ["transposed"]
        return ["reshaped"] if tuple(tensor.shape) != size else []


def identify_storage(tensor: Tensor) -> int:
    """Return a number that tensors share if they share memory."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _fills_storage(tensor: Tensor) -> bool:
    """Whether a tensor has all elements of its storage."""
    try:
        return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        return False


def _iter_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _iter_tensors(item)
    elif isinstance(value, dict):
        yield from _iter_tensors(tuple(value.values()))
