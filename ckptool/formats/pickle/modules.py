"""Pickled nn.Module -> StateDict: its state_dict(), and the tensors not in it (`unsaved`)."""

from collections.abc import Iterator
from typing import Any, Final

from msgspec.structs import replace

from ckptool.formats.contents.packed_objects import PackedObjectReader, is_packed_object
from ckptool.formats.pickle.nodes import (
    ATOMIC_TYPES,
    SEQUENCE_TYPES,
    PickleTreeError,
    SetNode,
    UnresolvedObject,
)
from ckptool.formats.pickle.places import PlaceJoiner
from ckptool.formats.pickle.plain_values import format_key
from ckptool.formats.pickle.tensors.tensor_reader import TensorInfoReader
from ckptool.model import Kind, PickledModule, StateDict, StorageInfo, TensorInfo


def is_module(node: object) -> bool:
    """Whether a node has the dicts `_parameters`, `_buffers` and `_modules` of an nn.Module."""
    return type(node) is UnresolvedObject and _get_attributes(node) is not None


def read_module_state(
    node: UnresolvedObject, at: str, reader: TensorInfoReader, packed: PackedObjectReader
) -> StateDict:
    """Return the module's state_dict() in its order, and in `unsaved` the tensors not in it.

    Args:
        node: the module.
        at: its dotted place in the file, "" for the root.
        reader: reads its tensors.
        packed: reads the objects that hold tensors in a form of their own.
    """
    submodules = list(_iter_submodules(node, packed))
    _check_repeated_attributes(submodules)
    saved: dict[str, TensorInfo] = {}
    unsaved: dict[str, TensorInfo] = {}
    modules: dict[str, PickledModule] = {}
    for prefix, module in submodules:
        modules.setdefault(prefix, _describe_class(module))
        for name, value, kind in _iter_registered(module):
            key = _join_prefix(prefix, name)
            tensor = reader.read_tensor(value, key)
            if tensor is not None:
                target = unsaved if kind is Kind.NON_PERSISTENT_BUFFER else saved
                target[key] = replace(tensor, kind=kind)
    finder = _AttributeTensorFinder(
        reader,
        packed,
        submodules,
        {tensor_info.storage for tensor_info in (*saved.values(), *unsaved.values())},
    )
    for prefix, module in submodules:
        finder.add_attributes(prefix, module)
    return StateDict(
        at, saved, "module", unsaved_tensors=unsaved | finder.unregistered_tensors, modules=modules
    )


_MAX_SUBMODULES: Final = 100_000
_MAX_REPEATED_ATTRIBUTES: Final = 100_000
"""Tensors and attributes of modules under further names: a file names a thousand in few bytes."""
_MAX_KEY_CHARS: Final = 64 << 20
"""Characters of all prefixes, each once for its module and once for each of its tensors."""
_MAX_MODULE_DEPTH: Final = 500
_MAX_ATTRIBUTE_DEPTH: Final = 8
"""Nesting of containers, and of modules in them, in an attribute."""
_NN_MODULE_ATTRIBUTES: Final = frozenset(
    {
        "training",
        "_parameters",
        "_buffers",
        "_modules",
        "_non_persistent_buffers_set",
        "_backward_pre_hooks",
        "_backward_hooks",
        "_is_full_backward_hook",
        "_forward_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_compiled_call_impl",
        "call_super_init",
        "dump_patches",
    }
)
"""nn.Module's own attributes."""


def _get_attributes(node: UnresolvedObject) -> dict[Any, Any] | None:
    """Return a module's `__dict__` (a GraphModule's first argument), None if it is no module."""
    for state in (node.state, *node.args[:1]):
        if isinstance(state, dict) and all(
            isinstance(state.get(name), dict) for name in ("_parameters", "_buffers", "_modules")
        ):
            return state
    return None


