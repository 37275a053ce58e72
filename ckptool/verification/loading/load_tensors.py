"""State of a checkpoint -> torch tensors, from their byte spans, without unpickling if possible."""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from ckptool.errors import ReadError
from ckptool.formats.files.source import open_local_copy
from ckptool.locations import RemotePath
from ckptool.model import Checkpoint, Container, Kind, StateDict, TensorInfo
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.values.elements import iter_elements, unreadable_reason


def load_tensors(
    checkpoint: Checkpoint,
    state: StateDict,
    keys: Mapping[str, str],
    packed_keys: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the argument of `load_state_dict`: tensors by key, renamed by `keys` (old -> new).

    What is a NumPy array in the file is one here, too.

    Tensors tied in the file are one tensor in the result; `packed_keys` are tuples with tensors.

    Raises:
        ReadError: an entry is not plain bytes, and torch.load(weights_only=True) fails as well.
    """
    tensors: OrderedDict[str, Any] = OrderedDict()
    torch_state: Mapping[str, Any] | None = None
    tensors_by_view: dict[object, Tensor] = {}
    for key, info in state.tensors.items():
        if info.layout == "lazy":
            tensors[keys.get(key, key)] = UninitializedParameter(requires_grad=info.requires_grad)
        elif _is_saved_without_data(info) and _has_torch_dtype(info):
            dtype = getattr(torch, info.dtype)
            tensors[keys.get(key, key)] = torch.empty(info.shape, dtype=dtype, device="meta")
        # A subclass may be copied by its own code.
        elif _is_plain_bytes(info) and not info.wrapper:
            # Tied in the file: one tensor here too.
            view = (info.storage or key, info.storage_offset, info.shape, info.stride, info.dtype)
            if view not in tensors_by_view:
                tensors_by_view[view] = _read_tensor(info)
            tensor = tensors_by_view[view]
            tensors[keys.get(key, key)] = tensor.numpy() if info.kind is Kind.ARRAY else tensor
        else:
            torch_state = (
                torch_state if torch_state is not None else load_with_torch(checkpoint, state.at)
            )
            tensors[keys.get(key, key)] = _get_value(torch_state, key, checkpoint)
    other_keys = (*state.non_tensors, *packed_keys)
    if other_keys:
        torch_state = (
            torch_state if torch_state is not None else load_with_torch(checkpoint, state.at)
        )
        # A key that is not a str is shown as one, and load_state_dict takes neither.
        tensors.update({keys.get(key, key): torch_state.get(key) for key in other_keys})
    if state.versions is not None:
        set_version_numbers(tensors, state.versions, state.module_metadata)
    return tensors


def set_version_numbers(
    state_dict: Mapping[str, Any],
    numbers: Mapping[str, int | None],
    module_metadata: Mapping[str, Mapping[str, object]],
) -> None:
    """Set the `_metadata` of a state_dict.

    Args:
        state_dict: changed in place.
        numbers: prefix of a module -> its version, None without one.
        module_metadata: entries of modules that have more than a version.
    """
    entries = {
        prefix: module_metadata.get(prefix, {} if number is None else {"version": number})
        for prefix, number in numbers.items()
    }
    set_versions(state_dict, entries)


def set_versions(state_dict: Mapping[str, Any], versions: Mapping[str, Any]) -> None:
    """Set the `_metadata` of a state_dict to a copy of another one, with new mappings in it.

    `load_state_dict(assign=True)` writes into those, and every later load would then assign too.
    """
    state_dict._metadata = OrderedDict(  # type: ignore[attr-defined]  # noqa: SLF001
        (prefix, dict(entry) if isinstance(entry, Mapping) else entry)
        for prefix, entry in versions.items()
    )


def copy_state(tensors: Mapping[str, Any]) -> "OrderedDict[str, Any]":
    """Return a shallow copy with `_metadata`: loading code may change its argument."""
    copy = OrderedDict(tensors)
    versions = getattr(tensors, "_metadata", None)
    if versions is not None:
        set_versions(copy, versions)
    return copy


def read_plain_tensor(info: TensorInfo) -> Tensor | None:
    """Return the tensor that `info` describes as a copy, None if it is not plain bytes."""
    return _read_tensor(info) if _is_plain_bytes(info) else None


def can_be_read_without_torch(state: StateDict) -> bool:
    """Whether `load_tensors` reads all of it from byte spans, also before a file has them."""
    return not state.non_tensors and all(
        info.layout == "lazy" or (_is_plain_bytes(info) and not info.wrapper)
        for info in state.tensors.values()
    )


def _is_saved_without_data(info: TensorInfo) -> bool:
    """Whether it was on meta when it was saved, and not only has "meta" as its device's tag."""
    return info.device == "meta" and info.storage is not None and info.storage.span is None


def _is_plain_bytes(info: TensorInfo) -> bool:
    has_components = bool(info.parts) and info.layout != "chunked"
    return (
        info.layout != "lazy"
        and _has_torch_dtype(info)
        and not has_components
        and not unreadable_reason(info)
    )


def _has_torch_dtype(info: TensorInfo) -> bool:
    return isinstance(getattr(torch, info.dtype, None), torch.dtype)


def _read_tensor(info: TensorInfo) -> Tensor:
    buffer = bytearray()
    for piece in iter_elements(info):
        buffer += piece
    dtype: torch.dtype = getattr(torch, info.dtype)
    if not buffer:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).reshape(info.shape)


