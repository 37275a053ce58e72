"""Code of a TorchScript archive -> methods that run while it is loaded, and what they call.

torch.jit.load calls `__setstate__` of every object whose class has one. Quantised modules pack
their weights there; any operator could be called, and some write files.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.python_text import parse_module
from ckptool.formats.zip.archive import ZipMember, read_member
from ckptool.model import GlobalUse, Safety

if TYPE_CHECKING:
    from ckptool.formats.torch.archive_records import ArchiveRecords

_MAX_CODE_BYTES: Final = 16 << 20
_LOAD_METHODS: Final = ("__setstate__",)
_PURE_CALL_NAMES: Final = """
    torch.__contains__ torch.__derive_index torch.__getitem__ torch.__is__ torch.__isnot__
    torch.__not__ torch.__range_length torch.append torch.cpu torch.detach torch.dequantize
    torch.dict torch.dim torch.empty torch.eq torch.format torch.gt torch.item torch.keys torch.len
    torch.list torch.lt torch.mul torch.ne torch.requires_grad_ torch.size torch.sub torch.tensor
    torch.to torch.values torch.zeros torch.add torch.ge torch.le torch.div torch.floordiv
    torch.cat torch.clone torch.contiguous torch.ones torch.view torch.reshape torch.t
    torch.transpose torch.unsqueeze torch.squeeze torch.sum torch.quantize_per_tensor
    torch.quantize_per_channel torch.slice torch.select torch.stack torch.split torch.copy_
    annotate unchecked_cast uninitialized isinstance bool int float str len range tuple
    ops.prim.data ops.prim.NumToTensor ops.prim.RaiseException ops.prim.is_cuda ops.prim.device
    ops.prim.dtype
"""
_PURE_CALLS: Final = frozenset(_PURE_CALL_NAMES.split())
"""Operators of serialised code that compute, and nothing else."""
_UNREAD_CODE: Final = b"def __setstate__(:"
_PACKING_NAMESPACES: Final = ("ops.quantized.", "ops.sparse.", "ops.prepacked.", "ops._quantized.")


def find_load_methods(records: "ArchiveRecords") -> Iterator[GlobalUse]:
    """Yield a use for each method that runs at load and does more than compute or pack weights."""
    for name, member in records.items():
        if name.startswith("code/") and name.endswith(".py"):
            yield from _find_in_file(records, name, member)


def _find_in_file(records: "ArchiveRecords", name: str, member: ZipMember) -> Iterator[GlobalUse]:
    member.is_referenced = True
    module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
    data = _read_code(records, member)
    if not any(method.encode() in data for method in _LOAD_METHODS):
        return
    methods = _parse_methods(data.decode("utf-8", "replace"))
    if methods is None:
        yield GlobalUse(module, "__setstate__", Safety.UNKNOWN, f"record {member.name}")
        return
    for class_name, methods_by_name in methods.items():
        for method in _LOAD_METHODS:
            calls = _list_calls(methods_by_name, method)
            unusual = sorted(call for call in calls if not _is_harmless(call))
            if unusual:
                at = f"record {member.name}, which calls {unusual[0]}"
                yield GlobalUse(f"{module}.{class_name}", method, Safety.UNKNOWN, at)


def _read_code(records: "ArchiveRecords", member: ZipMember) -> bytes:
    """Return the code; where it cannot be read, code that has a method that runs at load."""
    if member.nbytes > _MAX_CODE_BYTES:
        return _UNREAD_CODE
    try:
        return read_member(records.source, member, records.limits, _MAX_CODE_BYTES)
    except CorruptCheckpointError:
        return _UNREAD_CODE


def _parse_methods(text: str) -> Mapping[str, Mapping[str, ast.FunctionDef]] | None:
    """Return class -> method -> definition; None if the code cannot be parsed as Python."""
    try:
        tree = parse_module(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return {
        node.name: {
            method.name: method for method in node.body if isinstance(method, ast.FunctionDef)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _list_calls(methods: Mapping[str, ast.FunctionDef], name: str) -> set[str]:
    """Return what a method calls, by itself and through methods of its class."""
    calls: set[str] = set()
    todo, visited = [name], set[str]()
    while todo:
        method = methods.get(todo.pop())
        if method is None or method.name in visited:
            continue
        visited.add(method.name)
        own = f"{method.args.args[0].arg}." if method.args.args else "self."
        for node in ast.walk(method):
            if isinstance(node, ast.Call):
                callee = _format_callee(node.func)
                own_name = callee.removeprefix(own)
                if own_name in methods and own_name != callee:
                    todo.append(own_name)
                else:
                    calls.add(callee)
    return calls


def _format_callee(node: ast.expr) -> str:
    """Return "torch.add" or "self.pack"; "<computed>" for a call on another object."""
    steps: list[str] = []
    while isinstance(node, ast.Attribute):
        steps.insert(0, node.attr)
        node = node.value
    return ".".join((node.id, *steps)) if isinstance(node, ast.Name) else "<computed>"


def _is_harmless(call: str) -> bool:
    return call in _PURE_CALLS or call.startswith(_PACKING_NAMESPACES)
