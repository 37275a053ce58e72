"""TorchScript archive -> Checkpoint: its module's parameters, buffers and other tensors."""

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec.structs import replace

from ckptool.formats.globals import judge
from ckptool.formats.nodes import ATOMS, Global, Opaque
from ckptool.formats.pickled_modules import steps
from ckptool.formats.plain import NOT_PLAIN, Plain, text_key, words
from ckptool.formats.tensors import Tensors, TreeError
from ckptool.formats.torch_zip import (
    Names,
    Records,
    guarded,
    hidden_uses,
    looked_over,
    main_pickle,
    metadata_of,
    resolve,
    unpickle_member,
)
from ckptool.formats.uses import uses
from ckptool.formats.zips import read_member
from ckptool.model import (
    Checkpoint,
    Container,
    Entry,
    Kind,
    PickledModule,
    Safety,
    State,
    TensorInfo,
)


def read(records: Records) -> Checkpoint:
    """Describe the archive without compiling or running its code.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    return guarded(records, Container.TORCHSCRIPT, lambda names: _described(records, names))


def _described(records: Records, names: Names) -> Checkpoint:
    pickle = main_pickle(records, names)
    metadata = metadata_of(records)
    byteorder = metadata.get("byteorder", "little")
    resolve(pickle.persistent, records, byteorder)
    walk = _Walk(records, Tensors(records.limits))
    if type(pickle.root) is not Opaque or not _is_module(pickle.root):
        # torch.jit.load recognises TorchScript by the member names alone.
        raise TreeError("data.pkl holds no TorchScript module")
    states = [walk.module(pickle.root), *_constants(records, names, byteorder)]
    _other_pickles(records, names)
    return Checkpoint(
        records.source.path,
        Container.TORCHSCRIPT,
        records.source.nbytes,
        tuple(states),
        tuple(walk.entries),
        (*uses(names, pickle.root, _judge), *hidden_uses(records)),
        metadata,
        skipped=looked_over(records),
    )


_CODE: Final = 16 << 20
_MODULES: Final = 100_000
_NESTING: Final = 200
_DEPTH: Final = 8
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
_CLASS: Final = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[([^\]\n]*)\]\n  __buffers__ = \[([^\]\n]*)\]",
    re.MULTILINE,
)
_NAME: Final = re.compile(r'"([^"]*)"')
_MANGLED: Final = re.compile(r"___torch_mangle_\d+\.")
_Types = dict[str, tuple[frozenset[str], frozenset[str]]]


def _judge(name: Global) -> Safety:
    """Classify a global: types of the archive's own code (`__torch__`) are safe, not imported."""
    own = name.module == "__torch__" or name.module.startswith("__torch__.")
    helper = name.module == "torch.jit._pickle" and name.name in _BUILDERS
    return Safety.SAFE if (own or helper) and not name.computed else judge(name)


def _is_module(node: Any) -> bool:
    named = type(node) is Opaque and node.name[0].partition(".")[0] == "__torch__"
    return named and isinstance(node.state, dict)


def _state(node: Opaque) -> dict[Any, Any]:
    return node.state if isinstance(node.state, dict) else {}


