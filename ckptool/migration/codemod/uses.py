"""An attribute that is to be registered -> what changes where it is read, or why it cannot."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptool.migration.codemod.assignments import (
    CONSTRUCTORS,
    AttributeBinding,
    Scope,
    enter_scope,
    get_root,
)
from ckptool.migration.codemod.attribute_fault import (
    CONTAINER_KINDS,
    AttributeFault,
    AttributeUses,
    ContainerForm,
    FaultKind,
    UseEdit,
)
from ckptool.migration.codemod.computed_names import may_be_name
from ckptool.migration.codemod.project_files import ProjectFiles
from ckptool.modules.assignment_locations import format_location
from ckptool.modules.source.attribute_writes import get_called_name

_KNOWN_METHODS: Final = {
    (FaultKind.MODULES, ContainerForm.LIST): {"append", "extend", "insert", "pop"},
    (FaultKind.MODULES, ContainerForm.DICT): {"keys", "values", "items", "pop", "clear", "update"},
    (FaultKind.PARAMETERS, ContainerForm.LIST): {"append", "extend"},
    (FaultKind.PARAMETERS, ContainerForm.DICT): {"keys", "values", "items", "get", "pop", "clear"},
    (FaultKind.TENSORS, ContainerForm.LIST): set[str](),
    (FaultKind.TENSORS, ContainerForm.DICT): {"keys", "values", "items", "get"},
}
"""Methods of the plain container that torch's container has as well, and that do the same."""
_COLLECTORS: Final = frozenset({"append", "add", "setdefault", "insert"})
_TORCH: Final = frozenset({"torch", "th"})
_NUMPY: Final = frozenset({"np", "numpy"})
_CHECKS: Final = frozenset({"hasattr", "getattr"})
_STATE_METHODS: Final = frozenset({"__getstate__", "__setstate__", "__reduce__", "__reduce_ex__"})


@dataclass(frozen=True, slots=True, eq=False)
class AttributeUse:
    """An expression that reads an attribute of some object, or a local variable for it."""

    path: Path
    node: ast.expr
    parents: tuple[ast.AST, ...]
    """What it is in, the innermost first."""
    scope: Scope
    is_self: bool
    """Whether it is of the module itself, not of another object."""

    @property
    def parent(self) -> ast.AST:
        return self.parents[0]

    @property
    def place(self) -> str:
        return format_location(str(self.path), self.node.lineno)


def examine_uses(
    fault: AttributeFault, statement: AttributeBinding, path: Path, project: ProjectFiles
) -> "AttributeUses | str":
    """Return the edits of uses that the registered object needs, or the use that it cannot serve.

    Args:
        fault: of the attribute.
        statement: its assignment.
        path: file of the statement.
        project: all files in which the attribute may be used.
    """
    edits: list[UseEdit] = []
    unrun: dict[str, None] = {}
    related_classes = project.find_related_classes(path, statement.class_name)
    for file, tree in project.iter_trees(rf"\b{re.escape(fault.attribute)}\b"):
        own_names = {name for f, name in related_classes if f == file}
        if not own_names and not project.may_use_class(file, path, statement.class_name):
            continue
        run_methods = _find_run_methods(tree, own_names)
        for use in _iter_uses(file, tree, fault.attribute):
            is_related = (file, use.scope.class_name) in related_classes
            if not (
                is_related
                if use.is_self
                else project.may_use_class(file, path, statement.class_name)
            ):
                continue
            if isinstance(use.node, ast.Constant):
                reason = _judge_name(use)
            else:
                change = _judge_use(fault, use, project)
                reason = change if isinstance(change, str) else ""
                if isinstance(change, _Replacement):
                    edits.append(_make_edit(change, use, project.get_text(file)))
                function = use.scope.function
                if function is not None and use.is_self and function.name not in run_methods:
                    unrun[f"{function.name}() at {use.place}"] = None
            if reason:
                return f"{reason} at {use.place}"
    return AttributeUses(tuple(edits), tuple(unrun))