def can_be_mapped(checkpoint: Checkpoint) -> bool:
    """Whether torch can map the file: a local archive of torch.save without compressed storages."""
    tensors = (tensor for state in checkpoint.states for tensor in state.tensors.values())
    return (
        checkpoint.container is Container.TORCH_ZIP
        and not isinstance(checkpoint.path, RemotePath)
        and all(tensor.storage is None or tensor.storage.span for tensor in tensors)
    )


def load_with_torch(checkpoint: Checkpoint, at: str, *, mapped: bool = False) -> Mapping[str, Any]:
    """Return the mapping at `at` as torch.load(weights_only=True) reads it.

    Args:
        checkpoint: the file.
        at: place of the mapping.
        mapped: map the file into memory, so that elements are read where they are used.

    Raises:
        ReadError: torch refuses the file, or no mapping at `at`.
    """
    try:
        with open_local_copy(checkpoint.path) as path:
            root = load_file(path, mapped=mapped)
    except UserCodeError as error:
        raise ReadError(
            checkpoint.path,
            f"cannot be read with torch.load(weights_only=True): {format_refusal(error.error)}",
        ) from error
    try:
        state = get_value_at(root, at)
    except LookupError as error:
        raise ReadError(checkpoint.path, f"torch finds nothing at `{at}`") from error
    if not isinstance(state, Mapping):
        raise ReadError(checkpoint.path, f"no mapping at `{at or '.'}`")
    return state


def load_file(path: Path, *, mapped: bool) -> Any:
    """Return what torch.load(weights_only=True) returns, with all storages on the CPU.

    The code of allowed classes is run, so that anything may be raised; and torch warns and logs of
    what it is given, which says nothing of this run.

    Raises:
        UserCodeError: torch.load raised.
    """
    with warnings.catch_warnings(), _without_log_messages(), user_code():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def get_value_at(root: Any, at: str) -> Any:
    """Return the value at a dotted place; a key of the file may contain dots, and be a number.

    Raises:
        KeyError: there is none.
    """
    if not at:
        return root
    for key in root if isinstance(root, Mapping) else range(len(root)):
        name = str(key)
        if at == name or at.startswith(f"{name}."):
            with suppress(LookupError, TypeError):
                return get_value_at(root[key], at[len(name) + 1 :])
    raise KeyError(at)


@contextmanager
def _without_log_messages() -> Iterator[None]:
    """Leave out what torch logs while it reads: that a DTensor's process group is not there."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def format_refusal(error: BaseException) -> str:
    """Return the sentence that says why torch.load refuses a file: the one that names a class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = (line for line in lines if line.startswith("WeightsUnpickler error: "))
    line = next(named, lines[0] if lines else type(error).__name__)
    return line.removeprefix("WeightsUnpickler error: ").partition(" Please use ")[0]


def _get_value(state: Mapping[str, Any], key: str, checkpoint: Checkpoint) -> Any:
    if key not in state:
        raise ReadError(checkpoint.path, f"torch does not find `{key}` in it")
    return state[key]
