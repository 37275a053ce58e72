"""Pickled call that rebuilds a tensor -> TensorInfo, every number in it checked."""

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, Final, TypeGuard

from msgspec import Struct
from msgspec.structs import replace

from ckptool.formats.arrays import numpy_array
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global, Opaque, Persistent
from ckptool.formats.plain import quoted
from ckptool.model import BITS, Kind, Part, StorageInfo, TensorInfo


class TreeError(ValueError):
    """The content of a pickle contradicts itself or its container."""


class Stored(Struct, gc=False):
    """A storage that a pickle refers to, located in its container."""

    info: StorageInfo
    dtype: str
    """dtype of its elements; "uint8" for an untyped storage."""
    numel: int
    start: int = 0
    """First element of a storage view in `info`; only torch before 1.6 wrote them."""


Embedded = Callable[[bytes], Stored]
"""(bytes of a file of torch.save that a pickle embeds) -> its storage."""


class Tensors:
    """Reads the tensors of one tree."""

    def __init__(self, limits: Limits, embedded: Embedded | None = None) -> None:
        self._limits = limits
        self._embedded = embedded
        self._meta = 0
        self._known: dict[object, Rebuild | None] = {}
        """Callee -> RebuildFunction, None if it returns no tensor."""

    def read(self, node: object, key: str, depth: int = 0) -> TensorInfo | None:
        """Return the tensor that `node` rebuilds, None if it is no tensor.

        Raises:
            PickleTreeError: its arguments are invalid.
        """
        if type(node) is Opaque:
            try:
                rebuild = self._known[node.func]
            except KeyError:
                rebuild = self._known[node.func] = _REBUILD.get(node.name)
            if rebuild is None:
                return None
            if depth > _WRAPPED:
                raise TreeError(f"{quoted(key)} wraps tensors in tensors without end")
            return rebuild(self, node, key, depth + 1)
        if type(node) is Persistent and type(node.resolved) is TensorInfo:
            return replace(node.resolved, key=key)
        return None

    def strided(
        self,
        key: str,
        stored: Stored,
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
        self.shape(key, size)
        if not naturals(stride) or len(size) != len(stride):
            raise TreeError(
                f"{quoted(key)} has the size {_short(size)} and the stride {_short(stride)}"
            )
        if type(offset) is not int or offset < 0:
            raise TreeError(f"{quoted(key)} starts at element {_short(offset)} of its storage")
        if 0 not in size:
            _check_bounds(key, dtype, stored, view)
        if stored.start:
            offset += stored.start * BITS[stored.dtype] // BITS[dtype]
        return TensorInfo(key, size, dtype, stride, offset, stored.info, requires_grad=grad)

    def without_data(self, key: str, dtype: str, size: Any, stride: Any) -> TensorInfo:
        """Return a tensor on the meta device: a shape without data."""
        self.shape(key, size)
        if not naturals(stride):
            raise TreeError(f"{quoted(key)} has the stride {_short(stride)}")
        self._meta += 1
        reach = sum((n - 1) * step for n, step in zip(size, stride, strict=False)) + 1
        nbytes = reach * BITS[dtype] // 8 if 0 not in size else 0
        storage = StorageInfo(f"meta{self._meta}", nbytes, "meta")
        return self.strided(key, Stored(storage, dtype, reach), dtype, (0, size, stride))

    def stored(self, node: object, key: str) -> Stored:
        """Return the storage of `node`: a persistent reference or an embedded file of torch.save.

        Raises:
            PickleTreeError: it is neither.
        """
        if type(node) is Persistent and type(node.resolved) is Stored:
            return node.resolved
        if type(node) is Opaque and node.name == _EMBEDDED and len(node.args) == 1:
            return self._within(node.args[0], key)
        raise TreeError(f"{quoted(key)} has no storage")

    def _within(self, blob: object, key: str) -> Stored:
        if type(blob) is not bytes or self._embedded is None:
            raise TreeError(f"{quoted(key)} has its storage within the pickle")
        return self._embedded(blob)

    def need(self, node: object, key: str, depth: int) -> TensorInfo:
        """Return the tensor that `node` rebuilds.

        Raises:
            PickleTreeError: it is no tensor.
        """
        tensor = self.read(node, key, depth)
        if tensor is None:
            raise TreeError(f"{quoted(key)} is made of something that is no tensor")
        return tensor

    def shape(self, key: str, size: object) -> tuple[int, ...]:
        """Return `size` if it is a valid shape.

        Raises:
            PickleTreeError: it is no tuple of sizes, or has more than `Limits.rank` dimensions.
        """
        if not naturals(size):
            raise TreeError(f"{quoted(key)} has the size {_short(size)}")
        if len(size) > self._limits.rank:
            raise TreeError(
                f"{quoted(key)} has {len(size)} dimensions, more than {self._limits.rank}"
            )
        return size


def _check_bounds(key: str, dtype: str, stored: Stored, view: tuple[Any, Any, Any]) -> None:
    offset, size, stride = view
    itemsize, nbytes = BITS[dtype] // 8, stored.numel * BITS[stored.dtype] // 8
    last = offset
    for length, step in zip(size, stride, strict=True):
        last += (length - 1) * step
    if (last + 1) * itemsize > nbytes:
        name, held = quoted(key), nbytes // itemsize
        raise TreeError(f"{name} reaches element {last} of a storage of {held} elements")
    if prod(size) * itemsize > nbytes and prod(size) * itemsize > _EXPANDED:
        raise TreeError(f"{quoted(key)} would take {prod(size) * itemsize} bytes in full")


def dtype_of(node: object) -> str:
    """Return "float32" for the global torch.float32.

    Raises:
        PickleTreeError: it is no dtype of torch.
    """
    if type(node) is Global and node.module == "torch" and node.name in BITS:
        return node.name
    raise TreeError("a tensor's dtype is not one of torch's")


_WRAPPED: Final = 8
_EMBEDDED: Final = ("torch.storage", "_load_from_bytes")
_MOST: Final = 1 << 63
_EXPANDED: Final = 1 << 40
"""Maximum bytes of an expanded view: a stride of 0 expands four bytes to a terabyte."""

Rebuild = Callable[[Tensors, Opaque, str, int], TensorInfo]


def naturals(numbers: object) -> TypeGuard[tuple[int, ...]]:
    """Whether `numbers` is a tuple of ints from 0 to 2**63 - 1."""
    if type(numbers) is not tuple:
        return False
    for number in numbers:  # noqa: SIM110 - a generator takes twice as long, 200,000 times
        if type(number) is not int or not 0 <= number < _MOST:
            return False
    return True


def _short(value: object) -> str:
    """Return an int or up to 8 ints as text; for anything else "of type ..."."""
    if type(value) is int:
        return str(value) if value.bit_length() < _PRINTED else f"{value.bit_length()} bits"
    if type(value) is tuple and all(type(n) is int and n.bit_length() < _PRINTED for n in value):
        return str(list(value[:8])) + ("..." if len(value) > 8 else "")
    return f"of type {type(value).__name__}"


_PRINTED: Final = 256


def _args(node: Opaque, key: str, least: int, most: int) -> tuple[Any, ...]:
    if not least <= len(node.args) <= most:
        raise TreeError(f"{quoted(key)} is rebuilt from {len(node.args)} arguments")
    return node.args


def _v2(tensors: Tensors, node: Opaque, key: str, _depth: int) -> TensorInfo:
    args = _args(node, key, 4, 7)
    stored = tensors.stored(args[0], key)
    grad = len(args) > 4 and args[4] is True
    made = tensors.strided(key, stored, stored.dtype, args[1:4], grad=grad)
    return _marked(made, args[6]) if len(args) > 6 else made


def _v3(tensors: Tensors, node: Opaque, key: str, _depth: int) -> TensorInfo:
    args = _args(node, key, 7, 8)
    dtype = dtype_of(args[6])
    made = tensors.strided(
        key, tensors.stored(args[0], key), dtype, args[1:4], grad=args[4] is True
    )
    return _marked(made, args[7]) if len(args) > 7 else made


def _marked(made: TensorInfo, metadata: object) -> TensorInfo:
    """Set layout "conj", "neg" or "conj-neg": the elements are not the bytes in the storage."""
    if not isinstance(metadata, dict):
        raise TreeError(f"{quoted(made.key)} has metadata that is no dict")
    marks = [mark for mark in ("conj", "neg") if metadata.get(mark) is True]
    return replace(made, layout="-".join(marks)) if marks else made


def _parameter(tensors: Tensors, node: Opaque, key: str, depth: int) -> TensorInfo:
    args = _args(node, key, 2, 4)
    made = tensors.need(args[0], key, depth)
    return replace(made, requires_grad=args[1] is True, kind=Kind.PARAMETER)


def _old_parameter(tensors: Tensors, node: Opaque, key: str, depth: int) -> TensorInfo:
    """Parameter or Variable of torch before 0.4: the data are its first argument or state item."""
    source = node.args or (node.state if type(node.state) is tuple else ())
    made = tensors.need(source[0] if source else None, key, depth)
    kind = Kind.PARAMETER if node.name[1] == "Parameter" else None
    grad = next((flag for flag in (*source[1:], *_flags(node.state)) if type(flag) is bool), True)
    return replace(made, requires_grad=grad, kind=kind)


def _flags(state: object) -> tuple[Any, ...]:
    return state if type(state) is tuple else ()


def _old_tensor(tensors: Tensors, node: Opaque, key: str, _depth: int) -> TensorInfo:
    """torch.FloatTensor of torch before 0.2: its state is (storage, offset, size, stride)."""
    if type(node.state) is not tuple or len(node.state) != 4:
        raise TreeError(f"{quoted(key)} is a tensor without its state")
    stored = tensors.stored(node.state[0], key)
    return tensors.strided(key, stored, stored.dtype, node.state[1:])


def _sparse(tensors: Tensors, node: Opaque, key: str, depth: int) -> TensorInfo:
    layout, data = _args(node, key, 2, 2)
    name = _layout(layout)
    names = _SPARSE.get(name)
    if names is None or type(data) is not tuple or len(data) < len(names) + 1:
        raise TreeError(f"{quoted(key)} is sparse in a way that is not known")
    parts = tuple(
        Part(part, (), tensors.need(piece, f"{key}.{part}", depth))
        for part, piece in zip(names, data, strict=False)
    )
    size = data[len(names)]
    values = parts[-1].tensor
    tensors.shape(key, size)
    if name == "sparse_coo":
        _check_coo(key, size, parts[0].tensor, values)
    return TensorInfo(key, size, values.dtype, (), 0, None, layout=name, parts=parts)


def _layout(node: object) -> str:
    """Return "sparse_coo" of `_get_layout("torch.sparse_coo")` or of the global; "" if invalid."""
    name = node.args[0] if type(node) is Opaque and node.args else node
    if type(name) is Global:
        name = name.qualified
    return name.removeprefix("torch.") if type(name) is str else ""


_SPARSE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "sparse_coo": ("indices", "values"),
        "sparse_csr": ("crow_indices", "col_indices", "values"),
        "sparse_bsr": ("crow_indices", "col_indices", "values"),
        "sparse_csc": ("ccol_indices", "row_indices", "values"),
        "sparse_bsc": ("ccol_indices", "row_indices", "values"),
    }
)