def _iter_uses(path: Path, tree: ast.Module, attribute: str) -> Iterator[AttributeUse]:
    """Yield uses of an attribute of any object, of variables for it, and its name as a string."""
    aliases: set[tuple[int, str]] = set()  # (id of the function, name of the variable)
    nodes = [*_iter_nodes(tree, (), Scope())]
    for node, parents, scope in nodes:
        match node:
            case ast.Constant(value=value) if value == attribute:
                yield AttributeUse(path, node, parents, scope, is_self=True)
            case ast.Attribute(value=owner) | ast.Call(args=[owner, *_]) if _reads(
                node, parents[0], scope, attribute
            ):
                is_self = _is_self(owner, scope)
                yield AttributeUse(path, node, parents, scope, is_self)
                alias = _find_alias(node, parents[0])
                if alias and scope.function is not None and is_self:
                    aliases.add((id(scope.function), alias))
    for node, parents, scope in nodes:
        match node:
            case ast.Name(id=name) if (id(scope.function), name) in aliases:
                if not isinstance(node.ctx, ast.Load) and not _is_extended(node, parents[0]):
                    continue
                yield AttributeUse(path, node, parents, scope, is_self=True)


def _reads(node: ast.expr, parent: ast.AST, scope: Scope, attribute: str) -> bool:
    """Whether it reads the attribute: `self.mask`, or getattr() of it, or of a computed name."""
    match node:
        case ast.Attribute(attr=name) if name == attribute:
            return isinstance(node.ctx, ast.Load) or _is_extended(node, parent)
        case ast.Call(func=ast.Name(id="getattr"), args=[_, name, *_]):
            return may_be_name(name, attribute, scope.function)
        case _:
            return False


def _iter_nodes(
    node: ast.AST, parents: tuple[ast.AST, ...], scope: Scope
) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...], Scope]]:
    yield node, parents, scope
    for name, field in ast.iter_fields(node):
        inner = enter_scope(node, name, scope)
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from _iter_nodes(child, (node, *parents), inner)


def _is_self(owner: ast.expr, scope: Scope) -> bool:
    root = get_root(owner)
    if scope.function is None or not scope.is_method:
        return root == "self"
    parameters = [*scope.function.args.posonlyargs, *scope.function.args.args]
    return root == "self" or (bool(parameters) and root == parameters[0].arg)


def _is_extended(node: ast.expr, parent: ast.AST) -> bool:
    """Whether it is the list in `self.masks += [...]`."""
    return isinstance(parent, ast.AugAssign) and parent.target is node


def _find_alias(node: ast.AST, parent: ast.AST) -> str:
    """Return the variable that is assigned the attribute itself, "" for none."""
    match parent:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if value is node:
            return name
        case ast.NamedExpr(target=ast.Name(id=name), value=value) if value is node:
            return name
        case _:
            return ""


def _find_run_methods(tree: ast.Module, class_names: set[str]) -> set[str]:
    """Return the methods that the constructor and forward call, directly or through others."""
    methods: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in class_names:
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    names = {n.attr for n in ast.walk(method) if isinstance(n, ast.Attribute)}
                    methods[method.name] = methods.get(method.name, set()) | names
    reached = {*CONSTRUCTORS, "forward", "__call__", "_apply", "to", "cuda", "cpu"}
    while new := {n for name in reached & methods.keys() for n in methods[name]} - reached:
        reached |= new
    # A function in a method is run with it, as far as anybody can see.
    inner = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in methods
    }
    return reached | inner


def _judge_name(use: AttributeUse) -> str:
    """Return why the name of the attribute, as a string, is more than hasattr() of it."""
    match use.parent:
        case ast.Call(func=ast.Name(id=name)) if name in _CHECKS:
            return ""
    for parent in use.parents:
        if isinstance(parent, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__slots__" for target in parent.targets
        ):
            return "its class lists it in __slots__"
    function = use.scope.function
    if function is None or not use.scope.class_name:
        return ""
    reads_dict = function.name in _STATE_METHODS or any(
        (isinstance(node, ast.Attribute) and node.attr == "__dict__")
        or (isinstance(node, ast.Name) and node.id == "vars")
        for node in ast.walk(function)
    )
    return "it is looked up in __dict__, where a registered name is not," if reads_dict else ""


@dataclass(frozen=True, slots=True, eq=False)
class _Replacement:
    """A new expression for one that reads the attribute."""

    node: "ast.expr | ast.Assign | ast.AugAssign"
    parts: tuple["str | ast.expr", ...] = ()
    """Text, and expressions whose source is kept."""
    is_frozen: bool = False
    """Whether the node stays, and what it adds to a container is frozen; see UseEdit."""


