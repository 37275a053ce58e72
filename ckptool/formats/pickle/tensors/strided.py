"""Rebuild functions of strided tensors, parameters, and tensors of other devices."""

from typing import Final

from msgspec.structs import replace

from ckptool.formats.pickle.nodes import PickleTreeError, UnresolvedObject
from ckptool.formats.pickle.numpy_arrays import read_numpy_array
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.tensors.argument_checks import (
    check_args,
    check_attributes,
    read_dtype,
    read_requires_grad,
)
from ckptool.formats.pickle.tensors.tensor_reader import TensorInfoReader
from ckptool.model import Kind, TensorInfo

_TYPE_TAG: Final = ("torch.jit._pickle", "restore_type_tag")
"""Call around a dict in TorchScript's pickles, which returns the dict."""


def rebuild_tensor_v2(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    args = node.args if len(node.args) == 6 else check_args(node, key, 6, 7)
    storage = reader.resolve_storage(args[0], key)
    grad = args[4] is not False and read_requires_grad(args[4], storage.dtype, key)
    tensor = reader.build_strided_tensor(key, storage, storage.dtype, args[1:4], grad=grad)
    return _apply_metadata(tensor, args[6]) if len(args) > 6 else tensor


def rebuild_tensor_v3(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    args = check_args(node, key, 7, 8)
    dtype = read_dtype(args[6])
    grad = read_requires_grad(args[4], dtype, key)
    tensor = reader.build_strided_tensor(
        key, reader.resolve_storage(args[0], key), dtype, args[1:4], grad=grad
    )
    return _apply_metadata(tensor, args[7]) if len(args) > 7 else tensor


def _apply_metadata(tensor: TensorInfo, metadata: object) -> TensorInfo:
    """Set layout "conj", "neg" or "conj-neg": the elements are not the bytes in the storage."""
    if type(metadata) is UnresolvedObject and metadata.callee_name == _TYPE_TAG and metadata.args:
        metadata = metadata.args[0]
    if not isinstance(metadata, dict):
        raise PickleTreeError(f"{quote_name(tensor.key)} has metadata that is not a dict")
    marks = [mark for mark in ("conj", "neg") if metadata.get(mark) is True]
    if "conj" in marks and not tensor.dtype.startswith("complex"):
        raise PickleTreeError(f"{quote_name(tensor.key)} is conjugated but not complex")
    return replace(tensor, layout="-".join(marks)) if marks else tensor


def rebuild_parameter(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    arity = 4 if node.callee_name[1] == "_rebuild_parameter_with_state" else 3
    args = check_args(node, key, arity, arity)
    tensor = reader.require_tensor(args[0], key, depth)
    grad = read_requires_grad(args[1], tensor.dtype, key)
    check_attributes(args[3] if arity == 4 else None, key)
    return replace(tensor, requires_grad=grad, kind=Kind.PARAMETER)


def rebuild_uninitialized(
    reader: TensorInfoReader,  # noqa: ARG001 (the type of all rebuild functions)
    node: UnresolvedObject,
    key: str,
    _depth: int,
) -> TensorInfo:
    """Parameter or buffer of a lazy module before its first call: no shape, and no data."""
    (grad,) = check_args(node, key, 1, 1)
    return TensorInfo(
        key, (0,), "float32", (1,), 0, None, layout="lazy", requires_grad=grad is True
    )


def rebuild_meta_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    dtype, size, stride, grad = check_args(node, key, 4, 4)
    tensor = reader.build_meta_tensor(key, read_dtype(dtype), size, stride)
    return replace(tensor, requires_grad=grad is True)


def rebuild_device_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    """XLA and other devices: the data are in a CPU tensor, or in a numpy array in the pickle."""
    data, dtype, device, grad = check_args(node, key, 4, 4)
    tensor = reader.read_tensor(data, key, depth) or read_numpy_array(data, key)
    if tensor is None or tensor.dtype != read_dtype(dtype):
        raise PickleTreeError(f"{quote_name(key)} is not built from data of its dtype")
    if tensor.kind is Kind.ARRAY:
        location = device if type(device) is str else "cpu"
        if tensor.storage is None:
            raise PickleTreeError(f"{quote_name(key)} is built from an array without its elements")
        tensor = replace(tensor, storage=replace(tensor.storage, device=location), kind=None)
    return replace(tensor, requires_grad=grad is True)
