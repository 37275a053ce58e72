"""Rebuild functions of tensor subclasses and wrappers, with their attributes."""

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec.structs import replace

from ckptool.formats.pickle.nodes import GlobalName, PickleTreeError, UnresolvedObject
from ckptool.formats.pickle.plain_values import format_key, quote_name
from ckptool.formats.pickle.safe_globals import SAFE_GLOBALS
from ckptool.formats.pickle.tensors.argument_checks import (
    TENSOR_CLASSES,
    check_args,
    check_attributes,
    is_size_or_stride,
    read_dtype,
)
from ckptool.formats.pickle.tensors.legacy import list_state_items
from ckptool.formats.pickle.tensors.tensor_reader import TensorInfoReader
from ckptool.model import Kind, TensorComponent, TensorInfo


def rebuild_from_type(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    """`_rebuild_from_type_v2(function, type, arguments, state)`; the state is optional."""
    func, cls, args, *state = check_args(node, key, 4, 4)
    if type(func) is not GlobalName or type(cls) is not GlobalName or type(args) is not tuple:
        raise PickleTreeError(f"{quote_name(key)} is a tensor subclass without its class")
    tensor = reader.require_tensor(UnresolvedObject(func, args), key, depth)
    mappings = check_attributes(state[0] if state else None, key)
    attribute_items = list(iter_wrapper_components(mappings)) if tensor.layout == "wrapper" else []
    reader.charge_attributes(len(attribute_items), key)
    optional_components = (
        (name, reader.read_component(value, key, name, depth)) for name, value in attribute_items
    )
    components = tuple(
        TensorComponent(format_key(name), (), component)
        for name, component in optional_components
        if component is not None
    )
    if (cls.module, cls.name) == ("torch.nn.parameter", "Parameter"):
        return replace(tensor, kind=Kind.PARAMETER)
    wrapper = "" if (cls.module, cls.name) in TENSOR_CLASSES else cls.qualified_name
    return replace(tensor, wrapper=wrapper, parts=tensor.parts + components)


def rebuild_wrapper_subclass(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    """Wrapper subclass (DTensor, torchao); `_rebuild_from_type` adds its components."""
    cls, dtype, size, stride, offset, *_, grad = check_args(node, key, 8, 8)
    size = reader.check_shape(key, size)
    if type(cls) is not GlobalName or not is_size_or_stride(stride) or len(stride) != len(size):
        raise PickleTreeError(f"{quote_name(key)} is an impossible tensor subclass")
    if (cls.module, cls.name) in SAFE_GLOBALS:  # torch.Tensor itself wraps nothing
        raise PickleTreeError(f"{quote_name(key)} is wrapped in a {cls.qualified_name}")
    storage_offset = offset if type(offset) is int and offset >= 0 else 0
    return TensorInfo(
        key, size, read_dtype(dtype), tuple(stride), storage_offset, None,
        layout="wrapper", wrapper=cls.qualified_name, requires_grad=grad is True,
    )  # fmt: skip


def iter_wrapper_components(state: Iterable[object]) -> Iterator[tuple[object, object]]:
    """Yield (name, node) of what may be the elements of a tensor that wraps others.

    These are its attributes. A ShardedTensor has a list of shards instead, whose attributes are the
    tensor and its place in the whole.
    """
    for part in state:
        if isinstance(part, dict):
            yield from part.items()
        elif type(part) is list:
            for number, shard in enumerate(part):
                if type(shard) is UnresolvedObject and shard.callee_name == _SHARD_CLASS:
                    for mapping in list_state_items(shard.state) or (shard.state,):
                        if isinstance(mapping, dict):
                            yield f"shard {number}", mapping.get("tensor")


_SHARD_CLASS: Final = ("torch.distributed._shard.sharded_tensor.shard", "Shard")