def _judge_use(  # noqa: PLR0911 - a reason each
    fault: AttributeFault, use: AttributeUse, project: ProjectFiles
) -> "_Replacement | str":
    """Return a replacement, the reason why the use stands in the way, or ""."""
    node, parent = use.node, use.parent
    match parent:
        case ast.Assign(targets=targets, value=value) if value is node:
            if any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets):
                return "it gets a second name"
        case ast.Call() if node in parent.args and get_called_name(parent) in _COLLECTORS:
            return "it is put into a container"
    if fault.kind in CONTAINER_KINDS:
        addition = _find_addition(fault, use)
        if addition is not None and _runs_in_constructor(use.scope, project):
            return _Replacement(addition, is_frozen=True)
        return _judge_container_use(fault, node, parent)
    if fault.kind is FaultKind.ARRAY:
        return _judge_array_use(use)
    if fault.kind is FaultKind.PARAMETER and _is_type_check(parent):
        return "its type is asked for"
    if not _reaches_numpy(use):
        return ""
    if not use.is_self:
        return "a function turns it into a NumPy array, which fails once it is on a GPU,"
    return _Replacement(node, (node, ".cpu()"))


def _find_addition(
    fault: AttributeFault, use: AttributeUse
) -> "ast.Call | ast.Assign | ast.AugAssign | None":
    """Return the statement that adds tensors: `self.masks.append(x)`, `self.masks["a"] = x`."""
    if fault.kind is not FaultKind.TENSORS or len(use.parents) < 3:
        return None
    match use.parents[:3]:
        case ast.AugAssign(op=ast.Add(), target=target) as statement, _, _:
            is_extended = fault.form is ContainerForm.LIST and target is use.node
            return statement if is_extended else None
        case ast.Attribute(attr=name), ast.Call(args=[_], keywords=[]) as call, ast.Expr():
            is_addition = fault.form is ContainerForm.LIST and name in {"append", "extend"}
            return call if is_addition and call.func is use.parent else None
        case ast.Subscript(value=value), ast.Assign(targets=[target]) as statement, _:
            is_item = fault.form is ContainerForm.DICT and value is use.node
            return statement if is_item and target is use.parent else None
        case _:
            return None


def _runs_in_constructor(scope: Scope, project: ProjectFiles) -> bool:
    """Whether only constructors run a function: a container has the same elements ever after."""
    if scope.function is None or not scope.is_method:
        return False
    name = scope.function.name
    callers = {name} if name in CONSTRUCTORS else project.find_callers(name)
    return bool(callers) and callers <= {*CONSTRUCTORS}


def _judge_container_use(  # noqa: PLR0911 - a reason each
    fault: AttributeFault, node: ast.expr, parent: ast.AST
) -> str:
    assert fault.form is not None
    match parent:
        case ast.Call() if _is_type_check(parent):
            return "its type is asked for"
        case ast.Call() if node in parent.args and get_called_name(parent) in {"sum", "dumps"}:
            return f"it is given to {get_called_name(parent)}()"
        case ast.Attribute(attr=name):
            is_known = name in _KNOWN_METHODS[fault.kind, fault.form]
            return "" if is_known else f"it is used with .{name}, which the registered one lacks"
        case ast.AugAssign() if fault.kind is FaultKind.TENSORS:
            return "its elements are added to or replaced"
        case ast.Subscript(ctx=ast.Store() | ast.Del()) if fault.kind is FaultKind.TENSORS:
            return "its elements are replaced"
        case ast.BinOp(left=left, op=ast.Add()) if left is node:
            is_known = (fault.kind, fault.form) == (FaultKind.MODULES, ContainerForm.LIST)
            return "" if is_known else "it is added to another container"
        case ast.BinOp():
            return "it is used in arithmetic of lists"
        case ast.Compare(ops=ops, left=left) if not all(
            isinstance(op, ast.In | ast.NotIn | ast.Is | ast.IsNot) for op in ops
        ):
            return "it is compared"
        case _:
            return ""


