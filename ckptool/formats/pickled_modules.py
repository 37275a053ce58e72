"""Pickled nn.Module -> StateDict: its state_dict(), and the tensors not in it (`unsaved`)."""

from collections.abc import Iterator
from typing import Any, Final

from msgspec.structs import replace

from ckptool.formats.arrays import numpy_array
from ckptool.formats.nodes import ATOMS, Elements, Opaque
from ckptool.formats.plain import text_key
from ckptool.formats.tensors import Tensors, TreeError
from ckptool.model import Kind, PickledModule, State, StorageInfo, TensorInfo


def is_module(node: object) -> bool:
    """Whether a node has the dicts `_parameters`, `_buffers` and `_modules` of an nn.Module."""
    return type(node) is Opaque and _attributes(node) is not None


def module_state(node: Opaque, at: str, tensors: Tensors) -> State:
    """Return the module's state_dict() in its order, and in `unsaved` the tensors not in it.

    `at` is the dotted place of the module in the file, "" for the root.
    """
    members = list(_members(node))
    saved: dict[str, TensorInfo] = {}
    unsaved: dict[str, TensorInfo] = {}
    modules: dict[str, PickledModule] = {}
    for prefix, module in members:
        modules.setdefault(prefix, _class(module))
        for name, value, kind in _registered(module):
            key = _join(prefix, name)
            tensor = tensors.read(value, key)
            if tensor is not None:
                kept = unsaved if kind is Kind.NON_PERSISTENT_BUFFER else saved
                kept[key] = replace(tensor, kind=kind)
    loose = _Loose(tensors, members, {t.storage for t in (*saved.values(), *unsaved.values())})
    for prefix, module in members:
        loose.look(prefix, module)
    return State(at, saved, "module", unsaved=unsaved | loose.found, modules=modules)


_MEMBERS: Final = 100_000
_MODULE_DEPTH: Final = 500
_DEPTH: Final = 8
"""Nesting of containers, and of modules in them, in an attribute."""
_BASE: Final = frozenset(
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


def _attributes(node: Opaque) -> dict[Any, Any] | None:
    """Return a module's `__dict__` (a GraphModule's first argument), None if it is no module."""
    for state in (node.state, *node.args[:1]):
        if isinstance(state, dict) and all(
            isinstance(state.get(name), dict) for name in ("_parameters", "_buffers", "_modules")
        ):
            return state
    return None


def _members(root: Opaque) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield (prefix, `__dict__`) of every submodule, parents first, repeated ones too.

    The node itself is in the dict, under `_NODE_KEY`.
    """
    todo: list[tuple[str, Opaque, int]] = [("", root, 0)]
    for _ in range(_MEMBERS):
        if not todo:
            return
        prefix, node, depth = todo.pop()
        attributes = _attributes(node)
        if attributes is None:
            continue
        if depth > _MODULE_DEPTH:
            raise TreeError(f"modules nest deeper than {_MODULE_DEPTH}")
        yield prefix, {**attributes, _NODE: node}
        inner = [
            (_join(prefix, text_key(name)), child, depth + 1)
            for name, child in attributes["_modules"].items()
            if type(child) is Opaque
        ]
        todo.extend(reversed(inner))
    raise TreeError(f"it has more than {_MEMBERS} modules")


_NODE: Final = object()
"""Key of the node itself in the dicts of `_iter_submodules`."""


def _class(module: dict[Any, Any]) -> PickledModule:
    registered = (name for part in ("_parameters", "_buffers", "_modules") for name in module[part])
    own = (name for name in module if name is not _NODE)
    return PickledModule(
        module[_NODE].qualified, frozenset(text_key(name) for name in (*own, *registered))
    )


def _registered(module: dict[Any, Any]) -> Iterator[tuple[str, Any, Kind]]:
    for name, value in module["_parameters"].items():
        yield text_key(name), value, Kind.PARAMETER
    left_out = module.get("_non_persistent_buffers_set")
    names = left_out.items if type(left_out) is Elements else ()
    for name, value in module["_buffers"].items():
        yield text_key(name), value, Kind.NON_PERSISTENT_BUFFER if name in names else Kind.BUFFER


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


class _Loose:
    """Finds the tensors in a module's plain attributes, which state_dict() does not save."""

    def __init__(
        self,
        tensors: Tensors,
        members: list[tuple[str, dict[Any, Any]]],
        registered: set[StorageInfo | None],
    ) -> None:
        self.found: dict[str, TensorInfo] = {}
        self._tensors = tensors
        self._registered = registered
        self._seen = {id(module[_NODE]) for _, module in members}

    def look(self, prefix: str, module: dict[Any, Any], depth: int = 0) -> None:
        """Add the tensors in the attributes of one module."""
        derived = _derived(module)
        for name, value in module.items():
            if name is not _NODE and name not in _BASE and name not in derived:
                self._add(_join(prefix, text_key(name)), value, Kind.ATTRIBUTE, depth)

    def _add(self, path: str, value: Any, kind: Kind, depth: int) -> None:
        tensor = self._tensors.read(value, path)
        array = numpy_array(value, path)
        if tensor is not None:
            # A view of a registered tensor is saved with it: an RNN's _flat_weights.
            if tensor.storage is None or tensor.storage not in self._registered:
                self.found[path] = replace(tensor, kind=kind)
        elif array is not None:
            self.found[path] = array
        elif type(value) not in ATOMS and depth < _DEPTH and id(value) not in self._seen:
            self._seen.add(id(value))
            self._inside(path, value, depth + 1)

    def _inside(self, path: str, value: Any, depth: int) -> None:
        if is_module(value):
            self._module(path, value, depth)
            return
        for step, child in steps(value):
            self._add(path + step, child, Kind.CONTAINER, depth)

    def _module(self, path: str, node: Opaque, depth: int) -> None:
        """Add all tensors of a module that is not a registered submodule: none of them is saved."""
        members = [(_join(path, prefix), module) for prefix, module in _members(node)]
        self._seen |= {id(module[_NODE]) for _, module in members}
        for place, module in members:
            for name, value, _ in _registered(module):
                self._add(_join(place, name), value, Kind.MODULE, depth)
            self.look(place, module, depth)


def _derived(module: dict[Any, Any]) -> set[str]:
    """Return names of attributes that weight_norm, spectral_norm or prune compute in forward."""
    registered = module["_parameters"].keys() | module["_buffers"].keys()
    names = (str(name).rpartition("_") for name in registered)
    return {stem for stem, _, last in names if last in {"g", "v", "orig"} and stem}


def steps(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (access, child) of a container: "[0]", "['key']" or ".name"."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"[{text_key(key)!r}]" if type(key) is str else f"[{text_key(key)}]", child
    elif type(value) in {list, tuple}:
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
    elif type(value) is Elements:
        yield from ((f"[{index}]", child) for index, child in enumerate(value.items))
    elif type(value) is Opaque:
        yield from steps(value.items or ())
        yield from steps(value.pairs or {})
        states = value.state if type(value.state) is tuple else (value.state,)
        for state in states:
            if isinstance(state, dict):
                yield from ((f".{text_key(key)}", child) for key, child in state.items())
