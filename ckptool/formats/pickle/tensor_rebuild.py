"""Pickled call that rebuilds a tensor -> TensorInfo, every number in it checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from struct import pack
from types import MappingProxyType
from typing import Any, Final, TypeGuard

from msgspec import Struct
from msgspec.structs import replace

from ckptool.formats.limits import Limits
from ckptool.formats.pickle.nodes import (
    ATOMIC_TYPES,
    GlobalName,
    PersistentReference,
    UnresolvedObject,
)
from ckptool.formats.pickle.numpy_arrays import read_numpy_array
from ckptool.formats.pickle.places import PlaceJoiner
from ckptool.formats.pickle.plain_values import format_key, quote_name
from ckptool.formats.pickle.safe_globals import SAFE_GLOBALS
from ckptool.model import (
    DTYPE_BITS,
    Kind,
    StorageInfo,
    TensorComponent,
    TensorInfo,
    contiguous_stride,
)


class PickleTreeError(ValueError):
    """The content of a pickle contradicts itself or its container."""


class SavedStorage(Struct, gc=False):
    """A storage that a pickle refers to, located in its container."""

    info: StorageInfo
    dtype: str
    """dtype of its elements; "uint8" for an untyped storage."""
    numel: int
    start: int = 0
    """First element of a storage view in `info`; only torch before 1.6 wrote them."""


EmbeddedStorageReader = Callable[[bytes], SavedStorage]
"""(bytes of a file of torch.save that a pickle embeds) -> its storage."""


class TensorInfoReader:
    """Reads the tensors of one tree."""

    def __init__(
        self,
        limits: Limits,
        read_embedded: EmbeddedStorageReader | None = None,
        *,
        is_script: bool = False,
    ) -> None:
        self.is_script = is_script
        """Whether TorchScript wrote the pickle."""
        self._limits = limits
        self._read_embedded = read_embedded
        self._meta_count = 0
        self._attribute_count = 0
        self._places = PlaceJoiner()
        self._valid_views: dict[object, tuple[object, object]] = {}
        """Views from element 0 that were checked, by what they are of -> the objects of the ids.

        Equal shapes of a pickle are one object.
        """
        self._rebuild_by_callee: dict[object, RebuildFunction | None] = {}
        """Callee -> RebuildFunction, None if it returns no tensor."""
        self._read_ids: set[int] | None = set() if limits.contents else None

    def read_tensor(self, node: object, key: str, depth: int = 0) -> TensorInfo | None:
        """Return the tensor that `node` rebuilds, None if it is no tensor.

        Raises:
            PickleTreeError: its arguments are invalid.
        """
        if type(node) is UnresolvedObject:
            rebuild = self._find_rebuild(node)
            if rebuild is None:
                return None
            if depth > _MAX_WRAPPER_DEPTH:
                raise PickleTreeError(f"{quote_name(key)} nests tensors without end")
            if node.state is not None and node.callee_name[1].startswith("_rebuild"):
                # Tensor.__setstate__ gives the tensor another storage.
                raise PickleTreeError(f"{quote_name(key)} is changed after it was rebuilt")
            if self._read_ids is not None:
                self._read_ids.add(id(node))
            return rebuild(self, node, key, depth + 1)
        if type(node) is PersistentReference and type(node.target) is TensorInfo:
            if self._read_ids is not None:
                self._read_ids.add(id(node))
            return replace(node.target, key=key)
        return None

    def read_array(self, node: object, key: str) -> TensorInfo | None:
        """Return a pickled numpy array of numbers, None for anything else."""
        array = read_numpy_array(node, key)
        if array is not None and self._read_ids is not None:
            self._read_ids.add(id(node))
        return array

    def is_read(self, node: object) -> bool:
        """Whether `node` is a tensor or an array that was read; False without `Limits.contents`."""
        return self._read_ids is not None and id(node) in self._read_ids

    def forget(self, node: object) -> None:
        """Undo that a tensor counts as read: the caller drops it."""
        if self._read_ids is not None:
            self._read_ids.discard(id(node))

    def _find_rebuild(self, node: UnresolvedObject) -> "RebuildFunction | None":
        try:
            return self._rebuild_by_callee[node.func]
        except KeyError:
            rebuild = self._rebuild_by_callee[node.func] = REBUILD_FUNCTIONS.get(node.callee_name)
            return rebuild

    def is_tensor(self, node: object) -> bool:
        """Whether `read_tensor` returns a tensor, or raises."""
        if type(node) is UnresolvedObject:
            return self._find_rebuild(node) is not None
        return type(node) is PersistentReference and type(node.target) is TensorInfo

    def is_storage(self, node: object) -> bool:
        """Whether a node is a storage: a reference to one, or an embedded file of torch.save."""
        if type(node) is PersistentReference:
            return type(node.target) is SavedStorage
        return type(node) is UnresolvedObject and node.callee_name == _LOAD_FROM_BYTES

    def read_elements(self, node: object, key: str) -> TensorInfo:
        """Return the tensor that `node` rebuilds, or all elements of the storage that it is.

        Raises:
            PickleTreeError: it is neither, or its arguments are invalid.
        """
        if not self.is_storage(node):
            return self.require_tensor(node, key, 0)
        storage = self.resolve_storage(node, key)
        view = (0, (storage.numel,), (1,))
        return self.build_strided_tensor(key, storage, storage.dtype, view)

    def build_strided_tensor(
        self,
        key: str,
        storage: SavedStorage,
        dtype: str,
        view: tuple[Any, Any, Any],
        *,
        grad: bool = False,
    ) -> TensorInfo:
        """Return the view (offset, size, stride) of a storage, all counted in elements.

        Raises:
            PickleTreeError: it reaches beyond the storage, or its numbers are invalid.
        """
        offset, size, stride = view
        view_id = (id(size), id(stride), dtype, storage.dtype, storage.numel)
        is_at_start = type(offset) is int and not offset and not storage.start
        if is_at_start and view_id in self._valid_views:
            return TensorInfo(key, size, dtype, stride, offset, storage.info, requires_grad=grad)
        self.check_shape(key, size)
        if not is_size_or_stride(stride) or len(size) != len(stride):
            raise PickleTreeError(
                f"{quote_name(key)} has the size {_format_short(size)} and the stride"
                f" {_format_short(stride)}"
            )
        if type(offset) is not int or offset < 0:
            raise PickleTreeError(
                f"{quote_name(key)} starts at element {_format_short(offset)} of its storage"
            )
        if 0 not in size:
            _check_bounds(key, dtype, storage, view)
        if is_at_start and len(self._valid_views) < _MAX_VALID_VIEWS:
            self._valid_views[view_id] = (size, stride)
        if storage.start:
            offset += storage.start * DTYPE_BITS[storage.dtype] // DTYPE_BITS[dtype]
        return TensorInfo(key, size, dtype, stride, offset, storage.info, requires_grad=grad)

    def build_meta_tensor(self, key: str, dtype: str, size: Any, stride: Any) -> TensorInfo:
        """Return a tensor on the meta device: a shape without data.

        Raises:
            PickleTreeError: its size or stride is invalid.
        """
        self.check_shape(key, size)
        if not is_size_or_stride(stride):
            raise PickleTreeError(f"{quote_name(key)} has the stride {_format_short(stride)}")
        self._meta_count += 1
        numel = sum((n - 1) * step for n, step in zip(size, stride, strict=False)) + 1
        nbytes = numel * DTYPE_BITS[dtype] // 8 if 0 not in size else 0
        storage = StorageInfo(f"meta{self._meta_count}", nbytes, "meta")
        return self.build_strided_tensor(
            key, SavedStorage(storage, dtype, numel), dtype, (0, size, stride)
        )

    def resolve_storage(self, node: object, key: str) -> SavedStorage:
        """Return the storage of `node`: a persistent reference or an embedded file of torch.save.

        Raises:
            PickleTreeError: it is neither.
        """
        if type(node) is PersistentReference and type(node.target) is SavedStorage:
            return node.target
        if (
            type(node) is UnresolvedObject
            and node.callee_name == _LOAD_FROM_BYTES
            and len(node.args) == 1
        ):
            return self._resolve_embedded_storage(node.args[0], key)
        raise PickleTreeError(f"{quote_name(key)} has no storage")

    def _resolve_embedded_storage(self, blob: object, key: str) -> SavedStorage:
        if type(blob) is not bytes or self._read_embedded is None:
            raise PickleTreeError(f"{quote_name(key)} has its storage inside the pickle")
        return self._read_embedded(blob)

    def read_component(self, node: object, key: str, name: object, depth: int) -> TensorInfo | None:
        """Return the tensor of the component `name` of the tensor `key`, None if it is none."""
        if type(node) in ATOMIC_TYPES:
            return None
        return self.read_tensor(node, self._places.join(key, format_key(name)), depth)

    def charge_attributes(self, count: int, key: str) -> None:
        """Count attributes and components that are examined: tensors of tensors share them.

        Raises:
            PickleTreeError: there were more than `_MAX_ATTRIBUTES` in all.
        """
        self._attribute_count += count
        if self._attribute_count > _MAX_ATTRIBUTES:
            raise PickleTreeError(
                f"{quote_name(key)} and the tensors before it have more than {_MAX_ATTRIBUTES}"
                " attributes"
            )

    def require_tensor(self, node: object, key: str, depth: int) -> TensorInfo:
        """Return the tensor that `node` rebuilds.

        Raises:
            PickleTreeError: it is no tensor.
        """
        tensor = self.read_tensor(node, key, depth)
        if tensor is None:
            raise PickleTreeError(f"{quote_name(key)} is built from something that is not a tensor")
        return tensor

    def check_shape(self, key: str, size: object) -> tuple[int, ...]:
        """Return `size` if it is a valid shape.

        Raises:
            PickleTreeError: it is no tuple of sizes, or has more than `Limits.rank` dimensions.
        """
        if not is_size_or_stride(size):
            raise PickleTreeError(f"{quote_name(key)} has the size {_format_short(size)}")
        if len(size) > self._limits.rank:
            raise PickleTreeError(
                f"{quote_name(key)} has {len(size)} dimensions, more than {self._limits.rank}"
            )
        return size


def _check_bounds(key: str, dtype: str, storage: SavedStorage, view: tuple[Any, Any, Any]) -> None:
    offset, size, stride = view
    itemsize, nbytes = DTYPE_BITS[dtype] // 8, storage.numel * DTYPE_BITS[storage.dtype] // 8
    last = offset
    for length, step in zip(size, stride, strict=True):
        last += (length - 1) * step
    if (last + 1) * itemsize > nbytes:
        quoted_key, numel = quote_name(key), nbytes // itemsize
        raise PickleTreeError(
            f"{quoted_key} uses element {last} of a storage with {numel} elements"
        )
    if prod(size) * itemsize > nbytes and prod(size) * itemsize > _MAX_EXPANDED_BYTES:
        raise PickleTreeError(f"{quote_name(key)} would take {prod(size) * itemsize} bytes in full")


def read_dtype(node: object) -> str:
    """Return "float32" for the global torch.float32.

    Raises:
        PickleTreeError: it is no dtype of torch.
    """
    if type(node) is GlobalName and node.module == "torch" and node.name in DTYPE_BITS:
        return node.name
    raise PickleTreeError("a tensor's dtype is not one of torch's")


_DIFFERENTIABLE_PREFIXES: Final = ("float", "bfloat", "complex")
_MAX_WRAPPER_DEPTH: Final = 8
_MAX_VALID_VIEWS: Final = 4096
_MAX_ATTRIBUTES: Final = 1_000_000
_TYPE_TAG: Final = ("torch.jit._pickle", "restore_type_tag")
"""Call around a dict in TorchScript's pickles, which returns the dict."""
_LOAD_FROM_BYTES: Final = ("torch.storage", "_load_from_bytes")
_MAX_SIZE: Final = 1 << 63
_MAX_EXPANDED_BYTES: Final = 1 << 40
"""Maximum bytes of an expanded view: a stride of 0 expands four bytes to a terabyte."""

