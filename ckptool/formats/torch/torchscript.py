"""TorchScript archive -> Checkpoint: its module's parameters, buffers and other tensors."""

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.formats.contents.collector import ContentCollector
from ckptool.formats.contents.packed_objects import (
    COMPILED_CLASSES,
    PackedObjectReader,
    is_packed_object,
)
from ckptool.formats.contents.pickle_tree import add_tree_contents
from ckptool.formats.pickle.global_uses import find_global_uses
from ckptool.formats.pickle.modules import iter_access_steps
from ckptool.formats.pickle.nodes import ATOMIC_TYPES, GlobalName, PickleTreeError, UnresolvedObject
from ckptool.formats.pickle.places import PlaceJoiner
from ckptool.formats.pickle.plain_values import (
    NOT_PLAIN,
    PlainValueConverter,
    describe_node,
    format_key,
)
from ckptool.formats.pickle.safe_globals import classify_global
from ckptool.formats.pickle.storage_ids import SCRIPT_STORAGE_DTYPES
from ckptool.formats.pickle.tensors.rebuild_functions import create_tensor_reader
from ckptool.formats.pickle.tensors.tensor_reader import TensorInfoReader
from ckptool.formats.torch.archive_integrity import check_integrity
from ckptool.formats.torch.archive_records import ArchiveRecords, read_metadata
from ckptool.formats.torch.hidden_records import iter_hidden_uses, list_unread_records
from ckptool.formats.torch.script_code import find_load_methods
from ckptool.formats.torch.zip_reader import (
    GlobalNames,
    describe_or_report_damage,
    read_main_pickle,
    resolve_storages,
    unpickle_member,
)
from ckptool.formats.zip.archive import read_member
from ckptool.model import (
    Checkpoint,
    Container,
    Kind,
    PickledModule,
    PlainEntry,
    Safety,
    Skipped,
    StateDict,
    TensorInfo,
    join_key,
)


