"""Draft: the planned state_dict, each tensor described by where its elements are now."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import PlanError
from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    Kind,
    StateDict,
    StorageInfo,
    TensorInfo,
    contiguous_stride,
    natural_sort_key,
)

"""An index into a list or dict: `[0]`, `['name']`."""
READABLE_LAYOUTS: Final = ("strided", "chunked")
"""Layouts of tensors that are computed with: all their elements can be read in order."""
_MAX_COMPARED_KEYS: Final = 2000
"""Maximum number of keys compared for a suggestion."""


class PlannedTensor(Struct, frozen=True, gc=False):
    """One tensor of the result."""

    tensor: TensorInfo
    """Location of the elements: the source, another file, or an `AnonymousFile`."""
    casts: tuple[str, ...] = ()
    """Dtypes to convert to, in order."""
    source_key: str = ""
    """Key in the source while the tensor is unchanged (its pickle node is kept); else ""."""
    own_storage: bool = False
    """Whether the tensor is written untied, even if another shares its storage."""

    def describe_tensor(self, key: str) -> TensorInfo:
        """Return the `TensorInfo` of the result, after casts, under `key`."""
        tensor = replace(self.tensor, key=key)
        if not self.casts:
            return (
                replace(tensor, storage=self._build_own_storage(key))
                if self.own_storage
                else tensor
            )
        dtype = self.casts[-1]
        nbytes = tensor.numel * DTYPE_BITS[dtype] // 8
        storage = StorageInfo(f"cast {key}", nbytes)
        return replace(
            tensor,
            dtype=dtype,
            stride=contiguous_stride(tensor.shape),
            storage_offset=0,
            storage=storage,
        )

    def cast(self, dtype: str) -> "PlannedTensor":
        """Return the tensor with its elements converted; on meta there are none to convert."""
        if self.tensor.is_on_meta:
            stride = contiguous_stride(self.tensor.shape)
            tensor = replace(self.tensor, dtype=dtype, stride=stride)
            return replace(self, tensor=tensor, source_key="")
        return replace(self, casts=(*self.casts, dtype), source_key="")

    @property
    def dtype(self) -> str:
        return self.casts[-1] if self.casts else self.tensor.dtype

    @property
    def tie_identity(self) -> object:
        """Identity of the elements: equal for tied tensors."""
        tensor = self.tensor
        if self.own_storage or tensor.storage is None or not tensor.numel:
            return id(self)
        view = (tensor.dtype, tensor.storage_offset, tensor.shape, tensor.stride)
        return (tensor.storage, *view, self.casts)

    def _build_own_storage(self, key: str) -> StorageInfo | None:
        storage = self.tensor.storage
        return replace(storage, key=f"{storage.key} of {key}") if storage else None


class Draft(Struct, frozen=True, dict=True):
    """A state_dict between source and result: the value that operations transform."""

    checkpoint: Checkpoint
    state: StateDict
    """State_dict of the source."""
    items: Mapping[str, PlannedTensor]
    non_tensor_keys: Mapping[str, str]
    """Keys of non-tensor entries, of containers and packed tensors -> their keys in the source."""
    versions: Mapping[str, int | None] | None
    is_extracted: bool = False
    """Whether the state is written alone, without what lies around it in the source."""

    @cached_property
    def ties(self) -> Mapping[str, str]:
        """Tied key that a file leaves out -> the key under which it stores the tensor."""
        items = self.items
        # Nearly all storages have one tensor; hashing a storage's key is faster than an identity.
        storage_keys = [
            item.tensor.storage.key if item.tensor.storage else id(item) for item in items.values()
        ]
        if len(set(storage_keys)) == len(items):
            return {}
        counts = Counter(storage_keys)
        keys_by_identity: dict[object, list[str]] = {}
        for key, storage_key in zip(items, storage_keys, strict=True):
            if counts[storage_key] > 1:
                keys_by_identity.setdefault(items[key].tie_identity, []).append(key)

        def rank_key(key: str) -> tuple[bool, tuple[object, ...]]:
            """Prefer the key that the source stores, so that fewer shards change."""
            return items[key].source_key != key, natural_sort_key(key)

        tied_groups = (keys for keys in keys_by_identity.values() if len(keys) > 1)
        sorted_groups = (sorted(keys, key=rank_key) for keys in tied_groups)
        stored_keys = {key: group[0] for group in sorted_groups for key in group[1:]}
        return {key: stored_keys[key] for key in sorted(stored_keys, key=rank_key)}

    @property
    def untied_items(self) -> Mapping[str, PlannedTensor]:
        """The items that a file stores which has each tied tensor once, as safetensors does."""
        if not self.ties:
            return self.items
        return {key: item for key, item in self.items.items() if key not in self.ties}

    @property
    def packed_places(self) -> dict[str, str]:
        """Place of each packed tuple of tensors in the source -> its place in the result."""
        prefix = f"{self.state.at}." if self.state.at else ""
        return {
            prefix + source_key: prefix + key
            for key, source_key in self.non_tensor_keys.items()
            if source_key not in self.state.non_tensors
        }

    @property
    def result_state(self) -> StateDict:
        """`StateDict` of the result, as if read from the written file."""
        return StateDict(
            at=self.state.at,
            tensors={key: item.describe_tensor(key) for key, item in self.items.items()},
            versions=self.versions,
            module_metadata=self.state.module_metadata,
            non_tensors={
                key: self.state.non_tensors.get(source_key, "a container")
                for key, source_key in self.non_tensor_keys.items()
            },
            unsaved_tensors=self.state.unsaved_tensors,
        )


def is_pickled_array(tensor: TensorInfo) -> bool:
    """Whether its elements are a NumPy array in the pickle, as those of a tensor of an XLA device.

    torch.load(weights_only=True) refuses the names of NumPy.
    """
    has_content = tensor.storage is not None and tensor.storage.content is not None
    return tensor.kind is Kind.ARRAY or (has_content and not tensor.wrapper)


def create_draft(checkpoint: Checkpoint, state: StateDict) -> Draft:
    """Return the draft of an unchanged state_dict; of its NumPy arrays the draft makes tensors."""
    items = {
        key: PlannedTensor(replace(tensor, kind=None))
        if is_pickled_array(tensor)
        else PlannedTensor(tensor, source_key=key)
        for key, tensor in state.tensors.items()
    }
    packed_keys = _find_packed_keys(checkpoint, state)
    keys = (*state.non_tensors, *state.container_keys, *packed_keys)
    non_tensor_keys = {key: key for key in keys}
    return Draft(checkpoint, state, items, non_tensor_keys, state.versions)


def _find_packed_keys(checkpoint: Checkpoint, state: StateDict) -> Iterator[str]:
    """Yield the keys whose value is a tuple of tensors, as quantised modules pack their weights.

    Such a tuple is described as a state of its own, below a module of `state`.
    """
    prefix = f"{state.at}." if state.at else ""
    owners = {key.rpartition(".")[0] for key in (*state.tensors, *state.non_tensors)}
    for inner in checkpoint.states:
        key = inner.at.removeprefix(prefix)
        is_inside = inner.at.startswith(prefix) and inner.at != state.at
        if (
            is_inside
            and inner.role == "tensors"
            and "." in key
            and key.rpartition(".")[0] in owners
        ):
            yield key


def rename_keys(
    draft: Draft, rename_key: Callable[[str], str], rename_prefix: Callable[[str], str]
) -> Draft:
    """Return the draft with `rename_key` applied to all keys, `rename_prefix` to module prefixes.

    Raises:
        PlanError: two keys would get the same new key.
    """
    old_keys: dict[str, str] = {}
    for key in (*draft.items, *draft.non_tensor_keys):
        new = rename_key(key)
        if new in old_keys:
            raise PlanError(f"`{old_keys[new]}` and `{key}` would both become `{new}`")
        old_keys[new] = key
    new_keys = {old: new for new, old in old_keys.items()}
    old_versions = None if draft.versions is None else draft.versions
    return replace(
        draft,
        items={new_keys[key]: item for key, item in draft.items.items()},
        non_tensor_keys={
            new_keys[key]: source_key for key, source_key in draft.non_tensor_keys.items()
        },
        versions=None if old_versions is None else _rename_versions(old_versions, rename_prefix),
    )


def match_keys(draft: Draft, pattern: str) -> list[str]:
    """Return the tensor keys that `pattern` names: the exact key, else all glob matches."""
    return (
        [pattern]
        if pattern in draft.items
        else [key for key in draft.items if fnmatchcase(key, pattern)]
    )


def key_suggestion(draft: Draft, key: str) -> str:
    """Return a suggestion for an unknown key, to append to a message; "" without one."""
    keys = [*draft.items, *draft.non_tensor_keys]
    prefixed_key = next((candidate for candidate in keys if candidate.endswith(f".{key}")), None)
    if prefixed_key is not None:
        prefix = prefixed_key.removesuffix(key)
        return (
            f" (there is `{prefixed_key}`: a step strip-prefix with prefix = {json.dumps(prefix)}"
            " first)"
        )
    close_matches = get_close_matches(key, keys[:_MAX_COMPARED_KEYS], n=1)
    return f" (did you mean `{close_matches[0]}`?)" if close_matches else ""


def get_item(
    op: str, draft: Draft, key: str, layouts: tuple[str, ...] = ("strided",)
) -> PlannedTensor:
    """Return the tensor `key` for the operation named `op`.

    Raises:
        PlanError: it is not there, or in none of the layouts.
    """
    item = draft.items.get(key)
    if item is None:
        raise PlanError(
            f"{op} `{key}`: the file has no tensor with that name{key_suggestion(draft, key)}"
        )
    return require_layout(op, key, item, layouts)


def require_layout(
    op: str, key: str, item: PlannedTensor, layouts: tuple[str, ...]
) -> PlannedTensor:
    """Return `item`.

    Raises:
        PlanError: it has another layout, or is a tensor subclass.
    """
    if item.tensor.layout not in layouts or item.tensor.wrapper:
        kind = item.tensor.wrapper or item.tensor.layout
        raise PlanError(f"{op} `{key}`: it is {kind}, and only plain tensors can be changed")
    return item


def _rename_versions(
    versions: Mapping[str, int | None], rename_prefix: Callable[[str], str]
) -> dict[str, int | None]:
    """Rename the prefixes of module versions; on collision the inner module's version wins."""
    outer_first = sorted(versions.items(), key=lambda pair: len(pair[0]))
    new_versions = {rename_prefix(prefix): version for prefix, version in outer_first}
    ordered_prefixes = {rename_prefix(prefix): None for prefix in versions}
    return {prefix: new_versions[prefix] for prefix in ordered_prefixes}
