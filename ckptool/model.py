"""The facts that the stages hand on: frozen, plain, and without torch."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from math import prod
from typing import Final

from msgspec import Struct

from ckptool.grids import Preview
from ckptool.locations import Location

BITS: Final[Mapping[str, int]] = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float4_e2m1fn_x2": 8,
    "complex128": 128,
    "complex64": 64,
    "complex32": 32,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint64": 64,
    "uint32": 32,
    "uint16": 16,
    "uint8": 8,
    "bool": 8,
    "qint8": 8,
    "quint8": 8,
    "qint32": 32,
    "quint4x2": 8,
    "quint2x4": 8,
    "bits16": 16,
    "bits8": 8,
    "bits4x2": 8,
    "bits2x4": 8,
    "bits1x8": 8,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "float4_e2m1fn": 4,
    **{f"{sign}int{n}": 8 for sign in ("", "u") for n in range(1, 8)},
}
"""Bits that one element takes in a storage, by torch's name of the dtype without its prefix.

torch gives its sub-byte integers (uint1 ... int7) one byte each, and its packed types
(`float4_e2m1fn_x2`, `quint4x2`) one byte for the whole pack. The unpacked 4 and 6 bit floats exist
in safetensors only (its `F4`, `F6_E2M3`, `F6_E3M2`).
"""


class Container(StrEnum):
    """How a checkpoint is laid out on disk."""

    TORCH_ZIP = "torch-zip"
    TORCH_LEGACY = "torch-legacy"
    TORCH_TAR = "torch-tar"
    TORCHSCRIPT = "torchscript"
    TORCH_EXPORT = "torch-export"
    PICKLE = "pickle"
    SAFETENSORS = "safetensors"
    SHARDED_SAFETENSORS = "sharded-safetensors"
    SHARDED_TORCH = "sharded-torch"
    DCP = "dcp"


class Kind(StrEnum):
    """What a tensor is to the module that holds it."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    NON_PERSISTENT_BUFFER = "non-persistent-buffer"
    ATTRIBUTE = "attribute"
    CONTAINER = "container"
    """An element of a list, tuple, dict, set, deque, dataclass or partial."""
    ARRAY = "array"
    """A numpy array."""
    MODULE = "module"
    """A tensor of a module that is held outside `named_modules()`."""
    CLASS_ATTRIBUTE = "class-attribute"


class Constancy(StrEnum):
    """What building the module again makes of a tensor's value."""

    CONSTANT = "constant"
    RANDOM = "random"
    MUTATED = "mutated"
    UNKNOWN = "unknown"


class Safety(StrEnum):
    """What importing and calling a global that a pickle names could do."""

    SAFE = "safe"
    UNKNOWN = "unknown"
    DANGEROUS = "dangerous"


class Skipped(Struct, frozen=True, gc=False):
    """Something that was not looked at: silence never means passed."""

    what: str
    reason: str


class Span(Struct, frozen=True, gc=False):
    """Bytes `offset` to `offset + nbytes` of a file."""

    path: Location
    offset: int
    nbytes: int


class StorageInfo(Struct, frozen=True, gc=False):
    """The bytes behind one or more tensors. Equal storages mean shared memory: ties and views."""

    key: str
    """Name within the file: the zip record's number, or the tensor's own name in safetensors."""
    nbytes: int
    device: str = "cpu"
    """The location tag that was saved: "cpu", "cuda:0"."""
    span: Span | None = None
    """Where the bytes lie; None where they are compressed, or not in a file at all."""
    byteorder: str = "little"


class Part(Struct, frozen=True):
    """A piece of a tensor that is no strided block: a chunk, or the indices of a sparse one."""

    name: str
    """"indices", "values", "scales" ... for layouts; "" for a chunk."""
    offsets: tuple[int, ...]
    """Where a chunk starts within the whole tensor, one number a dimension; () for layouts."""
    tensor: "TensorInfo"


