"""Checkpoints: what a file contains."""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property

import msgspec
from msgspec import Struct

from ckptool.locations import Location
from ckptool.model.keys import collect_last_segments, join_key, to_dotted_key
from ckptool.model.skipped import Skipped
from ckptool.model.tensors import StorageInfo, TensorInfo, group_by_storage, tied_keys


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


class Safety(StrEnum):
    """Risk of importing and calling a global that a pickle names."""

    SAFE = "safe"
    UNKNOWN = "unknown"
    DANGEROUS = "dangerous"


Content = str | TensorInfo
"""Content of a part of a file: its fingerprint, "" if it has none, or elements to compare."""


class PickledModule(Struct, frozen=True):
    """Class and attribute names of one sub-module of a pickled `nn.Module`."""

    name: str
    """Qualified name of its class."""
    attributes: frozenset[str]
    """Names in its `__dict__`, registered names included."""


class StateDict(Struct, frozen=True, dict=True):
    """A mapping of keys to tensors inside a checkpoint: a possible input of `load_state_dict`."""

    at: str
    """Dotted place in the checkpoint, "" for the top level."""
    tensors: Mapping[str, TensorInfo]
    role: str = "state_dict"
    """"state_dict", "module" (a pickled nn.Module), "optimizer", or "tensors" (a list)."""
    versions: Mapping[str, int | None] | None = None
    """`state_dict._metadata`: prefix of a sub-module -> its `version`; None without one."""
    module_metadata: Mapping[str, Mapping[str, object]] = {}
    """`state_dict._metadata` in full, of the sub-modules that have more there than a `version`."""
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

    @cached_property
    def last_segments(self) -> frozenset[str]:
        """Last segments of the keys of its tensors: "weight", "bias"."""
        return collect_last_segments(self.tensors)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the elements of its tensors; a storage that several share counts for each."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def storage_groups(self) -> tuple[tuple[TensorInfo, ...], ...]:
        """Groups of at least two non-empty tensors that share a storage, in order."""
        return group_by_storage(self.tensors.values())

    def find_unsaved(self, key: str) -> TensorInfo | None:
        """Return the tensor that its state_dict() omits and that a module may now save as `key`.

        A plain list of layers may have become a ModuleList: `layers[0].bias` is `layers.0.bias`.
        """
        return self.unsaved_tensors.get(key) or self._unsaved_by_key.get(key)

    @cached_property
    def _unsaved_by_key(self) -> dict[str, TensorInfo]:
        return {to_dotted_key(path): tensor for path, tensor in self.unsaved_tensors.items()}

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of keys that are the same view of the same storage, in order."""
        return tied_keys(tensor for group in self.storage_groups for tensor in group)


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
    """Of `getattr`: what it looks up, "`state_dict` of net.Net", "`RED` of the class net.Color"; ""
    for other uses."""

    @property
    def qualified_name(self) -> str:
        return f"{self.module}.{self.name}"


class IssueKind(StrEnum):
    """Defect of a container that can still be read."""

    MISSING_SHARD = "missing-shard"
    MISSING_TENSOR = "missing-tensor"
    """A tensor that is in no shard, though the index names it."""
    MISPLACED_TENSOR = "misplaced-tensor"
    """A tensor that is in another shard than the one in which the index says it is."""
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
    shard_containers: Mapping[str, Container] = {}
    """File of an index, by its name there -> its container; {} without an index."""
    faults: tuple[ContainerIssue, ...] = ()
    load_refusal: str = ""
    """Why torch.load refuses the file though all of it can be read; "" if it opens it."""
    quantization_declaration: QuantizationDeclaration | None = None
    """Quantisation according to the configuration in its folder; None if there is none, or if it
    was not looked for, as beside a remote file."""
    opaque: tuple[Skipped, ...] = ()
    """Objects whose weights only the code of their class knows: none of them is compared."""
    contents: Mapping[str, Content] = {}
    """Key path of what is in no state -> its content.

    Filled with `Limits.contents` only. The places are those of the largest parts without elements
    (an epoch, an `_extra_state`, `_metadata`, a record of code), which have a fingerprint, and of
    elements: a tensor that is an attribute of another, a bare storage.
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


def all_tensors(checkpoint: Checkpoint, *, unsaved: bool = False) -> dict[str, TensorInfo]:
    """Return the tensors of all states, or those that they do not save, by `at` and key.

    A dict may have the keys "a.b" and "a", with "b" in that: the second of two equal names, in the
    order of the states, gets a "'" at its end, and a third "'2".
    """
    if len(checkpoint.states) == 1 and not checkpoint.states[0].at and not unsaved:
        return dict(checkpoint.states[0].tensors)
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
