"""Node of a pickle -> what it is to torch.load(weights_only=True): allowed, plain, or dangerous."""

from collections.abc import Mapping
from typing import Any, Final

from ckptool.formats.pickle.graph import NewObjClass
from ckptool.formats.pickle.machine import convert_python2_name
from ckptool.formats.pickle.nodes import GlobalName, PersistentReference, UnresolvedObject
from ckptool.formats.pickle.numpy_arrays import read_numpy_array, read_numpy_scalar
from ckptool.formats.pickle.plain_values import describe_node
from ckptool.formats.pickle.safe_globals import SAFE_GLOBALS, classify_global
from ckptool.formats.pickle.tensors.argument_checks import TENSOR_CLASSES
from ckptool.model import Safety, TensorInfo

ORDERED_DICT: Final = ("collections", "OrderedDict")
PLAIN_CALLS: Final = frozenset(
    {
        ("torch", "device"),
        ("torch", "Size"),
        ("builtins", "complex"),
        ("builtins", "bytearray"),
        ("collections", "Counter"),
    }
)
"""Calls with plain arguments that the restricted unpickler allows."""
_TENSOR_CALLS: Final = frozenset(
    ("torch._utils", name)
    for name in (
        "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
        "_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_nested_tensor",
        "_rebuild_meta_tensor_no_storage",
    )
) | {("torch.serialization", "_get_layout")}  # fmt: skip
SUBCLASS_CALLS: Final = frozenset(
    {("torch._tensor", "_rebuild_from_type_v2"), ("torch._tensor", "_rebuild_from_type")}
)
"""Calls whose arguments are the function that makes a tensor, its class, arguments and state."""
ATTRIBUTE_CALLS: Final = SUBCLASS_CALLS | {("torch._utils", "_rebuild_parameter_with_state")}
"""Calls whose last argument is the attributes of the tensor."""


def find_safe_storages(
    node: UnresolvedObject, substitutes: Mapping[int, Any]
) -> list[PersistentReference] | None:
    """Return the storages of a tensor whose calls are all allowed; None for any other node."""
    if get_callee(node) not in _TENSOR_CALLS | ATTRIBUTE_CALLS:
        return None
    storages: list[PersistentReference] = []
    pending: list[Any] = [node]
    while pending:
        part = pending.pop()
        part = substitutes.get(id(part), part)
        if type(part) is PersistentReference:
            storages.append(part)
        parts = list_safe_parts(part)
        if parts is None:
            return None
        pending += parts
    return storages


def unwrap_subclass(node: UnresolvedObject) -> UnresolvedObject | None:
    """Return the call that makes the tensor of a subclass, without the class; None for others."""
    is_subclass = get_callee(node) in SUBCLASS_CALLS and len(node.args) == 4
    if not is_subclass or type(node.args[0]) is not GlobalName or type(node.args[2]) is not tuple:
        return None
    return UnresolvedObject(node.args[0], node.args[2])


def list_safe_parts(part: Any) -> list[Any] | None:
    """Return what a part of a tensor's node consists of; None if the part is not allowed."""
    if type(part) is UnresolvedObject:
        is_allowed = get_callee(part) in _TENSOR_CALLS | PLAIN_CALLS | {ORDERED_DICT} or (
            get_callee(part) in ATTRIBUTE_CALLS and _has_plain_class(part)
        )
        has_more = part.kwargs or part.items or part.state is not None
        return [part.func, *part.args, part.pairs or {}] if is_allowed and not has_more else None
    if type(part) is GlobalName:
        return [] if resolve_name(part) in SAFE_GLOBALS else None
    if type(part) in {tuple, list}:
        return list(part)
    if type(part) is dict:
        return [*part, *part.values()]
    if type(part) is PersistentReference:
        return list(part.persistent_id) if type(part.persistent_id) is tuple else None
    return [] if type(part) in {type(None), bool, int, float, str} else None