class _Walk:
    """Reads a ScriptModule tree: state_dict, other tensors, plain attributes."""

    def __init__(self, records: Records, tensors: Tensors) -> None:
        self.entries: list[Entry] = []
        self._records = records
        self._tensors = tensors
        self._types: dict[str, _Types] = {}
        self._plain = Plain()
        self._seen: set[int] = set()

    def module(self, root: Opaque) -> State:
        """Return the tensors of the module's state_dict(), and its other tensors as `unsaved`."""
        saved: dict[str, TensorInfo] = {}
        loose: dict[str, Any] = {}
        modules: dict[str, PickledModule] = {}
        for prefix, node in _members(root):
            attributes = _state(node)
            modules[prefix] = PickledModule(
                _class_name(node), frozenset(text_key(name) for name in attributes)
            )
            saved.update(self._registered(prefix, node, attributes))
            for name, value in attributes.items():
                key = _join(prefix, text_key(name))
                if key not in saved and not _is_module(value):
                    loose[key] = value
        storages = {tensor.storage for tensor in saved.values()}
        found = {t.key: t for key, value in loose.items() for t in self._loose(key, value)}
        unsaved = {key: t for key, t in found.items() if t.storage not in storages}
        self._enter({key: value for key, value in loose.items() if key not in found})
        return State("", saved, "module", unsaved=unsaved, modules=modules)

    def _registered(
        self, prefix: str, node: Opaque, attributes: dict[Any, Any]
    ) -> Iterator[tuple[str, TensorInfo]]:
        """Yield (key, tensor) of parameters, then buffers, as declared in the class's code."""
        module, name = node.name
        parameters, buffers = self._of(module).get(name, (None, None))
        found = {}
        for attribute, value in attributes.items():
            tensor = self._tensors.read(value, _join(prefix, text_key(attribute)))
            if tensor is not None:
                found[text_key(attribute)] = tensor
        for kind, listed in ((Kind.PARAMETER, parameters), (Kind.BUFFER, buffers)):
            for attribute, tensor in found.items():
                # Without the code, tensors with requires_grad count as parameters.
                untold = tensor.requires_grad is (kind is Kind.PARAMETER)
                if attribute in listed if listed is not None else untold:
                    yield tensor.key, replace(tensor, kind=kind)

    def _of(self, module: str) -> _Types:
        """Return {class: (parameter names, buffer names)} of one code file of the archive."""
        if module not in self._types:
            self._types[module] = {
                name: (_listed(parameters), _listed(buffers))
                for name, parameters, buffers in _CLASS.findall(self._code(module))
            }
        return self._types[module]

    def _code(self, module: str) -> str:
        member = self._records.get(f"code/{module.replace('.', '/')}.py")
        if member is None or member.nbytes > _CODE:
            return ""
        member.used = True
        source, limits = self._records.source, self._records.limits
        return read_member(source, member, limits, _CODE).decode("utf-8", "replace")

    def _loose(self, key: str, value: Any, depth: int = 0) -> Iterator[TensorInfo]:
        """Yield the tensors in an attribute that is neither a parameter nor a buffer."""
        tensor = self._tensors.read(value, key)
        if tensor is not None:
            yield replace(tensor, kind=Kind.CONTAINER if depth else Kind.ATTRIBUTE)
        elif type(value) not in ATOMS and depth < _DEPTH and id(value) not in self._seen:
            self._seen.add(id(value))
            for step, child in steps(_unwrapped(value)):
                yield from self._loose(key + step, child, depth + 1)

    def _enter(self, loose: dict[str, Any]) -> None:
        """Add plain attributes to `entries`, except flags that every module has."""
        for key, node in loose.items():
            value = self._plain.value(_unwrapped(node))
            name = key.rpartition(".")[2]
            if value is not NOT_PLAIN and name not in {"training", "_is_full_backward_hook"}:
                self.entries.append(Entry(key, words(_unwrapped(node)), value))


def _members(root: Opaque) -> Iterator[tuple[str, Opaque]]:
    todo = [("", root, 0)]
    for _ in range(_MODULES):
        if not todo:
            return
        prefix, node, depth = todo.pop()
        if depth > _NESTING:
            raise TreeError(f"modules nest deeper than {_NESTING}")
        yield prefix, node
        inner = [
            (_join(prefix, text_key(name)), child, depth + 1)
            for name, child in _state(node).items()
            if _is_module(child)
        ]
        todo.extend(reversed(inner))
    raise TreeError(f"it has more than {_MODULES} modules")


def _class_name(node: Opaque) -> str:
    """Return the Python class name, without TorchScript's `___torch_mangle_N` parts."""
    return _MANGLED.sub("", node.qualified.removeprefix("__torch__."))


def _listed(text: str) -> frozenset[str]:
    return frozenset(_NAME.findall(text))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _unwrapped(node: Any) -> Any:
    """Replace calls such as `restore_type_tag(value, type)` by their first argument."""
    for _ in range(_DEPTH):
        if type(node) is not Opaque or node.name[1] not in _BUILDERS or not node.args:
            break
        node = node.args[0]
    return node


def _constants(records: Records, names: Names, byteorder: str) -> list[State]:
    """Return the tensors of constants.pkl as one state; a frozen module has all tensors there."""
    member = records.get("constants.pkl")
    if member is None:
        return []
    pickle = unpickle_member(records, member)
    names += pickle.globals
    if pickle.fault:
        raise TreeError(f"constants.pkl: {pickle.fault}")
    apart = any(name.startswith("constants/") for name, _ in records.items())
    folder = "constants/" if apart else "data/"
    resolve(pickle.persistent, records, byteorder, folder)
    tensors = Tensors(records.limits)
    listed = pickle.root if type(pickle.root) is tuple else ()
    found = (tensors.read(node, f"{index}") for index, node in enumerate(listed))
    held = {tensor.key: tensor for tensor in found if tensor is not None}
    return [State("constants", held, "tensors")] if held else []


def _other_pickles(records: Records, names: Names) -> None:
    """Add the globals of remaining pickles (traced inputs, debug records) to `global_names`."""
    for name, member in records.items():
        if name.endswith("pkl") and not member.used:
            names += unpickle_member(records, member).globals
            folder = member.name.removesuffix(".pkl") + "/"
            for beside in records.members:
                beside.used = beside.used or beside.name.startswith(folder)
        elif name.startswith("code/"):
            member.used = True
