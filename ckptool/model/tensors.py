"""Tensors and their storages: shapes and places, without data."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate
from math import prod
from operator import mul

from msgspec import Struct

from ckptool.locations import Location
from ckptool.model.dtypes import DTYPE_BITS


class Kind(StrEnum):
    """Role of a tensor in the module that owns it."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    NON_PERSISTENT_BUFFER = "non-persistent-buffer"
    ATTRIBUTE = "attribute"
    CONTAINER = "container"
    """An element of a list, tuple, dict, set, deque, dataclass or partial."""
    ARRAY = "array"
    """A numpy array."""
    MODULE = "module"
    """A tensor of a module that `named_modules()` does not list."""
    CLASS_ATTRIBUTE = "class-attribute"


class Span(Struct, frozen=True, gc=False):
    """Byte span of a file: `offset` to `offset + nbytes`."""

    path: Location
    offset: int
    nbytes: int


class StorageInfo(Struct, frozen=True, gc=False):
    """Storage of one or more tensors. Equal storages mean shared memory: tied tensors and views."""

    key: str
    """Name within the file: the number of the zip record, or the tensor's key in safetensors."""
    nbytes: int
    device: str = "cpu"
    """Saved location tag: "cpu", "cuda:0"."""
    span: Span | None = None
    """Byte span of the storage; None where it is compressed or not in a file."""
    byteorder: str = "little"
    content: bytes | None = None
    """The bytes themselves, of a numpy array that stands in the pickle; None if they do not."""


class TensorComponent(Struct, frozen=True):
    """Component of a non-strided tensor: a chunk, or for example the indices of a sparse tensor."""

    name: str
    """"indices", "values", "scales" ... for layouts; "" for a chunk."""
    offsets: tuple[int, ...]
    """First index of a chunk in the full tensor, one per dimension; () for layouts."""
    tensor: "TensorInfo"


class TensorInfo(Struct, frozen=True, gc=False):
    """Description of one tensor without its data."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    """torch's name without the prefix: "float32", "bfloat16", "float8_e4m3fn"."""
    stride: tuple[int, ...]
    """In elements, one per dimension; () if the layout is not strided."""
    storage_offset: int
    """In elements."""
    storage: StorageInfo | None
    """None where `parts` hold the data, and for parameters without a shape (layout "lazy")."""
    layout: str = "strided"
    """"strided", "sparse_coo", "sparse_csr", "quantized", "nested", "chunked" ..."""
    wrapper: str = ""
    """Qualified name of the tensor subclass, "" for a plain tensor or parameter."""
    kind: Kind | None = None
    """Set for tensors of a module, and for tensors of a file that records it."""
    requires_grad: bool = False
    parts: tuple[TensorComponent, ...] = ()

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; the storage may be larger."""
        if self.parts:
            if self.storage is None and self.layout != "chunked":
                return sum(component.tensor.nbytes for component in self.parts)
            if self.layout == "quantized":  # of 2 or 4 elements in a byte, too
                return self.parts[0].tensor.nbytes
        bits = DTYPE_BITS.get(self.dtype)
        if bits is None:
            # A numpy array with a dtype that torch lacks.
            return self.storage.nbytes if self.storage is not None else 0
        return (prod(self.shape) * bits + 7) // 8

    @property
    def device(self) -> str:
        if self.storage is not None:
            return self.storage.device
        return self.parts[0].tensor.device if self.parts else "cpu"

    @property
    def is_on_meta(self) -> bool:
        """Whether it is a shape without data: where a file has bytes for it, "meta" is but a tag.

        torch.load(map_location="cpu") puts those bytes on the CPU, as with every other tag.
        """
        storage = self.storage
        if storage is None:
            return self.device == "meta"
        return storage.device == "meta" and (storage.span or storage.content) is None

    @property
    def is_array(self) -> bool:
        """Whether it is a NumPy array, which load_state_dict() does not copy."""
        return self.kind is Kind.ARRAY

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements are adjacent in the storage, in C order."""
        if self.layout != "strided" or self.storage is None:
            return False
        if len(self.shape) == 1:
            return self.stride[0] == 1 or self.shape[0] <= 1
        expected_stride = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size == 0:
                return True
            if size != 1 and stride != expected_stride:
                return False
            expected_stride *= size
        return True

    @property
    def span(self) -> Span | None:
        """Byte span of the elements in the file.

        None if they are not contiguous, not little-endian, compressed, or not in a file.
        """
        storage = self.storage
        if storage is None or storage.span is None or not self.is_contiguous:
            return None
        bits = DTYPE_BITS[self.dtype]
        if bits > 8 and storage.byteorder != "little":
            return None
        start, nbytes = self.storage_offset * bits // 8, (prod(self.shape) * bits + 7) // 8
        if not start and nbytes == storage.span.nbytes:
            return storage.span
        return Span(storage.span.path, storage.span.offset + start, nbytes)


class Preview(Struct, frozen=True, gc=False):
    """Values of a small tensor, or of a subsample of the rows and columns of a larger one."""

    rows: tuple[tuple[float, ...], ...]
    is_complete: bool
    """Whether it holds every element."""


@lru_cache(maxsize=4096)
def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return torch's strides of a contiguous (C order) tensor, in elements."""
    if len(shape) < 2:  # as most tensors of most files
        return (1,) * len(shape)
    outer_strides = accumulate((max(1, size) for size in reversed(shape[1:])), mul, initial=1)
    return tuple(outer_strides)[::-1]


def group_by_storage(tensors: Iterable[TensorInfo]) -> tuple[tuple[TensorInfo, ...], ...]:
    """Return groups of at least two non-empty tensors that share a storage, in order."""
    non_empty = [t for t in tensors if t.storage is not None and 0 not in t.shape]
    # Nearly all storages have one tensor and a unique key; hashing the key is much faster.
    storage_keys = [t.storage.key for t in non_empty if t.storage]
    if len(set(storage_keys)) == len(storage_keys):
        return ()
    key_counts = Counter(storage_keys)
    tensors_by_storage: dict[StorageInfo, list[TensorInfo]] = {}
    for tensor, key in zip(non_empty, storage_keys, strict=True):
        if key_counts[key] > 1 and tensor.storage:
            tensors_by_storage.setdefault(tensor.storage, []).append(tensor)
    return tuple(tuple(group) for group in tensors_by_storage.values() if len(group) > 1)


def tied_keys(tensors: Iterable[TensorInfo]) -> tuple[tuple[str, ...], ...]:
    """Return groups of keys that are the same view of the same storage, in order."""
    keys_by_view: dict[object, list[str]] = {}
    for group in group_by_storage(tensors):
        for t in group:
            view = (t.storage, t.dtype, t.storage_offset, t.shape, t.stride, t.layout)
            keys_by_view.setdefault(view, []).append(t.key)
    return tuple(tuple(keys) for keys in keys_by_view.values() if len(keys) > 1)