def _iter_submodules(
    root: UnresolvedObject, packed: PackedObjectReader
) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield (prefix, `__dict__`) of every submodule, parents first, repeated ones too.

    One that pickles something else than its `__dict__` is given to `packed`.

    The node itself is in the dict, under `_NODE_KEY`.
    """
    todo: list[tuple[str, UnresolvedObject, int]] = [("", root, 0)]
    key_chars = 0
    dicts_by_id: dict[int, dict[Any, Any]] = {}
    for _ in range(_MAX_SUBMODULES):
        if not todo:
            return
        prefix, node, depth = todo.pop()
        attributes = _get_attributes(node)
        if attributes is None:
            packed.read_object(node, prefix)
            continue
        if depth > _MAX_MODULE_DEPTH:
            raise PickleTreeError(f"modules nest deeper than {_MAX_MODULE_DEPTH}")
        key_chars += len(prefix) * (
            1 + len(attributes["_parameters"]) + len(attributes["_buffers"])
        )
        if key_chars > _MAX_KEY_CHARS:
            raise PickleTreeError(f"its keys have more than {_MAX_KEY_CHARS} characters")
        if id(node) not in dicts_by_id:
            dicts_by_id[id(node)] = {**attributes, _NODE_KEY: node}
        yield prefix, dicts_by_id[id(node)]
        children = [
            (_join_prefix(prefix, format_key(name)), child, depth + 1)
            for name, child in attributes["_modules"].items()
            if type(child) is UnresolvedObject
        ]
        todo.extend(reversed(children))
        if len(todo) > _MAX_SUBMODULES:
            break
    raise PickleTreeError(f"it has more than {_MAX_SUBMODULES} modules")


def _check_repeated_attributes(submodules: list[tuple[str, dict[Any, Any]]]) -> None:
    """Raise PickleTreeError if modules under several names repeat too many attributes."""
    visited_ids: set[int] = set()
    repeated_count = 0
    for _, module in submodules:
        if id(module) in visited_ids:
            repeated_count += len(module) + len(module["_parameters"]) + len(module["_buffers"])
        visited_ids.add(id(module))
    if repeated_count > _MAX_REPEATED_ATTRIBUTES:
        raise PickleTreeError(
            "its modules have several names each, and repeat more than"
            f" {_MAX_REPEATED_ATTRIBUTES} attributes"
        )


_NODE_KEY: Final = object()
"""Key of the node itself in the dicts of `_iter_submodules`."""


def _describe_class(module: dict[Any, Any]) -> PickledModule:
    registered_names = (
        name for dict_name in ("_parameters", "_buffers", "_modules") for name in module[dict_name]
    )
    attribute_names = (name for name in module if name is not _NODE_KEY)
    return PickledModule(
        module[_NODE_KEY].qualified_name,
        frozenset(format_key(name) for name in (*attribute_names, *registered_names)),
    )


def _iter_registered(module: dict[Any, Any]) -> Iterator[tuple[str, Any, Kind]]:
    for name, value in module["_parameters"].items():
        yield format_key(name), value, Kind.PARAMETER
    non_persistent = module.get("_non_persistent_buffers_set")
    names = (
        {n for n in non_persistent.items if type(n) is str}
        if type(non_persistent) is SetNode
        else set()
    )
    for name, value in module["_buffers"].items():
        yield format_key(name), value, Kind.NON_PERSISTENT_BUFFER if name in names else Kind.BUFFER


def _join_prefix(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


class _AttributeTensorFinder:
    """Finds the tensors in a module's plain attributes, which state_dict() does not save."""

    def __init__(
        self,
        reader: TensorInfoReader,
        packed: PackedObjectReader,
        submodules: list[tuple[str, dict[Any, Any]]],
        registered_storages: set[StorageInfo | None],
    ) -> None:
        self.unregistered_tensors: dict[str, TensorInfo] = {}
        self._reader = reader
        self._packed = packed
        self._registered_storages = registered_storages
        self._places = PlaceJoiner()
        self._visited_ids = {id(module[_NODE_KEY]) for _, module in submodules}

    def add_attributes(self, prefix: str, module: dict[Any, Any], depth: int = 0) -> None:
        """Add the tensors in the attributes of one module."""
        derived_names = _find_derived_names(module)
        for name, value in module.items():
            if (
                name is not _NODE_KEY
                and name not in _NN_MODULE_ATTRIBUTES
                and name not in derived_names
            ):
                self._add_value(self._join(prefix, format_key(name)), value, Kind.ATTRIBUTE, depth)

    def _add_value(self, path: str, value: Any, kind: Kind, depth: int) -> None:
        is_known = self._reader.is_read(value)
        tensor = self._reader.read_tensor(value, path)
        array = self._reader.read_array(value, path)
        if tensor is not None:
            # A view of a registered tensor is saved with it: an RNN's _flat_weights.
            if tensor.storage is None or tensor.storage not in self._registered_storages:
                self.unregistered_tensors[path] = replace(tensor, kind=kind)
            elif not is_known:
                self._reader.forget(value)
        elif array is not None:
            self.unregistered_tensors[path] = array
        elif is_packed_object(value):
            self._packed.read_object(value, path)
        elif (
            type(value) not in ATOMIC_TYPES
            and depth < _MAX_ATTRIBUTE_DEPTH
            and id(value) not in self._visited_ids
        ):
            self._visited_ids.add(id(value))
            self._add_children(path, value, depth + 1)

    def _join(self, prefix: str, name: str) -> str:
        return self._places.join(prefix, name, "." if prefix and name else "")

    def _add_children(self, path: str, value: Any, depth: int) -> None:
        if is_module(value):
            self._add_module(path, value, depth)
            return
        for step, child in iter_access_steps(value):
            self._add_value(self._places.join(path, step, ""), child, Kind.CONTAINER, depth)

    def _add_module(self, path: str, node: UnresolvedObject, depth: int) -> None:
        """Add all tensors of a module that is not a registered submodule: none of them is saved."""
        submodules = [
            (self._join(path, prefix), module)
            for prefix, module in _iter_submodules(node, self._packed)
        ]
        _check_repeated_attributes(submodules)
        self._visited_ids |= {id(module[_NODE_KEY]) for _, module in submodules}
        for module_path, module in submodules:
            for name, value, _ in _iter_registered(module):
                self._add_value(self._join(module_path, name), value, Kind.MODULE, depth)
            self.add_attributes(module_path, module, depth)


def _find_derived_names(module: dict[Any, Any]) -> set[str]:
    """Return names of attributes that weight_norm, spectral_norm or prune compute in forward."""
    registered_names = module["_parameters"].keys() | module["_buffers"].keys()
    names = (str(name).rpartition("_") for name in registered_names)
    return {stem for stem, _, suffix in names if suffix in {"g", "v", "orig"} and stem}


def iter_access_steps(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (access, child) of a container: "[0]", "['key']" or ".name"."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"[{format_key(key)!r}]" if type(key) is str else f"[{format_key(key)}]", child
    elif type(value) in SEQUENCE_TYPES:
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
    elif type(value) is SetNode:
        yield from ((f"[{index}]", child) for index, child in enumerate(value.items))
    elif type(value) is UnresolvedObject:
        yield from iter_access_steps(value.items or ())
        yield from iter_access_steps(value.pairs or {})
        states = value.state if type(value.state) is tuple else (value.state,)
        for state in states:
            if isinstance(state, dict):
                yield from ((f".{format_key(key)}", child) for key, child in state.items())