def read(records: ArchiveRecords) -> Checkpoint:
    """Describe the archive without compiling or running its code.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    return describe_or_report_damage(
        records, Container.TORCHSCRIPT, lambda names: _describe_archive(records, names)
    )


def _describe_archive(records: ArchiveRecords, global_names: GlobalNames) -> Checkpoint:
    pickle = read_main_pickle(records, global_names)
    if refusal := records.find_load_refusal():
        raise PickleTreeError(f"torch.jit.load refuses it: {refusal}")
    metadata = read_metadata(records)
    byteorder = metadata.get("byteorder", "little")
    resolve_storages(pickle.persistent_references, records, byteorder, is_script=True)
    module_reader = _ScriptModuleReader(
        records, create_tensor_reader(records.limits, is_script=True)
    )
    if type(pickle.root) is not UnresolvedObject or not _is_module(pickle.root):
        # torch.jit.load recognises TorchScript by the member names alone.
        raise PickleTreeError("data.pkl contains no TorchScript module")
    module_state = module_reader.read_module(pickle.root)
    constants = _read_constants(records, global_names, byteorder)
    states = [module_state, *constants.states, *module_reader.packed.build_states("")]
    _collect_other_globals(records, global_names)
    return Checkpoint(
        records.source.path,
        Container.TORCHSCRIPT,
        records.source.nbytes,
        tuple(states),
        tuple(module_reader.entries),
        (
            *find_global_uses(global_names, pickle.root, _classify_global),
            *iter_hidden_uses(records),
            *find_load_methods(records),
        ),
        metadata,
        skipped=check_integrity(records),
        unread=(*list_unread_records(records), *pickle.list_unread()),
        opaque=(*module_reader.packed.opaque, *constants.opaque),
        contents=_collect_contents(records, pickle.root, constants.root),
    )


_MAX_CODE_BYTES: Final = 16 << 20
_PACKED_WEIGHTS: Final = frozenset(
    f"{COMPILED_CLASSES}.{package}"
    for package in ("quantized", "rnn", "sparse", "xnnpack", "mkldnn")
)
_MAX_MODULES: Final = 100_000
_MAX_REPEATED_ATTRIBUTES: Final = 100_000
"""Attributes of modules under further names."""
_MAX_KEY_CHARS: Final = 64 << 20
"""Characters of all prefixes, each once for its module and once for each attribute."""
_MAX_NESTING: Final = 200
_MAX_DEPTH: Final = 8
_BUILDERS: Final = frozenset(
    {
        "build_boollist",
        "build_doublelist",
        "build_intlist",
        "build_tensor_from_id",
        "build_tensorlist",
        "restore_type_tag",
    }
)
_CLASS_PATTERN: Final = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[([^\]\n]*)\]\n  __buffers__ = \[([^\]\n]*)\]",
    re.MULTILINE,
)
_NAME_PATTERN: Final = re.compile(r'"([^"]*)"')
_MANGLED_PATTERN: Final = re.compile(r"___torch_mangle_\d+\.")
_ClassTensorNames = dict[str, tuple[frozenset[str], frozenset[str]]]


def _classify_global(name: GlobalName) -> Safety:
    """Classify a global: types of the archive's own code (`__torch__`) are safe, not imported.

    Compiled classes (`__torch__.torch.classes`) are safe where torch itself packs weights in them.
    """
    is_archive_type = name.module == "__torch__" or name.module.startswith("__torch__.")
    if name.module.startswith(COMPILED_CLASSES) and name.module not in _PACKED_WEIGHTS:
        return Safety.UNKNOWN
    if name.module == "torch" and name.name in SCRIPT_STORAGE_DTYPES and not name.computed:
        return Safety.SAFE
    is_builder = name.module == "torch.jit._pickle" and name.name in _BUILDERS
    return (
        Safety.SAFE
        if (is_archive_type or is_builder) and not name.computed
        else classify_global(name)
    )


def _is_module(node: Any) -> bool:
    is_script_object = (
        type(node) is UnresolvedObject and node.callee_name[0].partition(".")[0] == "__torch__"
    )
    return is_script_object and isinstance(node.state, dict)


def _has_own_state(node: Any) -> bool:
    """Whether a class of the archive pickles something else than its attributes."""
    is_script_object = (
        type(node) is UnresolvedObject and node.callee_name[0].partition(".")[0] == "__torch__"
    )
    return is_script_object and node.state is not None and not isinstance(node.state, dict)


def _get_attributes(node: UnresolvedObject) -> dict[Any, Any]:
    return node.state if isinstance(node.state, dict) else {}


class _ScriptModuleReader:
    """Reads a ScriptModule tree: state_dict, other tensors, plain attributes."""

    def __init__(self, records: ArchiveRecords, tensors: TensorInfoReader) -> None:
        self.entries: list[PlainEntry] = []
        self.packed = PackedObjectReader(tensors)
        self._records = records
        self._tensors = tensors
        self._tensor_names_by_module: dict[str, _ClassTensorNames] = {}
        self._plain_reader = PlainValueConverter()
        self._visited_ids: set[int] = set()
        self._places = PlaceJoiner()

    def read_module(self, root: UnresolvedObject) -> StateDict:
        """Return the tensors of the module's state_dict(), and its other tensors as `unsaved`."""
        registered_tensors: dict[str, TensorInfo] = {}
        loose_attributes: dict[str, Any] = {}
        modules: dict[str, PickledModule] = {}
        for prefix, node in _iter_submodules(root):
            attributes = _get_attributes(node)
            modules[prefix] = PickledModule(
                _unmangle_class_name(node), frozenset(format_key(name) for name in attributes)
            )
            registered_tensors.update(self._iter_registered(prefix, node, attributes))
            for name, value in attributes.items():
                key = join_key(prefix, format_key(name))
                if key not in registered_tensors and not _is_module(value):
                    loose_attributes[key] = value
        storages = {tensor.storage for tensor in registered_tensors.values()}
        loose_tensors = {
            tensor.key: tensor
            for key, value in loose_attributes.items()
            for tensor in self._iter_loose_tensors(key, value)
        }
        unsaved = {
            key: tensor for key, tensor in loose_tensors.items() if tensor.storage not in storages
        }
        self._add_plain_entries(
            {key: value for key, value in loose_attributes.items() if key not in loose_tensors}
        )
        return StateDict("", registered_tensors, "module", unsaved_tensors=unsaved, modules=modules)

    def _iter_registered(
        self, prefix: str, node: UnresolvedObject, attributes: dict[Any, Any]
    ) -> Iterator[tuple[str, TensorInfo]]:
        """Yield (key, tensor) of parameters, then buffers, as declared in the class's code."""
        module, name = node.callee_name
        parameters, buffers = self._get_tensor_names(module).get(name, (None, None))
        tensors = {}
        for attribute, value in attributes.items():
            tensor = self._tensors.read_tensor(value, join_key(prefix, format_key(attribute)))
            if tensor is not None:
                tensors[format_key(attribute)] = tensor
        for kind, listed_names in ((Kind.PARAMETER, parameters), (Kind.BUFFER, buffers)):
            for attribute, tensor in tensors.items():
                # Without the code, tensors with requires_grad count as parameters.
                fits_requires_grad = tensor.requires_grad is (kind is Kind.PARAMETER)
                if attribute in listed_names if listed_names is not None else fits_requires_grad:
                    yield tensor.key, replace(tensor, kind=kind)

    def _get_tensor_names(self, module: str) -> _ClassTensorNames:
        """Return {class: (parameter names, buffer names)} of one code file of the archive."""
        if module not in self._tensor_names_by_module:
            self._tensor_names_by_module[module] = {
                name: (_parse_names(parameters), _parse_names(buffers))
                for name, parameters, buffers in _CLASS_PATTERN.findall(self._read_code(module))
            }
        return self._tensor_names_by_module[module]

    def _read_code(self, module: str) -> str:
        member = self._records.get(f"code/{module.replace('.', '/')}.py")
        if member is None or member.nbytes > _MAX_CODE_BYTES:
            return ""
        member.is_referenced = True
        source, limits = self._records.source, self._records.limits
        return read_member(source, member, limits, _MAX_CODE_BYTES).decode("utf-8", "replace")

    def _iter_loose_tensors(self, key: str, value: Any, depth: int = 0) -> Iterator[TensorInfo]:
        """Yield the tensors in an attribute that is neither a parameter nor a buffer."""
        tensor = self._tensors.read_tensor(value, key)
        if tensor is not None:
            yield replace(tensor, kind=Kind.CONTAINER if depth else Kind.ATTRIBUTE)
        elif is_packed_object(value) or _has_own_state(value):
            self.packed.read_object(value, key)
        elif (
            type(value) not in ATOMIC_TYPES
            and depth < _MAX_DEPTH
            and id(value) not in self._visited_ids
        ):
            self._visited_ids.add(id(value))
            for step, child in iter_access_steps(_unwrap_builders(value)):
                path = self._places.join(key, step, "")
                yield from self._iter_loose_tensors(path, child, depth + 1)

    def _add_plain_entries(self, attributes: dict[str, Any]) -> None:
        """Add plain attributes to `entries`, except None and flags that every module has."""
        for key, node in attributes.items():
            if node is None:  # a parameter, buffer or submodule that is registered as None
                continue
            value = self._plain_reader.convert_node(_unwrap_builders(node))
            name = key.rpartition(".")[2]
            if value is not NOT_PLAIN and name not in {"training", "_is_full_backward_hook"}:
                self.entries.append(PlainEntry(key, describe_node(_unwrap_builders(node)), value))


