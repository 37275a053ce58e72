"""Data passed between the stages: frozen msgspec structs that need no torch.

Conventions of all structs in this package:

- A `str` field whose default is "" means "none" or "not known".
- `at` is the dotted place of a state_dict, or of a value, inside a file: "model.ema", or "" for
  the top level.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cached_property, lru_cache
from itertools import accumulate
from math import prod
from operator import mul
from typing import Final

import msgspec
from msgspec import Struct

from ckptool.locations import Location

DTYPE_BITS: Final[Mapping[str, int]] = {
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
"""Dtype -> bits of one element in a storage; dtypes have torch's names without the prefix.

torch gives its sub-byte integers (uint1 ... int7) one byte each, and its packed types
(`float4_e2m1fn_x2`, `quint4x2`) one byte for the whole pack. The unpacked 4 and 6 bit floats exist
in safetensors only (its `F4`, `F6_E2M3`, `F6_E3M2`).
"""

BYTE_DTYPES: Final = frozenset({"uint8", "int8", "bool", "quint8", "qint8", "bits8"})
"""Dtypes of one byte for each element, that are no floats: any bytes may stand in them."""

STRUCT_CODES: Final[Mapping[str, str]] = {
    "float64": "d", "float32": "f", "float16": "e",
    "int64": "q", "int32": "i", "int16": "h", "int8": "b",
    "uint64": "Q", "uint32": "I", "uint16": "H", "uint8": "B", "bool": "?",
}  # fmt: skip
"""Dtype -> its code in the struct module, where that has one."""


class Container(StrEnum):
    """File format of a checkpoint."""

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
    LIVE = "live"
    """No file: a module or a state_dict in this process's memory."""


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


class Constancy(StrEnum):
    """Whether a tensor has the same value when the module is constructed again."""

    CONSTANT = "constant"
    RANDOM = "random"
    MUTATED = "mutated"
    UNKNOWN = "unknown"


CONSTANCY_CHECK: Final = "whether the constructor computes the same values again"
"""What is not checked where a second instance cannot be built."""


class Safety(StrEnum):
    """Risk of importing and calling a global that a pickle names."""

    SAFE = "safe"
    UNKNOWN = "unknown"
    DANGEROUS = "dangerous"


class Skipped(Struct, frozen=True, gc=False):
    """A check that was not made, with the reason: an unreported check never counts as passed."""

    what: str
    reason: str


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
        if self.storage is None and self.parts and self.layout != "chunked":
            return sum(component.tensor.nbytes for component in self.parts)
        if self.parts and self.layout == "quantized":  # of 2 or 4 elements in a byte, too
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
        if storage.byteorder != "little" and DTYPE_BITS[self.dtype] > 8:
            return None
        start = self.storage_offset * DTYPE_BITS[self.dtype] // 8
        return Span(storage.span.path, storage.span.offset + start, self.nbytes)


class PickledModule(Struct, frozen=True):
    """Class and attribute names of one sub-module of a pickled `nn.Module`."""

    name: str
    """Qualified name of its class."""
    attributes: frozenset[str]
    """Names in its `__dict__`, registered names included."""


class StateDict(Struct, frozen=True):
    """A mapping of keys to tensors inside a checkpoint: a possible input of `load_state_dict`."""

    at: str
    """Dotted place in the checkpoint, "" for the top level."""
    tensors: Mapping[str, TensorInfo]
    role: str = "state_dict"
    """"state_dict", "module" (a pickled nn.Module), "optimizer", or "tensors" (a list)."""
    versions: Mapping[str, int | None] | None = None
    """`state_dict._metadata`: prefix of a sub-module -> its `version`; None without one."""
    non_tensors: Mapping[str, str] = {}
    """Keys whose value is not a tensor -> short description of the value."""
    container_keys: tuple[str, ...] = ()
    """Keys whose value is a container or an object that has states or entries of its own."""
    unsaved_tensors: Mapping[str, TensorInfo] = {}
    """Of a pickled module: tensors that its state_dict() omits, by path, with `kind` set."""
    modules: Mapping[str, PickledModule] = {}
    """Of a pickled module: prefix -> sub-module."""
    is_packed: bool = False
    """Whether these tensors are in packed objects of a module, and not in its state_dict()."""


class PlainEntry(Struct, frozen=True):
    """Non-tensor value in a checkpoint: an epoch, a learning rate, a configuration."""

    at: str
    text: str
    """Short printable description; never the raw bytes."""
    value: object = None
    """The value if it is plain: None, bool, int, float, str, or lists and dicts of these."""


