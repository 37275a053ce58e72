"""Objects of compiled classes, in which torch packs weights -> the tensors in their state.

torch pickles such an object by what its `__getstate__` returns: tuples and lists of tensors and
numbers. The classes of torch itself keep their weights as tensors there; what another class keeps,
only its own code knows.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from msgspec.structs import replace

from ckptool.formats.pickle.nodes import (
    ATOMIC_TYPES,
    SEQUENCE_TYPES,
    UnresolvedObject,
)
from ckptool.formats.pickle.places import PlaceJoiner
from ckptool.formats.pickle.plain_values import escape_unprintable, format_key
from ckptool.formats.pickle.tensors.tensor_reader import TensorInfoReader
from ckptool.model import Kind, Skipped, StateDict, TensorInfo, join_key

PACKED_PLACE: Final = "packed"
"""Place of the tensors of packed objects, below that of their module."""
COMPILED_CLASSES: Final = "__torch__.torch.classes"
_WEIGHT_CLASSES: Final = frozenset(
    {
        "torch.ScriptObject",
        *(f"quantized.{name}PackedParamsBase" for name in ("Linear", "Conv2d", "Conv3d")),
        "quantized.EmbeddingPackedParamsBase",
        "sparse.LinearPackedParamsBase",
        "rnn.CellParamsBase",
        *(
            f"{library}.{name}OpContext"
            for library in ("xnnpack", "mkldnn", "metal", "vulkan")
            for name in ("Linear", "Conv2d", "TransposeConv2d", "Conv")
        ),
    }
)
"""Classes of torch that keep their weights as tensors, without `__torch__.torch.classes.`.

Eager torch names none of them: it pickles "torch.ScriptObject".
"""
_CONV_NAMES: Final = MappingProxyType({"[1][0]": "config", "[1][1]": "weight", "[2][0]": "bias"})
_PART_NAMES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "quantized.LinearPackedParamsBase": {"[0]": "weight", "[1]": "bias"},
        "quantized.Conv2dPackedParamsBase": _CONV_NAMES,
        "quantized.Conv3dPackedParamsBase": _CONV_NAMES,
        "quantized.EmbeddingPackedParamsBase": {"[1][0]": "weight"},
    }
)
"""Class -> names of the tensors in what its `__getstate__` returns, by their access."""
_MODULE_PREFIXES: Final = ("torch.ao.nn.", "torch.nn.quantized.", "torch.nn.intrinsic.")
"""Where torch has modules that pickle a tuple of numbers and tensors in the place of `__dict__`."""
_MAX_DEPTH: Final = 16


def is_packed_object(node: object) -> bool:
    """Whether a node is an object of a compiled class."""
    return type(node) is UnresolvedObject and (
        node.callee_name == ("torch", "ScriptObject")
        or node.callee_name[0].startswith(COMPILED_CLASSES)
    )


def _unwrap_builder(node: Any) -> Any:
    """Return the list in a call such as `torch.jit._pickle.build_tensorlist(list)`."""
    for _ in range(_MAX_DEPTH):
        if type(node) is not UnresolvedObject or not node.args:
            break
        if node.callee_name[0] != "torch.jit._pickle":
            break
        node = node.args[0]
    return node


class PackedObjectReader:
    """Collects the tensors of packed objects, and names the objects that only their code reads."""

    def __init__(self, tensors: TensorInfoReader) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self.opaque: list[Skipped] = []
        """Objects of classes whose state is not known."""
        self._reader = tensors
        self._places = PlaceJoiner()
        self._visited_ids: set[int] = set()

    def read_object(self, node: UnresolvedObject, path: str) -> None:
        """Read an object at `path`: packed, or a module that pickles no `__dict__`."""
        if id(node) in self._visited_ids:
            return
        self._visited_ids.add(id(node))
        class_name = node.qualified_name.removeprefix(f"{COMPILED_CLASSES}.")
        class_name = class_name.removeprefix("__torch__.")
        names = _PART_NAMES.get(class_name, {})
        tensor_count = len(self.tensors)
        for access, part in self._iter_leaves(node.state):
            if is_packed_object(part):
                self.read_object(part, self._places.join(path, access, ""))
                continue
            name = f".{names[access]}" if access in names else access
            tensor = self._reader.read_tensor(part, self._places.join(path, name, ""))
            if tensor is not None:
                self.tensors[tensor.key] = replace(tensor, kind=Kind.CONTAINER)
        is_known = class_name in _WEIGHT_CLASSES or class_name.startswith(_MODULE_PREFIXES)
        if not is_known or len(self.tensors) == tensor_count:
            shown_class = escape_unprintable(class_name)
            reason = f"only the code of {shown_class} can interpret its state"
            self.opaque.append(Skipped(f"the packed object `{path}`", reason))

    def build_states(self, at: str) -> list[StateDict]:
        """Return the state of the tensors of the module at `at`; none without a tensor."""
        if not self.tensors:
            return []
        return [StateDict(join_key(at, PACKED_PLACE), self.tensors, "tensors", is_packed=True)]

    def _iter_leaves(self, state: Any) -> Iterator[tuple[str, Any]]:
        """Yield (access, node) of the tensors and objects in a state, in its order."""
        todo: list[tuple[str, Any, int]] = [("", state, 0)]
        while todo:
            access, node, depth = todo.pop()
            node = _unwrap_builder(node)
            if type(node) in ATOMIC_TYPES:
                continue
            children: list[tuple[str, Any]] = []
            if isinstance(node, dict):
                children = [(f"[{format_key(k)!r}]", v) for k, v in node.items()]
            elif type(node) in SEQUENCE_TYPES:
                children = [(f"[{index}]", child) for index, child in enumerate(node)]
            else:
                yield access, node
            if depth < _MAX_DEPTH and id(node) not in self._visited_ids:
                if children:
                    self._visited_ids.add(id(node))
                todo.extend(
                    (self._places.join(access, step, ""), child, depth + 1)
                    for step, child in reversed(children)
                )
