"""State of a checkpoint -> torch tensors, from their byte spans, without unpickling if possible."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ckptool.elements import elements, obstacle
from ckptool.errors import ReadError
from ckptool.formats.files import local_copy
from ckptool.model import Checkpoint, State, TensorInfo


def weights(checkpoint: Checkpoint, state: State, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the argument of `load_state_dict`: tensors by key, renamed by `keys` (old -> new).

    Tensors tied in the file are one tensor in the result.

    Raises:
        ReadError: an entry is not plain bytes, and torch.load(weights_only=True) fails as well.
    """
    found: OrderedDict[str, Any] = OrderedDict()
    spare: Mapping[str, Any] | None = None
    known: dict[object, Tensor] = {}
    for key, info in state.tensors.items():
        if _is_plain(info):
            # Tied in the file: one tensor here too.
            view = (info.storage or key, info.storage_offset, info.shape, info.stride, info.dtype)
            if view not in known:
                known[view] = _tensor(info)
            found[keys.get(key, key)] = known[view]
        else:
            spare = spare if spare is not None else _loaded(checkpoint, state.at)
            found[keys.get(key, key)] = _in(spare, key, checkpoint)
    if state.others:
        spare = spare if spare is not None else _loaded(checkpoint, state.at)
        found.update({keys.get(key, key): spare[key] for key in state.others if key in spare})
    if state.versions is not None:
        versions = {prefix: {"version": v} for prefix, v in state.versions.items()}
        found._metadata = OrderedDict(versions)  # type: ignore[attr-defined]  # noqa: SLF001
    return found


def plain_tensor(info: TensorInfo) -> Tensor | None:
    """Return the tensor that `info` describes as a copy, None if it is not plain bytes."""
    return _tensor(info) if _is_plain(info) else None


def _is_plain(info: TensorInfo) -> bool:
    layered = bool(info.parts) and info.layout != "chunked"
    known = isinstance(getattr(torch, info.dtype, None), torch.dtype)
    return known and not layered and not obstacle(info)


def _tensor(info: TensorInfo) -> Tensor:
    buffer = bytearray()
    for piece in elements(info):
        buffer += piece
    dtype: torch.dtype = getattr(torch, info.dtype)
    if not buffer:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).reshape(info.shape)


def _loaded(checkpoint: Checkpoint, at: str) -> Mapping[str, Any]:
    try:
        with local_copy(checkpoint.path) as path:
            found = torch.load(path, map_location="cpu", weights_only=True)
        for step in at.split(".") if at else ():
            found = found[step]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ReadError(
            checkpoint.path, f"has more than plain bytes, and torch refuses it: {reason}"
        ) from error
    if not isinstance(found, Mapping):
        raise ReadError(checkpoint.path, f"there is no mapping at `{at or '.'}`")
    return found


def _in(state: Mapping[str, Any], key: str, checkpoint: Checkpoint) -> Any:
    if key not in state:
        raise ReadError(checkpoint.path, f"torch does not find `{key}` in it")
    return state[key]
