"""Rebuild functions of tensors of several components: sparse, quantised and nested."""

from collections.abc import Mapping
from struct import pack
from types import MappingProxyType
from typing import Any, Final

from msgspec.structs import replace

from ckptool.formats.pickle.nodes import (
    GlobalName,
    PickleTreeError,
    UnresolvedObject,
)
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.tensors.argument_checks import MAX_SIZE, check_args
from ckptool.formats.pickle.tensors.tensor_reader import TensorInfoReader
from ckptool.model import (
    StorageInfo,
    TensorComponent,
    TensorInfo,
    contiguous_stride,
)


def rebuild_sparse_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    grad = False
    if reader.is_script:
        name, data, grad = _read_script_layout(node, key)
    else:
        layout, data = check_args(node, key, 2, 2)
        name = _read_layout(layout)
    names = _SPARSE_COMPONENTS.get(name)
    if names is None or type(data) is not tuple or len(data) < len(names) + 1:
        raise PickleTreeError(f"{quote_name(key)} has an unknown sparse layout")
    reader.charge_attributes(len(names), key)
    components = tuple(
        TensorComponent(
            component_name, (), reader.require_tensor(component, f"{key}.{component_name}", depth)
        )
        for component_name, component in zip(names, data, strict=False)
    )
    size = data[len(names)]
    values = components[-1].tensor
    size = reader.check_shape(key, size)
    if name == "sparse_coo":
        _check_coo(key, size, components[0].tensor, values)
    return TensorInfo(
        key, size, values.dtype, (), 0, None, name, requires_grad=grad, parts=components
    )


_SCRIPT_LAYOUTS: Final = {1: "sparse_coo", 2: "sparse_csr"}


def _read_script_layout(node: UnresolvedObject, key: str) -> tuple[str, tuple[Any, ...], bool]:
    """Return layout, components with the size, and requires_grad.

    The arguments are (number of the layout, size, requires_grad, *components, hooks).

    TorchScript writes these arguments for the function that has others in Python.
    """
    number, size, grad, *components, _ = check_args(node, key, 6, 7)
    name = _SCRIPT_LAYOUTS.get(number, "") if type(number) is int else ""
    return name, (*components, size), grad is True


def _read_layout(node: object) -> str:
    """Return "sparse_coo" of `_get_layout("torch.sparse_coo")` or of the global; "" if invalid."""
    name = node.args[0] if type(node) is UnresolvedObject and node.args else node
    if type(name) is GlobalName:
        name = name.qualified_name
    return name.removeprefix("torch.") if type(name) is str else ""


_SPARSE_COMPONENTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "sparse_coo": ("indices", "values"),
        "sparse_csr": ("crow_indices", "col_indices", "values"),
        "sparse_bsr": ("crow_indices", "col_indices", "values"),
        "sparse_csc": ("ccol_indices", "row_indices", "values"),
        "sparse_bsc": ("ccol_indices", "row_indices", "values"),
    }
)


def _check_coo(key: str, size: tuple[int, ...], indices: TensorInfo, values: TensorInfo) -> None:
    is_consistent = len(indices.shape) == 2 and values.shape[:1] == indices.shape[1:]
    if not is_consistent or len(size) != indices.shape[0] + len(values.shape) - 1:
        raise PickleTreeError(
            f"{quote_name(key)} is sparse, but its indices {list(indices.shape)} and values "
            f"{list(values.shape)} do not match the size {list(size)}"
        )