def _check_coo(key: str, size: tuple[int, ...], indices: TensorInfo, values: TensorInfo) -> None:
    fits = len(indices.shape) == 2 and values.shape[:1] == indices.shape[1:]
    if not fits or len(size) != indices.shape[0] + len(values.shape) - 1:
        raise TreeError(
            f"{quoted(key)} is sparse and its indices {list(indices.shape)} and values "
            f"{list(values.shape)} do not make the size {list(size)}"
        )


def _quantized(tensors: Tensors, node: Opaque, key: str, depth: int) -> TensorInfo:
    storage, offset, size, stride, scheme, grad, *_ = _args(node, key, 6, 7)
    stored = tensors.stored(storage, key)
    made = tensors.strided(key, stored, stored.dtype, (offset, size, stride), grad=grad is True)
    if type(scheme) is not tuple or not scheme or type(scheme[0]) is not Global:
        raise TreeError(f"{quoted(key)} is quantized without a scheme")
    named = zip(("scales", "zero_points"), scheme[1:3], strict=False)
    found = ((name, tensors.read(piece, f"{key}.{name}", depth)) for name, piece in named)
    parts = tuple(Part(name, (), piece) for name, piece in found if piece is not None)
    return replace(made, layout="quantized", parts=parts)


def _nested(tensors: Tensors, node: Opaque, key: str, depth: int) -> TensorInfo:
    names = ("buffer", "sizes", "strides", "offsets")
    args = _args(node, key, 4, 4)
    parts = tuple(
        Part(name, (), tensors.need(piece, f"{key}.{name}", depth))
        for name, piece in zip(names, args, strict=True)
    )
    buffer, sizes = parts[0].tensor, parts[1].tensor
    return TensorInfo(key, sizes.shape[:1], buffer.dtype, (), 0, None, layout="nested", parts=parts)