def _judge_array_use(  # noqa: C901, PLR0911 - a case each
    use: AttributeUse,
) -> "_Replacement | str":
    node, parent = use.node, use.parent
    match parent:
        case ast.Attribute(attr="shape" | "ndim"):
            return ""
        case ast.Compare(ops=ops) if all(isinstance(op, ast.Is | ast.IsNot) for op in ops):
            return ""
        case ast.Call(func=ast.Name(id="len")):
            return ""
        case ast.Assign(targets=[ast.Name()], value=value) if value is node:
            return ""  # the uses of the variable are looked at
        case ast.Call(args=[first, *others]) if first is node and _is_of(parent.func, _TORCH):
            name, keywords = get_called_name(parent), [k.arg for k in parent.keywords]
            if not use.is_self and name in {"from_numpy", "tensor"}:
                return f"a function gives it to torch.{name}()"
            if name in {"as_tensor", "asarray"}:
                return ""
            if name == "from_numpy" and not others and not keywords:
                return _Replacement(parent, (node,))
            if name == "tensor" and not others and not keywords:
                return _Replacement(parent, (node, ".clone()"))
            if name == "tensor" and not others and {*keywords} <= {"dtype", "device"}:
                parts = [p for k in parent.keywords for p in (f"{k.arg}=", k.value, ", ")]
                return _Replacement(parent, (node, ".to(", *parts, "copy=True)"))
    return "it is used as a NumPy array"


def _reaches_numpy(use: AttributeUse) -> bool:  # noqa: C901, PLR0911 - a case each
    """Whether NumPy gets the tensor, or what methods, operators or items of it give, as it is."""
    current: ast.AST = use.node
    for parent in use.parents:
        match parent:
            case ast.Attribute(attr="cpu"):
                return False
            case ast.Attribute(attr="numpy" | "__array__"):
                return not _is_forced(parent, use.parents)
            case ast.Attribute() | ast.BinOp() | ast.UnaryOp():
                pass
            case ast.Subscript(value=value) if value is current:
                pass
            case ast.Call(func=function, args=[ast.Constant(value="cpu"), *_]) if (
                function is current and get_called_name(parent) == "to"
            ):
                return False
            case ast.Call(func=function) if function is current:
                if get_called_name(parent) in {"item", "tolist", "size", "dim", "numel"}:
                    return False
            case ast.Call(func=function) if current in parent.args:
                if not _is_of(function, _TORCH):
                    return _is_of(function, _NUMPY)
            case _:
                return False
        if isinstance(parent, ast.Attribute) and parent.attr in {"shape", "dtype", "device"}:
            return False
        current = parent
    return False


def _is_forced(method: ast.Attribute, parents: tuple[ast.AST, ...]) -> bool:
    """Whether it is `.numpy(force=True)`, which copies from a GPU."""
    calls = (p for p in parents if isinstance(p, ast.Call) and p.func is method)
    return any(k.arg == "force" for call in calls for k in call.keywords)


def _is_type_check(parent: ast.AST) -> bool:
    return isinstance(parent, ast.Call) and get_called_name(parent) in {"isinstance", "type"}


def _is_of(function: ast.expr, packages: frozenset[str]) -> bool:
    """Whether it is a function of one of the packages: `np.asarray`, `np.linalg.norm`."""
    while isinstance(function, ast.Attribute):
        function = function.value
        if isinstance(function, ast.Name):
            return function.id in packages
    # A name that is imported alone: torch's have names of their own.
    names = {"from_numpy", "as_tensor", "tensor"}
    return packages is _TORCH and isinstance(function, ast.Name) and function.id in names


def _make_edit(change: _Replacement, use: AttributeUse, text: str) -> UseEdit:
    def read(node: ast.AST) -> str:
        return ast.get_source_segment(text, node) or ""

    after = "".join(part if isinstance(part, str) else read(part) for part in change.parts)
    node = change.node
    start = node.lineno, _count_characters(text, node.lineno, node.col_offset)
    end_line, end_offset = node.end_lineno or node.lineno, node.end_col_offset or 0
    end = end_line, _count_characters(text, end_line, end_offset)
    return UseEdit(use.path, start, end, read(node), after, is_frozen=change.is_frozen)


def _count_characters(text: str, line: int, nbytes: int) -> int:
    """Return how many characters the first bytes of a line are, in UTF-8."""
    content = text.split("\n")[line - 1]  # not splitlines(): a form feed ends no line
    return len(content.encode()[:nbytes].decode(errors="replace"))