def _iter_submodules(root: UnresolvedObject) -> Iterator[tuple[str, UnresolvedObject]]:
    stack = [("", root, 0)]
    visited_ids: set[int] = set()
    attribute_count = key_chars = 0
    for _ in range(_MAX_MODULES):
        if not stack:
            return
        prefix, node, depth = stack.pop()
        if depth > _MAX_NESTING:
            raise PickleTreeError(f"modules nest deeper than {_MAX_NESTING}")
        attribute_count += len(_get_attributes(node)) if id(node) in visited_ids else 0
        key_chars += len(prefix) * (1 + len(_get_attributes(node)))
        if attribute_count > _MAX_REPEATED_ATTRIBUTES or key_chars > _MAX_KEY_CHARS:
            raise PickleTreeError("its modules have several or long names, and repeat too much")
        visited_ids.add(id(node))
        yield prefix, node
        children = [
            (join_key(prefix, format_key(name)), child, depth + 1)
            for name, child in _get_attributes(node).items()
            if _is_module(child)
        ]
        stack.extend(reversed(children))
        if len(stack) > _MAX_MODULES:
            break
    raise PickleTreeError(f"it has more than {_MAX_MODULES} modules")


def _unmangle_class_name(node: UnresolvedObject) -> str:
    """Return the Python class name, without TorchScript's `___torch_mangle_N` parts."""
    return _MANGLED_PATTERN.sub("", node.qualified_name.removeprefix("__torch__."))


