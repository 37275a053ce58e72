"""Rebuild functions of torch before 0.4: Variable, FloatTensor, and their states."""

from typing import Any, Final

from msgspec.structs import replace

from ckptool.formats.pickle.nodes import PickleTreeError, UnresolvedObject
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.tensors.argument_checks import check_args
from ckptool.formats.pickle.tensors.tensor_reader import TensorInfoReader
from ckptool.model import Kind, TensorInfo

_LEGACY_STATE_ITEMS: Final = 3
"""requires_grad, volatile and hooks of a Variable of torch before 0.4."""


def rebuild_first_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    """`_rebuild_tensor(storage, offset, size, stride)` of torch before 0.4."""
    args = check_args(node, key, 4, 4)
    storage = reader.resolve_storage(args[0], key)
    return reader.build_strided_tensor(key, storage, storage.dtype, args[1:4])


def rebuild_legacy_parameter(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    """Parameter or Variable of torch before 0.4: the data are its first argument or state item."""
    state = _list_state_items(node.state)
    if node.args and len(state) > _LEGACY_STATE_ITEMS:  # it begins with data, or with a storage
        raise PickleTreeError(f"{quote_name(key)} is changed after it was rebuilt")
    source = node.args or state
    tensor = reader.require_tensor(source[0] if source else None, key, depth)
    kind = Kind.PARAMETER if node.callee_name[1] == "Parameter" else None
    grad = next((flag for flag in (*state, *source[1:]) if type(flag) is bool), True)
    return replace(tensor, requires_grad=grad, kind=kind)


def _list_state_items(state: object) -> tuple[Any, ...]:
    return state if type(state) is tuple else ()


def rebuild_legacy_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    """torch.FloatTensor of torch before 0.2: its state is (storage, offset, size, stride)."""
    if node.args:
        raise PickleTreeError(
            f"{quote_name(key)} is a tensor built from {len(node.args)} arguments"
        )
    if type(node.state) is not tuple or len(node.state) != 4:
        raise PickleTreeError(f"{quote_name(key)} is a tensor without its state")
    storage = reader.resolve_storage(node.state[0], key)
    return reader.build_strided_tensor(key, storage, storage.dtype, node.state[1:])