RebuildFunction = Callable[[TensorInfoReader, UnresolvedObject, str, int], TensorInfo]


def is_size_or_stride(numbers: object) -> TypeGuard[tuple[int, ...]]:
    """Whether `numbers` is a tuple of ints from 0 to 2**63 - 1."""
    if type(numbers) is not tuple:
        return False
    for number in numbers:  # noqa: SIM110 - a generator takes twice as long, 200,000 times
        if type(number) is not int or not 0 <= number < _MAX_SIZE:
            return False
    return True


def _format_short(value: object) -> str:
    """Return an int or up to 8 ints as text; for anything else "of type ..."."""
    if type(value) is int:
        return (
            str(value) if value.bit_length() < _MAX_PRINTED_BITS else f"{value.bit_length()} bits"
        )
    if type(value) is tuple and all(
        type(n) is int and n.bit_length() < _MAX_PRINTED_BITS for n in value
    ):
        return str(list(value[:8])) + ("..." if len(value) > 8 else "")
    return f"of type {type(value).__name__}"


_MAX_PRINTED_BITS: Final = 256


def _check_args(node: UnresolvedObject, key: str, min_args: int, max_args: int) -> tuple[Any, ...]:
    if not min_args <= len(node.args) <= max_args:
        raise PickleTreeError(f"{quote_name(key)} is rebuilt from {len(node.args)} arguments")
    return node.args