def rebuild_quantized_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    storage, offset, size, stride, scheme, grad, _ = check_args(node, key, 7, 7)
    saved_storage = reader.resolve_storage(storage, key)
    packed_size, packed_stride = _pack_view(reader, key, saved_storage.dtype, size, stride)
    stored_tensor = reader.build_strided_tensor(
        key, saved_storage, saved_storage.dtype, (offset, packed_size, packed_stride)
    )
    tensor = replace(stored_tensor, shape=size, stride=stride, requires_grad=grad is True)
    if type(scheme) is not tuple or not scheme or type(scheme[0]) is not GlobalName:
        raise PickleTreeError(f"{quote_name(key)} is quantized without a scheme")
    reader.charge_attributes(3, key)
    named_nodes = zip(("scales", "zero_points"), scheme[1:3], strict=False)
    components = [TensorComponent("values", (), stored_tensor)]
    for name, part in named_nodes:
        component = reader.read_component(part, key, name, depth) or _build_scalar(part, name)
        if component is not None:
            components.append(TensorComponent(name, (), component))
    axes = [axis for axis in scheme[3:] if type(axis) is int]
    components += [
        TensorComponent("axis", (), scalar)
        for axis in axes
        if (scalar := _build_scalar(axis, "axis")) is not None
    ]
    return replace(tensor, layout="quantized", parts=tuple(components))


def _pack_view(
    reader: TensorInfoReader, key: str, dtype: str, size: Any, stride: Any
) -> tuple[Any, Any]:
    """Return size and stride of the bytes of a quantized tensor; several elements are in a byte.

    torch packs each row of the last dimension on its own.

    Raises:
        PickleTreeError: packed elements are not contiguous, or the size is invalid.
    """
    elements_per_byte = _ELEMENTS_PER_BYTE.get(dtype)
    if elements_per_byte is None:
        return size, stride
    shape = reader.check_shape(key, size)
    if stride != contiguous_stride(shape):
        raise PickleTreeError(f"{quote_name(key)} is a view of packed elements")
    packed = (*shape[:-1], -(-shape[-1] // elements_per_byte)) if shape else ()
    return packed, contiguous_stride(packed)


_ELEMENTS_PER_BYTE: Final = {"quint4x2": 2, "quint2x4": 4}


def _build_scalar(node: object, key: str) -> TensorInfo | None:
    """Return a float or an int of a pickle as a tensor without dimensions; None if it is none."""
    if type(node) is float:
        return _build_content_tensor(key, "float64", pack("<d", node))
    if type(node) is int and abs(node) < MAX_SIZE:
        return _build_content_tensor(key, "int64", pack("<q", node))
    return None


def _build_content_tensor(key: str, dtype: str, content: bytes) -> TensorInfo:
    storage = StorageInfo(f"scalar {key}", len(content), content=content)
    return TensorInfo(key, (), dtype, (), 0, storage)


def rebuild_nested_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    names = ("buffer", "sizes", "strides", "offsets")
    args = check_args(node, key, 4, 4)
    reader.charge_attributes(len(args), key)
    components = tuple(
        TensorComponent(name, (), reader.require_tensor(component, f"{key}.{name}", depth))
        for name, component in zip(names, args, strict=True)
    )
    buffer, sizes = components[0].tensor, components[1].tensor
    if len(sizes.shape) != 2:
        raise PickleTreeError(f"{quote_name(key)} is nested, but its sizes are {list(sizes.shape)}")
    return TensorInfo(
        key, sizes.shape[:1], buffer.dtype, (), 0, None, layout="nested", parts=components
    )


def rebuild_jagged_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    """Nested tensor with layout=torch.jagged; its other arguments are attributes as well."""
    (fields,) = check_args(node, key, 1, 1)
    if not isinstance(fields, dict):
        raise PickleTreeError(f"{quote_name(key)} is a nested tensor without its fields")
    names = [name for name in _JAGGED_COMPONENTS if fields.get(name) is not None]
    reader.charge_attributes(len(names), key)
    tensors = {name: reader.require_tensor(fields[name], f"{key}.{name}", depth) for name in names}
    values, offsets = tensors.get("values"), tensors.get("offsets")
    if values is None or offsets is None or len(offsets.shape) != 1 or not offsets.shape[0]:
        raise PickleTreeError(f"{quote_name(key)} is a nested tensor without values and offsets")
    return TensorInfo(
        key, (offsets.shape[0] - 1,), values.dtype, (), 0, None, layout="jagged",
        requires_grad=fields.get("requires_grad") is True,
        parts=tuple(TensorComponent(name, (), tensor) for name, tensor in tensors.items()),
    )  # fmt: skip


_JAGGED_COMPONENTS: Final = ("values", "offsets", "lengths")