class GlobalUse(Struct, frozen=True, gc=False):
    """A global that a pickle imports when it is loaded."""

    module: str
    name: str
    safety: Safety
    at: str
    """Dotted place of the result of its call; "" for the top level, or if the pickle drops it."""
    method: str = ""
    """Of `getattr`: what it looks up, "`state_dict` of net.Net"; "" for other uses."""

    @property
    def qualified_name(self) -> str:
        return f"{self.module}.{self.name}"


class IssueKind(StrEnum):
    """Defect of a container that can still be read."""

    MISSING_SHARD = "missing-shard"
    MISSING_TENSOR = "missing-tensor"
    UNINDEXED = "unindexed"
    """A shard, or a tensor in one, that the index does not name."""
    COMPRESSED = "compressed"
    """Records of tensors that are compressed in the archive."""
    RANK_FILE = "rank-file"
    """The file of one rank, beside those of the others."""
    PASSED_OVER = "passed-over"
    """An index, or a tensor of one of its shards, in whose place another one is loaded."""
    UNREACHED = "unreached"
    """Weights of a framework's folder that its loader does not find, or cannot open."""
    NESTED = "nested"
    """A state_dict below the top level of a file that a framework's loader takes whole."""


class ContainerIssue(Struct, frozen=True):
    """Defect of a container that can still be described."""

    kind: IssueKind
    key: str
    facts: Mapping[str, str]


class QuantizationDeclaration(Struct, frozen=True):
    """What the configuration beside a checkpoint says of its quantisation."""

    file_name: str
    """Name of the file that says it: "config.json"."""
    method: str = ""
    """`quant_method`: "gptq", "bitsandbytes"; "" if it is the configuration of a float model."""
    bits: int = 0
    """Bits of a weight's element; 0 if not said, or not the same for all."""
    group_size: int = 0
    """Elements that share a scale; -1 for a whole row, 0 if not said or not the same for all."""
    place: tuple[str, ...] = ()
    """Keys of the section that says it: ("quantization_config",); () if it is the whole file."""

    @property
    def phrase(self) -> str:
        """Method, bits and groups: "gptq, 4 bits, groups of 128"; "" without a method."""
        bits = f"{self.bits} bits" if self.bits else ""
        groups = f"groups of {self.group_size}" if self.group_size > 0 else ""
        return ", ".join(filter(None, (self.method, bits, groups))) if self.method else ""


class Checkpoint(Struct, frozen=True):
    """Description of a checkpoint from its bytes: nothing in it is imported, called or loaded."""

    path: Location
    container: Container
    nbytes: int
    """Size of the file, or of all files of a sharded checkpoint."""
    states: tuple[StateDict, ...]
    """In the order of `at`, the top level first."""
    entries: tuple[PlainEntry, ...] = ()
    globals: tuple[GlobalUse, ...] = ()
    metadata: Mapping[str, str] = {}
    """`__metadata__` of safetensors, or small records of a torch container (version, byteorder)."""
    damage: str = ""
    """Why reading stopped. Set only if dangerous globals were found before; else reading raises."""
    skipped: tuple[Skipped, ...] = ()
    unread: tuple[Skipped, ...] = ()
    """Parts of the file that nobody looked at, with the reason: a gate does not pass them."""
    files: tuple[Location, ...] = ()
    """The files of a sharded checkpoint, in order; () for a single file."""
    faults: tuple[ContainerIssue, ...] = ()
    load_refusal: str = ""
    """Why torch.load refuses the file though all of it can be read; "" if it opens it."""
    quantization_declaration: QuantizationDeclaration | None = None
    """Quantisation according to the configuration in its folder; None if there is none, or if it
    was not looked for, as beside a remote file."""
    opaque: tuple[Skipped, ...] = ()
    """Objects whose weights only the code of their class knows: none of them is compared."""
    contents: Mapping[str, str] = {}
    """Key path of data other than tensors -> its content fingerprint; "" if it has none.

    Filled with `Limits.contents` only. The places are those of the largest parts without a tensor:
    an epoch, an `_extra_state`, `_metadata`, a record of code.
    """
    weights_only_refusal: str = ""
    """What torch.load(weights_only=True) rejects in the pickle, without globals; "" if nothing."""
    byte_storages: Mapping[str, StorageInfo] = {}
    """Place -> a storage of bytes that a pickle refers to, whether a tensor of a state has it or
    not: it may be that of an attribute, or stand alone."""

    @property
    def missing_parts(self) -> tuple[str, ...]:
        """Shards, and tensors in shards, that the index names and that do not exist."""
        kinds = {IssueKind.MISSING_SHARD, IssueKind.MISSING_TENSOR}
        return tuple(issue.key for issue in self.faults if issue.kind in kinds)