def _has_plain_class(node: UnresolvedObject) -> bool:
    """Whether a tensor with attributes is a plain one, a parameter or a buffer."""
    cls = node.args[1] if len(node.args) == 4 else None
    is_parameter = get_callee(node) not in SUBCLASS_CALLS
    return is_parameter or (type(cls) is GlobalName and resolve_name(cls) in TENSOR_CLASSES)


def names_dangerous(root: Any, substitutes: Mapping[int, Any]) -> bool:
    """Return whether a graph names something that acts when it is loaded."""
    pending, visited_ids = [root], set[int]()
    while pending:
        node = pending.pop()
        node = substitutes.get(id(node), node)
        if type(node) is GlobalName:
            if _classify_name(node) is Safety.DANGEROUS:
                return True
            continue
        if id(node) in visited_ids:
            continue
        visited_ids.add(id(node))
        if isinstance(node, dict):
            pending += [*node, *node.values()]
        elif isinstance(node, list | tuple):
            pending += node
        elif type(node) is UnresolvedObject:
            pending += [
                find_class(node),
                *node.args,
                node.kwargs,
                node.state,
                node.items,
                node.pairs,
            ]
        elif type(node) is PersistentReference:
            pending += [
                node.persistent_id,
                node.target if type(node.target) is GlobalName else None,
            ]
    return False


def resolve_name(node: GlobalName) -> tuple[str, str]:
    """Return module and name, a name of Python 2 as unpicklers of today read it."""
    return convert_python2_name(node.module, node.name)


def _classify_name(node: GlobalName) -> Safety:
    return classify_global(GlobalName(*resolve_name(node), computed=node.computed))


def get_callee(node: UnresolvedObject) -> tuple[str, str]:
    return resolve_name(node.func) if type(node.func) is GlobalName else ("", "")


def read_bytes(node: Any) -> bytes | None:
    """Return the bytes of `_codecs.encode(text, "latin1")`; None for any other node."""
    if type(node) is bytes:
        return node
    if type(node) is not UnresolvedObject or get_callee(node) != ("_codecs", "encode"):
        return None
    text = node.args[0] if node.args else None
    try:
        return text.encode("latin-1") if type(text) is str else None
    except UnicodeEncodeError:
        return None


def read_scalar(node: UnresolvedObject) -> float | None:
    """Return the number of a pickled numpy scalar; None for any other node."""
    module, name = get_callee(node)
    if name != "scalar" or not module.endswith("multiarray") or len(node.args) != 2:
        return None
    content = read_bytes(node.args[1])
    return read_numpy_scalar((node.args[0], content)) if content is not None else None


def read_array(node: UnresolvedObject) -> TensorInfo | None:
    """Return the description of a pickled numpy array of numbers; None for any other node."""
    state, content = node.state, None
    if type(state) is tuple and len(state) == 5:
        content = read_bytes(state[4])
    if content is None:
        return read_numpy_array(node, "")
    array = UnresolvedObject(node.func, node.args)
    array.state = (*state[:4], content)
    return read_numpy_array(array, "")


def read_pairs_argument(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Return the pairs of a mapping's constructor: a dict, or a list of pairs."""
    source = arguments[0] if arguments else {}
    if isinstance(source, dict):
        return source
    is_pairs = type(source) is list and all(
        type(pair) in {list, tuple} and len(pair) == 2 for pair in source
    )
    return dict(source) if is_pairs else {}


def is_module(content: Any) -> bool:
    """Whether it is the `__dict__` of an nn.Module."""
    return isinstance(content, dict) and {"_parameters", "_modules"} <= content.keys()


def find_class(node: UnresolvedObject) -> object:
    """Return the node of the class of an object, or of the function that makes it."""
    return node.func.cls if type(node.func) is NewObjClass else node.func


def classify_class(node: UnresolvedObject) -> Safety:
    name = find_class(node)
    return _classify_name(name) if isinstance(name, GlobalName) else Safety.DANGEROUS


def describe_class(node: Any) -> str:
    """Return what a node is in the source: "argparse.Namespace", "a list of 3"."""
    if type(node) is UnresolvedObject:
        cls = find_class(node)
        return ".".join(resolve_name(cls)) if isinstance(cls, GlobalName) else node.qualified_name
    return describe_node(node)