def _meta(tensors: Tensors, node: Opaque, key: str, _depth: int) -> TensorInfo:
    dtype, size, stride, grad = _args(node, key, 4, 4)
    made = tensors.without_data(key, dtype_of(dtype), size, stride)
    return replace(made, requires_grad=grad is True)


def _on_device(tensors: Tensors, node: Opaque, key: str, depth: int) -> TensorInfo:
    """XLA and other devices: the data are in a CPU tensor, or in a numpy array in the pickle."""
    data, dtype, device, grad = _args(node, key, 4, 4)
    made = tensors.read(data, key, depth) or numpy_array(data, key)
    if made is None or made.dtype != dtype_of(dtype):
        raise TreeError(f"{quoted(key)} is not made of data of its dtype")
    if made.storage is None:
        place = device if type(device) is str else "cpu"
        made = replace(made, storage=StorageInfo(f"array {key}", made.nbytes, place), kind=None)
    return replace(made, requires_grad=grad is True)


def _subclass(tensors: Tensors, node: Opaque, key: str, depth: int) -> TensorInfo:
    """`_rebuild_from_type_v2(function, type, arguments, state)`; the state is optional."""
    func, cls, args, *state = _args(node, key, 3, 4)
    if type(func) is not Global or type(cls) is not Global or type(args) is not tuple:
        raise TreeError(f"{quoted(key)} is a tensor subclass without its class")
    made = tensors.need(Opaque(func, args), key, depth)
    kept = state[0] if state else None
    kept = kept[0] if type(kept) is tuple and kept else kept
    inner = kept.items() if isinstance(kept, dict) and made.storage is None else ()
    found = ((name, tensors.read(value, f"{key}.{name}", depth)) for name, value in inner)
    parts = tuple(Part(str(name), (), piece) for name, piece in found if piece is not None)
    if (cls.module, cls.name) == ("torch.nn.parameter", "Parameter"):
        return replace(made, kind=Kind.PARAMETER)
    wrapper = "" if (cls.module, cls.name) in _PLAIN else cls.qualified
    return replace(made, wrapper=wrapper, parts=made.parts + parts)