class Preview(Struct, frozen=True, gc=False):
    """Values of a small tensor, or of a subsample of the rows and columns of a larger one."""

    rows: tuple[tuple[float, ...], ...]
    is_complete: bool
    """Whether it holds every element."""


class ModuleTensor(Struct, frozen=True):
    """One tensor or array of a live module, saved or not."""

    tensor: TensorInfo
    """Its `key` is the state_dict key, or the path if unsaved: "convs[0].weight", "banks['k']"."""
    kind: Kind
    owner: str
    """Qualified name of the class of the module that owns it."""
    is_saved: bool
    """Whether `state_dict()` contains it."""
    constancy: Constancy
    follows_to: bool
    """Whether `.to(device)` moves it."""
    follows_dtype: bool
    """Whether `.half()` converts it; True if it is not floating point."""
    assigned_at: str = ""
    """"file:line" of the assignment, "" if not found."""
    assigned_to: str = ""
    """What that line assigns to, as source: "self.mask", "self.encoder.mask"; "" if it is no
    assignment of an attribute of this name."""
    used_at: str = ""
    """"file:line" of the first use reachable from forward, "" if none was found."""
    moved_at: str = ""
    """"file:line" where forward itself moves it or reads only its metadata; else ""."""
    is_cast_on_use: bool = False
    """Whether every use in forward casts it."""
    written_at: str = ""
    """"file:line" of the first write outside the constructor, "" if none was found.

    By the module's own methods, those of its parents, or a function of their files that is given
    the module.
    """
    alias_of: str = ""
    """Key of the registered or saved tensor whose storage it shares."""
    is_statistic: bool = False
    """Buffer that training changes: of a normalisation layer, or one with `written_at`."""
    blank_fill: str = ""
    """What all elements are, "zeros" or "ones", if they look like a value that is yet to come.

    Also "-1", "infinities or NaN" and "the largest numbers of its dtype"; "" if the elements
    differ, have another value, or are not available.
    """
    is_computed_from_arguments: bool = False
    """Whether the source shows that arguments of the constructor decide the value.

    Arguments that are no more than sizes do not count. False if the source does not show it.
    """
    fingerprint: str = ""
    """Content fingerprint of the elements, "" if they have no real values or are too large."""
    has_integer_values: bool = False
    """Whether all elements are integers, booleans or infinities: masks, ids.

    Such values are the same on every machine, which computed fractions are not. False for
    parameters.
    """
    preview: Preview | None = None
    """For the first 48 saved and 48 unsaved tensors with real values; never for parameters."""
    half_precision_fingerprints: Mapping[str, str] = {}
    """For float32 buffers: half-precision dtype -> fingerprint after the cast, if it rounds."""

    @property
    def key(self) -> str:
        return self.tensor.key

    @property
    def is_blank(self) -> bool:
        """Whether the constructor fills it with one value that says nothing, to be written later.

        A value that is computed from the constructor's arguments says something, whatever it is.
        """
        return bool(self.blank_fill) and not self.is_computed_from_arguments

    @property
    def is_recomputable(self) -> bool:
        """Whether the constructor makes the right value again, so that a file need not have it.

        It is the same on every construction, no code outside the constructor is seen to write it,
        and it is not blank. Else the value waits for data: from training, calibration or a loader.
        """
        return (
            self.constancy is Constancy.CONSTANT
            and not self.is_statistic
            and not self.written_at
            and not self.is_blank
        )

    @property
    def waits_for_data(self) -> bool:
        """Whether something shows that the constructor does not make the right value again.

        Neither this nor `is_recomputable` is true of a value of which nothing is known: that of a
        live module whose constructor's arguments are not known.
        """
        is_known = self.constancy is not Constancy.UNKNOWN
        return not self.is_recomputable and (is_known or self.is_statistic or bool(self.written_at))


class ComputedParameter(Struct, frozen=True):
    """A parameter that torch's own code computes in the forward pass, and nothing else changes."""

    by: str
    """Qualified name of what computes it: "torch.nn.utils.weight_norm.WeightNorm", or
    "torch.nn.utils.prune.BasePruningMethod" for every pruning method."""
    dim: int = 0
    """`dim` of a norm; -1 for the norm over the whole tensor (dim=None)."""


class ModuleClass(Struct, frozen=True):
    """Class facts of one sub-module of a live module."""

    name: str
    """Qualified name of its class."""
    version: int | None
    """`_version` of the class; None without one."""
    has_custom_load: bool
    """Whether a class other than torch's overrides `_load_from_state_dict`, or hooks it."""
    is_auxiliary: bool
    """A loss, a metric, or a perceptual-loss network: its keys are not part of the model."""
    attributes: frozenset[str]
    """Names in its `__dict__`, registered names included."""
    spectral_norm_dim: int = 0
    """The dimension that torch's spectral_norm takes for this layer by itself."""
    computed_parameters: Mapping[str, ComputedParameter] = {}
    """By the parameter's name in this module: "weight"."""