def _rebuild_tensor_v2(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    args = node.args if len(node.args) == 6 else _check_args(node, key, 6, 7)
    storage = reader.resolve_storage(args[0], key)
    grad = args[4] is not False and _read_requires_grad(args[4], storage.dtype, key)
    tensor = reader.build_strided_tensor(key, storage, storage.dtype, args[1:4], grad=grad)
    return _apply_metadata(tensor, args[6]) if len(args) > 6 else tensor


def _rebuild_first_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    """`_rebuild_tensor(storage, offset, size, stride)` of torch before 0.4."""
    args = _check_args(node, key, 4, 4)
    storage = reader.resolve_storage(args[0], key)
    return reader.build_strided_tensor(key, storage, storage.dtype, args[1:4])


def _read_requires_grad(flag: object, dtype: str, key: str) -> bool:
    """Return `requires_grad`.

    Raises:
        PickleTreeError: it is no bool, or True for a dtype that cannot have a gradient.
    """
    if type(flag) is not bool:
        raise PickleTreeError(f"{quote_name(key)} has a requires_grad of {type(flag).__name__}")
    if flag and not dtype.startswith(_DIFFERENTIABLE_PREFIXES):
        raise PickleTreeError(f"{quote_name(key)} is {dtype} but marked as requiring a gradient")
    return flag


def _rebuild_tensor_v3(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    args = _check_args(node, key, 7, 8)
    dtype = read_dtype(args[6])
    grad = _read_requires_grad(args[4], dtype, key)
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


def _rebuild_parameter(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    arity = 4 if node.callee_name[1] == "_rebuild_parameter_with_state" else 3
    args = _check_args(node, key, arity, arity)
    tensor = reader.require_tensor(args[0], key, depth)
    grad = _read_requires_grad(args[1], tensor.dtype, key)
    _check_attributes(args[3] if arity == 4 else None, key)
    return replace(tensor, requires_grad=grad, kind=Kind.PARAMETER)


def _rebuild_legacy_parameter(
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


def _rebuild_uninitialized(
    reader: TensorInfoReader,  # noqa: ARG001 (the type of all rebuild functions)
    node: UnresolvedObject,
    key: str,
    _depth: int,
) -> TensorInfo:
    """Parameter or buffer of a lazy module before its first call: no shape, and no data."""
    (grad,) = _check_args(node, key, 1, 1)
    return TensorInfo(
        key, (0,), "float32", (1,), 0, None, layout="lazy", requires_grad=grad is True
    )


def _list_state_items(state: object) -> tuple[Any, ...]:
    return state if type(state) is tuple else ()


def _rebuild_legacy_tensor(
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


def _rebuild_sparse_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    grad = False
    if reader.is_script:
        name, data, grad = _read_script_layout(node, key)
    else:
        layout, data = _check_args(node, key, 2, 2)
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
    reader.check_shape(key, size)
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
    number, size, grad, *components, _ = _check_args(node, key, 6, 7)
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


def _rebuild_quantized_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    storage, offset, size, stride, scheme, grad, _ = _check_args(node, key, 7, 7)
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
    if type(node) is int and abs(node) < _MAX_SIZE:
        return _build_content_tensor(key, "int64", pack("<q", node))
    return None


def _build_content_tensor(key: str, dtype: str, content: bytes) -> TensorInfo:
    storage = StorageInfo(f"scalar {key}", len(content), content=content)
    return TensorInfo(key, (), dtype, (), 0, storage)


def _rebuild_nested_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    names = ("buffer", "sizes", "strides", "offsets")
    args = _check_args(node, key, 4, 4)
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


def _rebuild_jagged_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    """Nested tensor with layout=torch.jagged; its other arguments are attributes as well."""
    (fields,) = _check_args(node, key, 1, 1)
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


def _rebuild_meta_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    dtype, size, stride, grad = _check_args(node, key, 4, 4)
    tensor = reader.build_meta_tensor(key, read_dtype(dtype), size, stride)
    return replace(tensor, requires_grad=grad is True)


def _rebuild_device_tensor(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    """XLA and other devices: the data are in a CPU tensor, or in a numpy array in the pickle."""
    data, dtype, device, grad = _check_args(node, key, 4, 4)
    tensor = reader.read_tensor(data, key, depth) or read_numpy_array(data, key)
    if tensor is None or tensor.dtype != read_dtype(dtype):
        raise PickleTreeError(f"{quote_name(key)} is not built from data of its dtype")
    if tensor.kind is Kind.ARRAY:
        location = device if type(device) is str else "cpu"
        if tensor.storage is None:
            raise PickleTreeError(f"{quote_name(key)} is built from an array without its elements")
        tensor = replace(tensor, storage=replace(tensor.storage, device=location), kind=None)
    return replace(tensor, requires_grad=grad is True)


def _rebuild_from_type(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, depth: int
) -> TensorInfo:
    """`_rebuild_from_type_v2(function, type, arguments, state)`; the state is optional."""
    func, cls, args, *state = _check_args(node, key, 4, 4)
    if type(func) is not GlobalName or type(cls) is not GlobalName or type(args) is not tuple:
        raise PickleTreeError(f"{quote_name(key)} is a tensor subclass without its class")
    tensor = reader.require_tensor(UnresolvedObject(func, args), key, depth)
    mappings = _check_attributes(state[0] if state else None, key)
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
                    for mapping in _list_state_items(shard.state) or (shard.state,):
                        if isinstance(mapping, dict):
                            yield f"shard {number}", mapping.get("tensor")


_SHARD_CLASS: Final = ("torch.distributed._shard.sharded_tensor.shard", "Shard")


def _check_attributes(attributes: object, key: str) -> tuple[object, ...]:
    """Return the mappings that torch sets as attributes: one, or one and that of __slots__.

    Raises:
        PickleTreeError: one of them would give the tensor other data, or another class.
    """
    mappings = attributes if type(attributes) is tuple else (attributes,)
    for mapping in mappings:
        if isinstance(mapping, dict) and not DATA_ATTRIBUTES.isdisjoint(mapping):
            name = next(iter(DATA_ATTRIBUTES.intersection(mapping)))
            raise PickleTreeError(f"{quote_name(key)} has its attribute `{name}` replaced")
    return mappings


DATA_ATTRIBUTES: Final = frozenset(
    [
        *("__class__", "__dict__", "_backward_hooks", "_grad", "_grad_fn"),
        *("_post_accumulate_grad_hooks", "data", "grad", "grad_dtype", "imag", "names", "real"),
        *("requires_grad", "volatile"),
    ]
)
"""Attributes of torch.Tensor that can be set: none is in the `__dict__` that torch saves."""
_LEGACY_STATE_ITEMS: Final = 3
"""requires_grad, volatile and hooks of a Variable of torch before 0.4."""
TENSOR_CLASSES: Final = frozenset(
    {
        ("torch", "Tensor"),
        ("torch._tensor", "Tensor"),
        ("torch.nn.parameter", "Buffer"),
        ("torch.nn.parameter", "Parameter"),
    }
)
"""(module, name) of the classes of plain tensors, as a state_dict has them."""


def _rebuild_wrapper_subclass(
    reader: TensorInfoReader, node: UnresolvedObject, key: str, _depth: int
) -> TensorInfo:
    """Wrapper subclass (DTensor, torchao); `_rebuild_from_type` adds its components."""
    cls, dtype, size, stride, offset, *_, grad = _check_args(node, key, 8, 8)
    reader.check_shape(key, size)
    if type(cls) is not GlobalName or not is_size_or_stride(stride) or len(stride) != len(size):
        raise PickleTreeError(f"{quote_name(key)} is an impossible tensor subclass")
    if (cls.module, cls.name) in SAFE_GLOBALS:  # torch.Tensor itself wraps nothing
        raise PickleTreeError(f"{quote_name(key)} is wrapped in a {cls.qualified_name}")
    storage_offset = offset if type(offset) is int and offset >= 0 else 0
    return TensorInfo(
        key, size, read_dtype(dtype), stride, storage_offset, None,
        layout="wrapper", wrapper=cls.qualified_name, requires_grad=grad is True,
    )  # fmt: skip


_LEGACY_TENSOR_TYPES: Final = "Float Double Half BFloat16 Byte Char Short Int Long Bool"
REBUILD_FUNCTIONS: Final[Mapping[tuple[str, str], RebuildFunction]] = MappingProxyType(
    {
        ("torch._utils", "_rebuild_tensor"): _rebuild_first_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch._utils", "_rebuild_sparse_tensor"): _rebuild_sparse_tensor,
        ("torch._utils", "_rebuild_sparse_csr_tensor"): _rebuild_sparse_tensor,
        ("torch._utils", "_rebuild_qtensor"): _rebuild_quantized_tensor,
        ("torch._utils", "_rebuild_nested_tensor"): _rebuild_nested_tensor,
        ("torch.nested._internal.nested_tensor", "_rebuild_njt"): _rebuild_jagged_tensor,
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuild_meta_tensor,
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _rebuild_device_tensor,
        ("torch._utils", "_rebuild_device_tensor_from_numpy"): _rebuild_device_tensor,
        ("torch._utils", "_rebuild_xla_tensor"): _rebuild_device_tensor,
        ("torch._utils", "_rebuild_wrapper_subclass"): _rebuild_wrapper_subclass,
        ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
        ("torch._tensor", "_rebuild_from_type"): _rebuild_from_type,
        ("torch.tensor", "_rebuild_from_type"): _rebuild_from_type,
        ("torch.nn.parameter", "Parameter"): _rebuild_legacy_parameter,
        ("torch.nn.parameter", "UninitializedParameter"): _rebuild_uninitialized,
        ("torch.nn.parameter", "UninitializedBuffer"): _rebuild_uninitialized,
        ("torch.autograd.variable", "Variable"): _rebuild_legacy_parameter,
        ("torch", "Tensor"): _rebuild_legacy_tensor,
        **{
            (module, f"{name}Tensor"): _rebuild_legacy_tensor
            for name in _LEGACY_TENSOR_TYPES.split()
            for module in ("torch", "torch.cuda")
        },
    }
)
"""(module, name) of the callee in a pickle -> RebuildFunction of the tensor it returns."""