class TensorInfo(Struct, frozen=True, gc=False):
    """What is known of one tensor without its data."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    """torch's name without the prefix: "float32", "bfloat16", "float8_e4m3fn"."""
    stride: tuple[int, ...]
    """In elements, one number a dimension."""
    storage_offset: int
    """In elements."""
    storage: StorageInfo | None
    """None where `parts` hold the data."""
    layout: str = "strided"
    """"strided", "sparse_coo", "sparse_csr", "quantized", "nested", "chunked" ..."""
    wrapper: str = ""
    """Qualified name of a tensor subclass, if it was one."""
    kind: Kind | None = None
    """Known for a module's tensors, and for a file's where it says so."""
    requires_grad: bool = False
    parts: tuple[Part, ...] = ()

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements themselves, whatever the storage holds besides."""
        if self.storage is None and self.parts and self.layout != "chunked":
            return sum(part.tensor.nbytes for part in self.parts)
        bits = BITS.get(self.dtype)
        if bits is None:
            # A numpy array of what torch has no dtype for.
            return self.storage.nbytes if self.storage is not None else 0
        return (prod(self.shape) * bits + 7) // 8

    @property
    def device(self) -> str:
        if self.storage is not None:
            return self.storage.device
        return self.parts[0].tensor.device if self.parts else "cpu"

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in the storage one after the other, in C order."""
        if self.layout != "strided" or self.storage is None:
            return False
        if len(self.shape) == 1:
            return self.stride[0] == 1 or self.shape[0] <= 1
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size == 0:
                return True
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    @property
    def span(self) -> Span | None:
        """The bytes of the elements, where they are one contiguous run in a file."""
        storage = self.storage
        if storage is None or storage.span is None or not self.contiguous:
            return None
        if storage.byteorder != "little" and BITS[self.dtype] > 8:
            return None
        start = self.storage_offset * BITS[self.dtype] // 8
        return Span(storage.span.path, storage.span.offset + start, self.nbytes)


class PickledModule(Struct, frozen=True):
    """What a pickled `nn.Module` says of one of its sub-modules."""

    name: str
    """Qualified name of its class."""
    attributes: frozenset[str]
    """Names in its `__dict__`, registered names included."""


class State(Struct, frozen=True):
    """A mapping of keys to tensors inside a checkpoint: what `load_state_dict` could be given."""

    at: str
    """Place in the checkpoint's tree, dotted: "" is the root."""
    tensors: Mapping[str, TensorInfo]
    role: str = "state_dict"
    """"state_dict", "module" (a pickled nn.Module), "optimizer", or "tensors" (a list)."""
    versions: Mapping[str, int | None] | None = None
    """`state_dict._metadata`: prefix of a sub-module -> its `version`; None without one."""
    others: Mapping[str, str] = {}
    """Keys that hold no tensor -> what they hold, in a few words."""
    unsaved: Mapping[str, TensorInfo] = {}
    """Of a pickled module: what its state_dict() leaves out, by path, with `kind` set."""
    modules: Mapping[str, PickledModule] = {}
    """Of a pickled module: prefix -> what is known of that sub-module."""


class Entry(Struct, frozen=True):
    """Something in a checkpoint that is no tensor: an epoch, a learning rate, a configuration."""

    at: str
    text: str
    """A short, printable description; never the raw bytes."""
    value: object = None
    """The value itself where it is plain: None, bool, int, float, str, lists and dicts of them."""


class GlobalUse(Struct, frozen=True, gc=False):
    """A name that a pickle would import."""

    module: str
    name: str
    safety: Safety
    at: str
    """Where in the tree its result stands; "" for the root or where it was thrown away."""

    @property
    def qualified(self) -> str:
        return f"{self.module}.{self.name}"


class Fault(Struct, frozen=True):
    """Something wrong with a container that does not keep it from being described."""

    code: str
    """The rule that reports it, "CK601"."""
    key: str
    facts: Mapping[str, str]


class Checkpoint(Struct, frozen=True):
    """A checkpoint as described from its bytes; nothing in it was imported, called or loaded."""

    path: Location
    container: Container
    nbytes: int
    """Of the file, or of all files of a directory that belong to it."""
    states: tuple[State, ...]
    """In the order of `at`, the root first."""
    entries: tuple[Entry, ...] = ()
    globals: tuple[GlobalUse, ...] = ()
    metadata: Mapping[str, str] = {}
    """safetensors' `__metadata__`, or a torch container's small records (version, byteorder)."""
    damage: str = ""
    """Why reading stopped. Set only where something dangerous was found first, else an error."""
    skipped: tuple[Skipped, ...] = ()
    files: tuple[Location, ...] = ()
    """The files of a sharded checkpoint, in order; () for a single file."""
    faults: tuple[Fault, ...] = ()


