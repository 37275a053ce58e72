"""Draft: the planned state_dict, each tensor described by where its elements are now."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import PlanError
from ckptool.model import BITS, Checkpoint, State, StorageInfo, TensorInfo

_ITEM: Final = re.compile(r"\[['\"]?(\w+)['\"]?\]")
"""An index into a list or dict: `[0]`, `['name']`."""
_COMPARED: Final = 2000
"""Maximum number of keys compared for a suggestion."""


class Item(Struct, frozen=True):
    """One tensor of the result."""

    tensor: TensorInfo
    """Location of the elements: the source, another file, or an `AnonymousFile`."""
    casts: tuple[str, ...] = ()
    """Dtypes to convert to, in order."""
    origin: str = ""
    """Key in the source while the tensor is unchanged (its pickle node is kept); else ""."""
    alone: bool = False
    """Whether the tensor is written untied, even if another shares its storage."""

    def described(self, key: str) -> TensorInfo:
        """Return the `TensorInfo` of the result, after casts, under `key`."""
        tensor = replace(self.tensor, key=key)
        if not self.casts:
            return replace(tensor, storage=self._own(key)) if self.alone else tensor
        dtype = self.casts[-1]
        nbytes = tensor.numel * BITS[dtype] // 8
        storage = StorageInfo(f"cast {key}", nbytes)
        return replace(
            tensor, dtype=dtype, stride=c_order(tensor.shape), storage_offset=0, storage=storage
        )

    @property
    def dtype(self) -> str:
        return self.casts[-1] if self.casts else self.tensor.dtype

    @property
    def identity(self) -> object:
        """Identity of the elements: equal for tied tensors."""
        tensor = self.tensor
        if self.alone or tensor.storage is None or not tensor.numel:
            return id(self)
        view = (tensor.dtype, tensor.storage_offset, tensor.shape, tensor.stride)
        return (tensor.storage, *view, self.casts)

    def _own(self, key: str) -> StorageInfo | None:
        storage = self.tensor.storage
        return replace(storage, key=f"{storage.key} of {key}") if storage else None


class Draft(Struct, frozen=True):
    """A state_dict between source and result: the value that operations transform."""

    checkpoint: Checkpoint
    state: State
    """State_dict of the source."""
    items: Mapping[str, Item]
    others: Mapping[str, str]
    """Keys of non-tensor entries -> their keys in the source."""
    versions: Mapping[str, int | None] | None

    @property
    def described(self) -> State:
        """`StateDict` of the result, as if read from the written file."""
        return State(
            at=self.state.at,
            tensors={key: item.described(key) for key, item in self.items.items()},
            versions=self.versions,
            others={key: self.state.others[origin] for key, origin in self.others.items()},
            unsaved=self.state.unsaved,
        )


def draft_of(checkpoint: Checkpoint, state: State) -> Draft:
    """Return the draft of an unchanged state_dict."""
    items = {key: Item(tensor, origin=key) for key, tensor in state.tensors.items()}
    others = {key: key for key in state.others}
    return Draft(checkpoint, state, items, others, state.versions)


def renamed(draft: Draft, rename: Callable[[str], str], versions: Callable[[str], str]) -> Draft:
    """Return the draft with `rename_key` applied to all keys, `rename_prefix` to module prefixes.

    Raises:
        PlanError: two keys would get the same new key.
    """
    found: dict[str, str] = {}
    for key in (*draft.items, *draft.others):
        new = rename(key)
        if new in found:
            raise PlanError(f"`{found[new]}` and `{key}` would both be called `{new}`")
        found[new] = key
    moved = {old: new for new, old in found.items()}
    kept = None if draft.versions is None else draft.versions
    return replace(
        draft,
        items={moved[key]: item for key, item in draft.items.items()},
        others={moved[key]: origin for key, origin in draft.others.items()},
        versions=None if kept is None else _moved_versions(kept, versions),
    )


def matching(draft: Draft, keys: str) -> list[str]:
    """Return the tensor keys that `pattern` names: the exact key, else all glob matches."""
    return [keys] if keys in draft.items else [k for k in draft.items if fnmatchcase(k, keys)]


def near(draft: Draft, key: str) -> str:
    """Return a suggestion for an unknown key, to append to a message; "" without one."""
    keys = [*draft.items, *draft.others]
    wrapped = next((k for k in keys if k.endswith(f".{key}")), None)
    if wrapped is not None:
        prefix = wrapped.removesuffix(key)
        return (
            f" (there is `{wrapped}`: a step strip-prefix with prefix = {json.dumps(prefix)} first)"
        )
    close = get_close_matches(key, keys[:_COMPARED], n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def dotted(path: str) -> str:
    """Return `path` as a state_dict key: `layers[0].bias` -> `layers.0.bias`."""
    return _ITEM.sub(r".\1", path)


def c_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous (C order) tensor, in elements."""
    return tuple(_steps(shape))[::-1]


def _steps(shape: tuple[int, ...]) -> Iterator[int]:
    step = 1
    for size in reversed(shape):
        yield step
        step *= max(1, size)


def _moved_versions(
    versions: Mapping[str, int | None], move: Callable[[str], str]
) -> dict[str, int | None]:
    """Rename the prefixes of module versions; on collision the inner module's version wins."""
    inner_last = sorted(versions.items(), key=lambda pair: len(pair[0]))
    moved = {move(prefix): version for prefix, version in inner_last}
    order = {move(prefix): None for prefix in versions}
    return {prefix: moved[prefix] for prefix in order}
