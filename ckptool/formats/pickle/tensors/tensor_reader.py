"""Node of a pickle -> TensorInfo, the view checked against its storage."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Final

from msgspec.structs import replace

from ckptool.formats.limits import Limits
from ckptool.formats.pickle.nodes import (
    ATOMIC_TYPES,
    PersistentReference,
    PickleTreeError,
    SizeNode,
    TensorCall,
    UnresolvedObject,
)
from ckptool.formats.pickle.numpy_arrays import read_numpy_array
from ckptool.formats.pickle.places import PlaceJoiner
from ckptool.formats.pickle.plain_values import format_key, quote_name
from ckptool.formats.pickle.tensors.argument_checks import (
    format_short,
    is_size_or_stride,
    read_requires_grad,
)
from ckptool.formats.pickle.tensors.storage import EmbeddedStorageReader, SavedStorage
from ckptool.model import (
    DTYPE_BITS,
    StorageInfo,
    TensorInfo,
)

_MAX_WRAPPER_DEPTH: Final = 8
_MAX_VALID_VIEWS: Final = 4096
_MAX_ATTRIBUTES: Final = 1_000_000
_MAX_EXPANDED_BYTES: Final = 1 << 40
"""Maximum bytes of an expanded view: a stride of 0 expands four bytes to a terabyte."""
_LOAD_FROM_BYTES: Final = ("torch.storage", "_load_from_bytes")


class TensorInfoReader:
    """Reads the tensors of one tree."""

    def __init__(
        self,
        limits: Limits,
        rebuild_functions: "Mapping[tuple[str, str], RebuildFunction]",
        read_embedded: EmbeddedStorageReader | None = None,
        *,
        is_script: bool = False,
    ) -> None:
        self.is_script = is_script
        """Whether TorchScript wrote the pickle."""
        self._limits = limits
        self._rebuild_functions = rebuild_functions
        self._read_embedded = read_embedded
        self._meta_count = 0
        self._attribute_count = 0
        self._places = PlaceJoiner()
        self._valid_calls: set[TensorCall] = set()
        """Those whose arguments were checked."""
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
            rebuild = self._rebuild_by_callee[node.func] = self._rebuild_functions.get(
                node.callee_name
            )
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

    def read_call(
        self, storage_node: PersistentReference, call: TensorCall, key: str
    ) -> TensorInfo:
        """Return the tensor of a call of `_rebuild_tensor_v2`; equal calls are checked once.

        Raises:
            PickleTreeError: its arguments are invalid.
        """
        storage = storage_node.target
        if call not in self._valid_calls or type(storage) is not SavedStorage or storage.start:
            storage = self.resolve_storage(storage_node, key)
            grad = read_requires_grad(call.requires_grad, storage.dtype, key)
            tensor = self.build_strided_tensor(key, storage, storage.dtype, call.view, grad=grad)
            is_plain = SizeNode not in map(type, call.view)
            if is_plain and len(self._valid_calls) < _MAX_VALID_VIEWS:
                self._valid_calls.add(call)
            return tensor
        offset, size, stride = call.view
        grad = call.requires_grad
        return TensorInfo(
            key, size, storage.dtype, stride, offset, storage.info, requires_grad=grad
        )

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
        if SizeNode in (type(size), type(stride)):
            size, stride = (tuple(n) if type(n) is SizeNode else n for n in (size, stride))
        view_id = (id(size), id(stride), dtype, storage.dtype, storage.numel)
        is_at_start = type(offset) is int and not offset and not storage.start
        if is_at_start and view_id in self._valid_views:
            return TensorInfo(key, size, dtype, stride, offset, storage.info, requires_grad=grad)
        self.check_shape(key, size)
        if not is_size_or_stride(stride) or len(size) != len(stride):
            raise PickleTreeError(
                f"{quote_name(key)} has the size {format_short(size)} and the stride"
                f" {format_short(stride)}"
            )
        if type(offset) is not int or offset < 0:
            raise PickleTreeError(
                f"{quote_name(key)} starts at element {format_short(offset)} of its storage"
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
            raise PickleTreeError(f"{quote_name(key)} has the stride {format_short(stride)}")
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
        if not isinstance(blob, bytes) or self._read_embedded is None:
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
            raise PickleTreeError(f"{quote_name(key)} has the size {format_short(size)}")
        if len(size) > self._limits.rank:
            raise PickleTreeError(
                f"{quote_name(key)} has {len(size)} dimensions, more than {self._limits.rank}"
            )
        return tuple(size)


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


RebuildFunction = Callable[[TensorInfoReader, UnresolvedObject, str, int], TensorInfo]
"""(reader, node of the call, key, depth of the nesting) -> tensor; raises PickleTreeError."""