class ModuleInfo(Struct, frozen=True, dict=True):
    """All state of a live module, saved and unsaved."""

    target: str
    """Import target: "samples.attention:CausalAttention"."""
    tensors: Mapping[str, ModuleTensor]
    """By key, in natural order."""
    non_tensors: Mapping[str, str] = {}
    """Keys of state_dict() without a tensor (extra state) -> short description of the value."""
    none_buffers: Mapping[str, str] = {}
    """Key of a buffer registered as None -> class of its owner."""
    none_buffer_writes: Mapping[str, str] = {}
    """Key of a persistent buffer that is None -> "file:line" of its assignment, "" if none."""
    modules: Mapping[str, ModuleClass] = {}
    """By prefix; "" is the root module."""
    own_load_error: str = ""
    """What loading its own state_dict() into another instance raises; "" if it loads."""
    hidden_modules: Mapping[str, str] = {}
    """Modules that `named_modules()` does not list: path -> class."""
    skipped: tuple[Skipped, ...] = ()
    submodule: str = ""
    """Path of the only sub-module that is described, "" for the whole module."""
    loader: str = "torch"
    """Name in ckptool.loaders of the framework that loads it; "torch" is `load_state_dict`."""
    state_place: str | None = None
    """Place in a file that its framework loads, "" for the top level, None if any may be meant."""
    uninitialized_buffers: Mapping[str, str] = {}
    """Key of a buffer that its framework's loader leaves uninitialized -> that loader's call."""
    arguments: Mapping[str, str] = {}
    """Constructor arguments that the user gave, as Python literals; "..." for another object.

    Those that are taken from a checkpoint are `file_arguments`, or "@place".
    """
    file_arguments: tuple[str, ...] = ()
    """Constructor arguments that were taken from the checkpoint because they fit."""
    folder: str = ""
    """Path of the framework's folder whose configuration names the module; "" for a named one."""

    @property
    def label(self) -> str:
        """The target, with the sub-module that alone is meant."""
        return f"{self.target}, submodule {self.submodule}" if self.submodule else self.target

    @cached_property
    def saved_tensors(self) -> Mapping[str, ModuleTensor]:
        return {
            key: module_tensor
            for key, module_tensor in self.tensors.items()
            if module_tensor.is_saved
        }

    @cached_property
    def unsaved_tensors(self) -> Mapping[str, ModuleTensor]:
        return {
            key: module_tensor
            for key, module_tensor in self.tensors.items()
            if not module_tensor.is_saved
        }


@lru_cache(maxsize=4096)
def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return torch's strides of a contiguous (C order) tensor, in elements."""
    if len(shape) < 2:  # as most tensors of most files
        return (1,) * len(shape)
    outer_strides = accumulate((max(1, size) for size in reversed(shape[1:])), mul, initial=1)
    return tuple(outer_strides)[::-1]


def join_key(prefix: str, name: str) -> str:
    """Return "prefix.name", or `name` if `prefix` is ""."""
    return f"{prefix}.{name}" if prefix else name


def natural_sort_key(key: str) -> tuple[object, ...]:
    """Sort key that puts layer 2 before layer 10."""
    return tuple(map(_rank_piece, filter(None, _DIGITS.split(key))))


_DIGITS: Final = re.compile(r"([0-9]+)")


@lru_cache(maxsize=4096)
def _rank_piece(piece: str) -> tuple[object, ...]:
    """Return the sort key of a number, or of the text between numbers; few of them are new."""
    if piece[0] not in "0123456789":
        return (1, 0, piece, "")
    number = piece.lstrip("0")
    return (0, len(number), number, piece)


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


def all_tensors(checkpoint: Checkpoint, *, unsaved: bool = False) -> dict[str, TensorInfo]:
    """Return the tensors of all states, or those that they do not save, by `at` and key.

    A dict may have the keys "a.b" and "a", with "b" in that: the second of two equal names, in the
    order of the states, gets a "'" at its end, and a third "'2".
    """
    named_tensors: dict[str, TensorInfo] = {}
    counts: Counter[str] = Counter()
    for state in checkpoint.states:
        tensors = state.unsaved_tensors if unsaved else state.tensors
        for key, tensor in tensors.items():
            name = joined_name = join_key(state.at, key)
            while name in named_tensors:
                counts[joined_name] += 1
                count = counts[joined_name]
                name = f"{joined_name}'{count if count > 1 else ''}"
            is_named = tensor.key == name
            named_tensors[name] = tensor if is_named else msgspec.structs.replace(tensor, key=name)
    return named_tensors