def _parse_names(text: str) -> frozenset[str]:
    return frozenset(_NAME_PATTERN.findall(text))


def _unwrap_builders(node: Any) -> Any:
    """Replace calls such as `restore_type_tag(value, type)` by their first argument."""
    for _ in range(_MAX_DEPTH):
        if (
            type(node) is not UnresolvedObject
            or node.callee_name[1] not in _BUILDERS
            or not node.args
        ):
            break
        node = node.args[0]
    return node


class _Constants(Struct, frozen=True):
    """What constants.pkl holds."""

    root: Any = None
    states: tuple[StateDict, ...] = ()
    opaque: tuple[Skipped, ...] = ()


def _read_constants(
    records: ArchiveRecords, global_names: GlobalNames, byteorder: str
) -> _Constants:
    """Return the tensors of constants.pkl as one state; a frozen module has all tensors there."""
    member = records.get("constants.pkl")
    if member is None:
        return _Constants()
    pickle = unpickle_member(records, member)
    global_names += pickle.globals
    if pickle.error:
        raise PickleTreeError(f"constants.pkl: {pickle.error}")
    has_own_folder = any(name.startswith("constants/") for name, _ in records.items())
    folder = "constants/" if has_own_folder else "data/"
    resolve_storages(pickle.persistent_references, records, byteorder, folder, is_script=True)
    tensors = create_tensor_reader(records.limits, is_script=True)
    nodes = pickle.root if type(pickle.root) is tuple else ()
    packed = PackedObjectReader(tensors)
    constants: dict[str, TensorInfo] = {}
    for index, node in enumerate(nodes):
        tensor = tensors.read_tensor(node, f"{index}")
        if tensor is not None:
            constants[tensor.key] = tensor
        elif is_packed_object(node):
            packed.read_object(node, f"{index}")
    states = (StateDict("constants", constants, "tensors"),) if constants else ()
    packed_states = packed.build_states("constants")
    return _Constants(pickle.root, (*states, *packed_states), tuple(packed.opaque))


def _collect_contents(records: ArchiveRecords, *roots: object) -> dict[str, str]:
    """Return the fingerprints of the attributes, the constants, the code and the user's files."""
    if not records.limits.contents:
        return {}
    collector = ContentCollector()
    is_tensor = create_tensor_reader(records.limits, is_script=True).is_tensor
    for root, place in zip(roots, ("", "constants"), strict=True):
        if root is not None:
            add_tree_contents(collector, root, is_tensor, place)
    others = (
        (name, member)
        for name, member in records.items()
        if not name.startswith(("data/", "constants/", ".data/")) and name not in _READ_RECORDS
    )
    return collector.fingerprints | records.collect_contents(others)


_READ_RECORDS: Final = frozenset({"data.pkl", "constants.pkl", "version", "byteorder"})


def _collect_other_globals(records: ArchiveRecords, global_names: GlobalNames) -> None:
    """Add the globals of remaining pickles (traced inputs, debug records) to `global_names`."""
    for name, member in records.items():
        if name.endswith("pkl") and not member.is_referenced:
            global_names += unpickle_member(records, member).globals
        elif name.startswith("code/") and name.endswith(".py"):
            member.is_referenced = True