class Held(Struct, frozen=True):
    """One tensor or array that a live module holds, saved or not."""

    tensor: TensorInfo
    """Its `key` is the state_dict key, or the dotted path ("convs[0].weight", "banks['k']")."""
    kind: Kind
    owner: str
    """Qualified name of the class of the module that holds it."""
    saved: bool
    """Whether the real `state_dict()` has it."""
    constancy: Constancy
    follows_to: bool
    """Whether `.to(device)` takes it along."""
    follows_dtype: bool
    """Whether `.half()` converts it; True for what is not floating point."""
    where: str = ""
    """"file:line" of the assignment, "" where it cannot be found."""
    used: str = ""
    """"file:line" of the first use that forward reaches, "" where none was found."""
    moved: str = ""
    """"file:line" where forward takes it along itself, or only asks it, "" where it does not."""
    cast: bool = False
    """Whether forward casts it wherever it uses it."""
    written: str = ""
    """"file:line" of the first write outside the constructor, "" where none was found."""
    alias_of: str = ""
    """Key of registered state in whose storage it lies."""
    statistic: bool = False
    """A buffer that training changes: a normalisation layer's, or one with a `written` place."""
    fingerprint: str = ""
    """`values.fingerprint` of its elements, "" where the module was built without real values."""
    preview: Preview | None = None
    """Of unsaved state and of buffers, for the first few of a module that have real values."""
    halved: Mapping[str, str] = {}
    """Of a float32 buffer: half-precision dtype -> fingerprint of it in that, where that rounds."""

    @property
    def key(self) -> str:
        return self.tensor.key


class ModuleClass(Struct, frozen=True):
    """What is known of one sub-module of a live module."""

    name: str
    """Qualified name of its class."""
    version: int | None
    """The class's `_version`."""
    custom_load: bool
    """Whether the class, outside torch's own modules, overrides `_load_from_state_dict`."""
    auxiliary: bool
    """A loss, a metric, or a network that only judges: its keys are not the model's."""
    attributes: frozenset[str]
    """Names in its `__dict__`, registered names included."""


class ModuleState(Struct, frozen=True):
    """All state of a live module: what it saves and what it does not."""

    target: str
    """How it was named: "samples.attention:CausalAttention"."""
    held: Mapping[str, Held]
    """By key, in natural order."""
    others: Mapping[str, str] = {}
    """Keys of the real state_dict() that hold no tensor (extra state), with what they hold."""
    none_buffers: Mapping[str, str] = {}
    filled: Mapping[str, str] = {}
    """Key of a buffer that is None -> "file:line" of the code that fills it, "" where none does."""
    """Buffers registered as None -> class of their owner."""
    modules: Mapping[str, ModuleClass] = {}
    """By prefix; "" is the module itself."""
    hidden_modules: Mapping[str, str] = {}
    """Modules held outside `named_modules()`: path -> class."""
    skipped: tuple[Skipped, ...] = ()

    @property
    def saved(self) -> dict[str, Held]:
        return {key: held for key, held in self.held.items() if held.saved}

    @property
    def unsaved(self) -> dict[str, Held]:
        return {key: held for key, held in self.held.items() if not held.saved}


def natural(key: str) -> tuple[object, ...]:
    """Sort key that puts layer 2 before layer 10."""
    return tuple(
        (0, len(number := piece.lstrip("0")), number, piece)
        if piece[0] in "0123456789"
        else (1, 0, piece, "")
        for piece in re.split(r"([0-9]+)", key)
        if piece
    )


def sharing(tensors: Iterable[TensorInfo]) -> tuple[tuple[TensorInfo, ...], ...]:
    """Return the groups of tensors that have elements in one storage, in order."""
    filled = [(t, t.storage) for t in tensors if t.storage is not None and 0 not in t.shape]
    # Nearly all storages have one user, and a name of their own, which is hashed much faster.
    named = Counter(storage.key for _, storage in filled)
    users: dict[StorageInfo, list[TensorInfo]] = {}
    for tensor, storage in filled:
        if named[storage.key] > 1:
            users.setdefault(storage, []).append(tensor)
    return tuple(tuple(group) for group in users.values() if len(group) > 1)


def ties(tensors: Iterable[TensorInfo]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of keys that are the same elements of the same storage, in order."""
    views: dict[object, list[str]] = {}
    for group in sharing(tensors):
        for t in group:
            view = (t.storage, t.dtype, t.storage_offset, t.shape, t.stride)
            views.setdefault(view, []).append(t.key)
    return tuple(tuple(keys) for keys in views.values() if len(keys) > 1)
