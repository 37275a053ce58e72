"""Graph of a pickle -> the same object of plain data, which torch.load(weights_only=True) reads.

The result is made of a closed set of forms: None, numbers, strings, dict, OrderedDict, list, tuple,
set, torch's constants and tensors. What is of another kind is written as one of these where that
loses nothing but its class (a Namespace is a dict, a numpy number a number), and left out where it
is not. Nothing is called, whatever the pickle names.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from ckptool.formats.pickle.graph import NewObjClass, SetMembers
from ckptool.formats.pickle.nodes import GlobalName, PersistentReference, UnresolvedObject
from ckptool.formats.pickle.plain_values import (
    NOT_PLAIN,
    convert_simple_object,
    describe_node,
    is_torch_constant,
)
from ckptool.formats.pickle.safe_globals import SAFE_GLOBALS
from ckptool.formats.pickle.tensors.argument_checks import TENSOR_CLASSES
from ckptool.migration.plan.conversion import TreeChange
from ckptool.migration.write.graph_keys import iter_named_pairs
from ckptool.migration.write.plain_nodes import (
    ATTRIBUTE_CALLS,
    ORDERED_DICT,
    PLAIN_CALLS,
    classify_class,
    describe_class,
    find_safe_storages,
    get_callee,
    is_module,
    list_safe_parts,
    names_dangerous,
    read_array,
    read_bytes,
    read_pairs_argument,
    read_scalar,
    resolve_name,
    unwrap_subclass,
)
from ckptool.model import Safety, TensorInfo, join_key

_MAX_DEPTH: Final = 60
"""Containers within containers; deeper ones are left out."""
_MAX_INT_BYTES: Final = 255
"""Bytes of the longest int that the restricted unpickler reads (LONG1)."""
_MAPPINGS: Final = frozenset({ORDERED_DICT, ("collections", "defaultdict")})
_FROZENSET: Final = ("builtins", "frozenset")
_SETS: Final = frozenset({("builtins", "set"), _FROZENSET})
_MUTABLE_CALLS: Final = frozenset(
    {*_SETS, *_MAPPINGS, ("builtins", "bytearray"), ("collections", "Counter")}
)
_ENCODE: Final = GlobalName("_codecs", "encode")
_SET: Final = GlobalName("builtins", "set")
_BYTEARRAY: Final = GlobalName("builtins", "bytearray")
_NEW_ORDERED_DICT: Final = GlobalName(*ORDERED_DICT)
_CPU: Final = "cpu"
_LEFT_OUT: Final = object()
"""Returned for a node that no plain data stands for."""


class PlainTree(Struct, frozen=True):
    """A graph of plain data, and how it differs from its source."""

    root: Any
    changes: tuple[TreeChange, ...]


NodeConverter = Callable[[Any, str, int], Any]
"""Node, place and depth -> the plain form, or _LEFT_OUT."""
TensorBuilder = Callable[[TensorInfo], object | None]
"""Returns a new node for a tensor; None if its description alone does not say its elements."""


def build_plain_tree(
    root: Any,
    build_tensor: TensorBuilder,
    *,
    tensors: Mapping[str, TensorInfo],
    substitutes: Mapping[int, Any],
    is_stripped: Callable[[str], bool] = lambda _: False,
    keeps_unknown: bool = False,
    place: str = "",
) -> PlainTree:
    """Return the graph without what `torch.load(weights_only=True)` refuses.

    Args:
        root: of the graph; tensors in it are kept as they are where they are safe, on the CPU.
        build_tensor: makes the others, and those of arrays.
        tensors: place -> description of the tensor or array there.
        substitutes: id of a node -> the node to read in its place.
        is_stripped: whether a place is left out, as asked; those are no `changes`.
        keeps_unknown: keep objects of classes that are not known to act, and devices; leave out
            only what names something dangerous.
        place: of the root in the source.
    """
    builder = _PlainTreeBuilder(
        build_tensor, tensors, substitutes, is_stripped, keeps_unknown=keeps_unknown
    )
    plain_root = builder.convert(root, place, 0)
    return PlainTree(None if plain_root is _LEFT_OUT else plain_root, tuple(builder.changes))


class _PlainTreeBuilder:
    def __init__(
        self,
        build_tensor: TensorBuilder,
        tensors: Mapping[str, TensorInfo],
        substitutes: Mapping[int, Any],
        is_stripped: Callable[[str], bool],
        *,
        keeps_unknown: bool,
    ) -> None:
        self.changes: list[TreeChange] = []
        self._build_tensor = build_tensor
        self._tensors = tensors
        self._substitutes = substitutes
        self._is_stripped = is_stripped
        self._keeps_unknown = keeps_unknown
        self._results: dict[int, tuple[Any, Any]] = {}
        """id of a node -> the node, which stays alive so, and its plain form."""

    def convert(self, node: Any, place: str, depth: int) -> Any:
        """Return the plain form of `node`, or _LEFT_OUT; a shared node is converted once."""
        node = self._substitutes.get(id(node), node)
        if type(node) in {type(None), bool, float, str}:
            return node
        if type(node) is int:
            return node if _is_writable_int(node) else self._leave_out(node, place)
        if id(node) in self._results:
            result = self._results[id(node)][1]
            return self._leave_out(node, place) if result is _LEFT_OUT else result
        if depth > _MAX_DEPTH:
            return self._leave_out(node, place, "nested too deeply")
        # Until it is converted a node counts as left out: this ends a cycle.
        self._results[id(node)] = (node, _LEFT_OUT)
        result = self._convert_new_node(node, place, depth)
        self._results[id(node)] = (node, result)
        return result

    def _convert_new_node(self, node: Any, place: str, depth: int) -> Any:
        converters: dict[type, NodeConverter] = {
            dict: self._convert_pairs,
            list: self._convert_items,
            tuple: self._convert_tuple,
            SetMembers: self._convert_set,
            bytes: lambda node, *_: _encode_bytes(node),
            bytearray: lambda node, *_: UnresolvedObject(_BYTEARRAY, (_encode_bytes(node),)),
            GlobalName: self._convert_global,
            UnresolvedObject: self._convert_object,
            PersistentReference: self._convert_storage,
        }
        convert = converters.get(type(node))
        return convert(node, place, depth) if convert else self._leave_out(node, place)

    def _convert_tuple(self, node: Any, place: str, depth: int) -> Any:
        items = self._convert_items(node, place, depth)
        return _LEFT_OUT if items is _LEFT_OUT else tuple(items)

    def _convert_global(self, node: GlobalName, place: str, depth: int) -> Any:  # noqa: ARG002
        is_safe = is_torch_constant(node) and resolve_name(node) in SAFE_GLOBALS
        return node if is_safe or self._is_kept_as_is(node) else self._leave_out(node, place)

    def _convert_storage(self, node: PersistentReference, place: str, depth: int) -> Any:  # noqa: ARG002
        """Return a storage that no tensor has, on the CPU: the restricted unpickler makes it."""
        if list_safe_parts(node) is None or any(
            list_safe_parts(part) is None for part in node.persistent_id
        ):
            return self._leave_out(node, place)
        if not self._keeps_unknown:
            node.persistent_id = _put_on_cpu(node.persistent_id)
        return node

    def _convert_pairs(self, pairs: dict[Any, Any], place: str, depth: int) -> dict[Any, Any]:
        """Return the pairs whose key and value have a plain form; the others are noted."""
        result: dict[Any, Any] = {}
        for name, key, child in iter_named_pairs(pairs):
            child_place = join_key(place, name)
            if self._is_stripped(child_place):
                continue
            note_count = len(self.changes)
            plain_key = self._convert_key(key, place, depth)
            is_taken = plain_key != key and (plain_key in pairs or plain_key in result)
            if plain_key is _LEFT_OUT or is_taken:
                self.changes[note_count:] = []
                self._leave_out(child, child_place, f"its key is a {describe_class(key)}")
                continue
            value = self.convert(child, child_place, depth + 1)
            if value is not _LEFT_OUT:
                result[plain_key] = value
        return result

    def _convert_key(self, key: Any, place: str, depth: int) -> Any:
        """Return the plain form of a key, or _LEFT_OUT if it has none that can be a key."""
        plain_key = self.convert(key, f"a key of {place or '.'}", depth + 1)
        return plain_key if _is_hashable(plain_key) else _LEFT_OUT

    def _convert_items(self, items: Any, place: str, depth: int) -> Any:
        """Return the items, or _LEFT_OUT if one of them is: the others would change places."""
        note_count = len(self.changes)
        results = [
            _LEFT_OUT
            if self._is_stripped(join_key(place, str(index)))
            else self.convert(item, join_key(place, str(index)), depth + 1)
            for index, item in enumerate(items)
        ]
        if not any(result is _LEFT_OUT for result in results):
            return results
        is_asked = any(self._is_stripped(join_key(place, str(n))) for n in range(len(results)))
        self.changes[note_count:] = []
        return _LEFT_OUT if is_asked else self._leave_out(items, place)

    def _convert_set(self, items: Any, place: str, depth: int, *, is_frozen: bool = False) -> Any:
        members = self._convert_items(items, place, depth)
        if members is _LEFT_OUT:
            return _LEFT_OUT
        if is_frozen or getattr(items, "is_frozen", False):
            self.changes.append(TreeChange(place, "a frozenset", "set"))
        return UnresolvedObject(_SET, (members,))

    def _convert_object(self, node: UnresolvedObject, place: str, depth: int) -> Any:
        if self._is_safe_tensor(node) or self._is_kept_as_is(node):
            return node
        tensor = self._convert_tensor(node, place)
        if tensor is not None:
            return tensor
        content = read_bytes(node)
        if content is not None:
            return _encode_bytes(content)
        if get_callee(node) in _MAPPINGS:
            return self._convert_mapping(node, place, depth)
        if get_callee(node) in _SETS | PLAIN_CALLS and not (node.state or node.pairs):
            return self._convert_plain_call(node, place, depth)
        return self._convert_unknown_object(node, place, depth)

    def _convert_tensor(self, node: UnresolvedObject, place: str) -> Any | None:
        """Return the tensor of a subclass without its class, or a new node; None for no tensor."""
        plain_tensor = unwrap_subclass(node)
        if plain_tensor is not None and self._is_safe_tensor(plain_tensor):
            self._note_attributes(node, place)
            return plain_tensor
        array = read_array(node)
        description = self._tensors.get(place) or array
        tensor = None if description is None else self._build_tensor(description)
        if tensor is not None:
            if array is not None:
                self.changes.append(TreeChange(place or ".", "a NumPy array", "tensor"))
            self._note_attributes(node, place)
        return tensor

    def _note_attributes(self, node: UnresolvedObject, place: str) -> None:
        """Note what a tensor has besides its elements: the class of a subclass, and attributes."""
        if get_callee(node) not in ATTRIBUTE_CALLS or len(node.args) != 4:
            return
        cls, attributes = node.args[1], node.args[3]
        if type(cls) is GlobalName and resolve_name(cls) not in TENSOR_CLASSES:
            self.changes.append(TreeChange(place or ".", cls.qualified_name, "tensor"))
        if attributes:
            self.changes.append(TreeChange(f"{place} (attributes)", describe_node(attributes)))

    def _convert_plain_call(self, node: UnresolvedObject, place: str, depth: int) -> Any:
        """Return a set, or the call of a class that is allowed, with plain arguments."""
        if get_callee(node) in _SETS:
            members = node.args[0] if node.args else []
            if type(members) is not list or len(node.args) > 1:
                return self._leave_out(node, place)
            is_frozen = get_callee(node) == _FROZENSET
            return self._convert_set(members, place, depth, is_frozen=is_frozen)
        args = self._convert_items(node.args, place, depth)
        if args is _LEFT_OUT or node.kwargs or node.items:
            return self._leave_out(node, place) if args is not _LEFT_OUT else _LEFT_OUT
        return UnresolvedObject(node.func, tuple(args))

    def _convert_mapping(self, node: UnresolvedObject, place: str, depth: int) -> Any:
        arguments = node.args[1:] if get_callee(node) != ORDERED_DICT else node.args
        pairs = {**read_pairs_argument(arguments), **(node.pairs or {})}
        plain_pairs = self._convert_pairs(pairs, place, depth)
        if get_callee(node) != ORDERED_DICT:
            self.changes.append(TreeChange(place, "a defaultdict", "dict"))
            return plain_pairs
        mapping = UnresolvedObject(_NEW_ORDERED_DICT, ())
        mapping.pairs = plain_pairs
        if type(node.state) is dict:
            state = self._convert_pairs(node.state, place, depth)
            mapping.state = state or None
        return mapping

    def _convert_unknown_object(self, node: UnresolvedObject, place: str, depth: int) -> Any:
        """Return number, text, dict or list in the place of an object that has nothing else."""
        number = read_scalar(node)
        value = convert_simple_object(node) if number is None else number
        if value is not NOT_PLAIN:
            self._record_change(node, place, type(value).__name__)
            return value
        contents = [c for c in (node.pairs, node.state, node.items) if c]
        is_object = type(node.func) in {GlobalName, NewObjClass} and not node.args
        has_one_content = len(contents) == 1 and type(contents[0]) in {dict, list}
        if not (is_object and has_one_content and not node.kwargs) or is_module(contents[0]):
            return self._leave_out(node, place)
        if classify_class(node) is Safety.DANGEROUS:
            return self._leave_out(node, place)
        self._record_change(node, place, type(contents[0]).__name__)
        return self.convert(contents[0], place, depth + 1)

    def _is_safe_tensor(self, node: UnresolvedObject) -> bool:
        """Whether a node is a tensor that the restricted unpickler makes; its device is dropped."""
        storages = find_safe_storages(node, self._substitutes)
        if storages is None:
            return False
        if not self._keeps_unknown:
            for storage in storages:
                storage.persistent_id = _put_on_cpu(storage.persistent_id)
        return True

    def _is_kept_as_is(self, node: Any) -> bool:
        """Whether a node of a class that is not known to act is kept with all that is below it."""
        return self._keeps_unknown and not names_dangerous(node, self._substitutes)

    def _leave_out(self, node: Any, place: str, reason: str = "") -> Any:
        self._record_change(node, place, "", reason)
        return _LEFT_OUT

    def _record_change(self, node: Any, place: str, after: str, reason: str = "") -> None:
        before = reason or describe_class(node)
        self.changes.append(TreeChange(place or ".", before, after))


def _put_on_cpu(identifier: Any) -> Any:
    """Return a storage's persistent id with the device "cpu"."""
    if type(identifier) is tuple and len(identifier) >= 5:
        return (*identifier[:3], _CPU, *identifier[4:])
    return identifier


def _is_hashable(node: Any) -> bool:
    """Whether a plain node is hashable, and so is what torch.load makes of it."""
    if type(node) is tuple:
        return all(map(_is_hashable, node))
    is_mutable = type(node) is UnresolvedObject and get_callee(node) in _MUTABLE_CALLS
    return not (is_mutable or isinstance(node, dict | list))


def _is_writable_int(number: int) -> bool:
    return number.bit_length() // 8 + 1 <= _MAX_INT_BYTES


def _encode_bytes(content: bytes | bytearray) -> UnresolvedObject:
    """Return the call by which pickles of protocol 2 hold bytes."""
    return UnresolvedObject(_ENCODE, (content.decode("latin-1"), "latin1"))