_PLAIN: Final = frozenset({("torch", "Tensor"), ("torch._tensor", "Tensor")})


def _wrapper(tensors: Tensors, node: Opaque, key: str, _depth: int) -> TensorInfo:
    """Wrapper subclass (DTensor, torchao); `_rebuild_from_type` adds its components."""
    cls, dtype, size, stride, offset, *_, grad = _args(node, key, 8, 8)
    tensors.shape(key, size)
    if type(cls) is not Global or not naturals(stride) or len(stride) != len(size):
        raise TreeError(f"{quoted(key)} is a tensor subclass that cannot be")
    at = offset if type(offset) is int and offset >= 0 else 0
    return TensorInfo(
        key, size, dtype_of(dtype), stride, at, None,
        layout="wrapper", wrapper=cls.qualified, requires_grad=grad is True,
    )  # fmt: skip


_TYPED: Final = "Float Double Half BFloat16 Byte Char Short Int Long Bool"
_REBUILD: Final[Mapping[tuple[str, str], Rebuild]] = MappingProxyType(
    {
        ("torch._utils", "_rebuild_tensor"): _v2,
        ("torch._utils", "_rebuild_tensor_v2"): _v2,
        ("torch._utils", "_rebuild_tensor_v3"): _v3,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
        ("torch._utils", "_rebuild_sparse_csr_tensor"): _sparse,
        ("torch._utils", "_rebuild_qtensor"): _quantized,
        ("torch._utils", "_rebuild_nested_tensor"): _nested,
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): _meta,
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _on_device,
        ("torch._utils", "_rebuild_device_tensor_from_numpy"): _on_device,
        ("torch._utils", "_rebuild_xla_tensor"): _on_device,
        ("torch._utils", "_rebuild_wrapper_subclass"): _wrapper,
        ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
        ("torch._tensor", "_rebuild_from_type"): _subclass,
        ("torch.tensor", "_rebuild_from_type"): _subclass,
        ("torch.nn.parameter", "Parameter"): _old_parameter,
        ("torch.autograd.variable", "Variable"): _old_parameter,
        ("torch", "Tensor"): _old_tensor,
        **{(module, f"{name}Tensor"): _old_tensor for name in _TYPED.split()
           for module in ("torch", "torch.cuda")},
    }
)  # fmt: skip
"""(module, name) of the callee in a pickle -> RebuildFunction of the tensor it returns."""
