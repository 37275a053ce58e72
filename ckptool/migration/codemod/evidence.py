"""AttributeFault x the project's files -> why its assignment is not edited, or its statement."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ckptool.migration.codemod.assignments import AttributeBinding
from ckptool.migration.codemod.attribute_fault import AttributeFault, ContainerForm, FaultKind
from ckptool.migration.codemod.project_files import ProjectFiles, is_own_source
from ckptool.modules.assignment_locations import format_location

_CONTAINERS: Final = frozenset({FaultKind.TENSORS, FaultKind.PARAMETERS, FaultKind.MODULES})
_CONSTRUCTORS: Final = ("__init__", "__post_init__")
_LIST_BUILDERS: Final = frozenset({"list", "tuple"})
_DICT_BUILDERS: Final = frozenset({"dict", "OrderedDict"})
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
_ARRAY_READERS: Final = frozenset({"as_tensor", "tensor", "from_numpy", "asarray"})


def find_statement(  # noqa: PLR0911 - a reason each
    fault: AttributeFault, path: Path, project: ProjectFiles
) -> "AttributeBinding | str":
    """Return the one assignment that an edit replaces, or the reason why it is not edited."""
    if not fault.line:
        return "the source of its assignment was not found"
    if not is_own_source(path, project.root):
        return f"{fault.owner} belongs to a package outside the project"
    if fault.is_class_attribute:
        return "it is an attribute of the class, which all instances share"
    if fault.shared_with:
        return f"it shares its memory with `{fault.shared_with}`, and a move would part them"
    if fault.form is ContainerForm.OTHER:
        return "it is a nested container, an object, or a container of arrays: not a list or dict"
    if project.find_tree(path) is None:
        return "its file is not Python that can be parsed"
    bindings = [*project.iter_bindings(fault.attribute)]
    statement = next((b for file, b in bindings if file == path and b.line == fault.line), None)
    if statement is None:
        return "the line does not assign an attribute of this name"
    return (
        _judge_statement(statement)
        or _judge_others(fault, statement, path, project)
        or _judge_constructor(statement, project.find_tree(path))
        or _judge_value(fault, statement)
        or _judge_uses(fault, path, project)
        or statement
    )


def _judge_statement(statement: AttributeBinding) -> str:
    if not statement.is_plain:
        return f"it is bound by {statement.form}"
    if not statement.class_name or not statement.is_own:
        return "it is assigned from outside of its class, or in a nested function"
    if statement.branch:
        return f"it is assigned {statement.branch}"
    return ""


def is_changed_in_place(
    fault: AttributeFault, statement: AttributeBinding, path: Path, project: ProjectFiles
) -> bool:
    """Whether `mask *= 2`, somewhere in the project, changes the tensor: then it has to be saved.

    The attribute of a buffer is assigned the same tensor, which a module allows.
    """
    others = _iter_other_bindings(fault, statement, path, project)
    return any(_changes_in_place(fault, binding) for _, binding, _ in others)


def _changes_in_place(fault: AttributeFault, binding: AttributeBinding) -> bool:
    return fault.kind is FaultKind.TENSOR and isinstance(binding.node, ast.AugAssign)


def _iter_other_bindings(
    fault: AttributeFault, statement: AttributeBinding, path: Path, project: ProjectFiles
) -> Iterator[tuple[Path, AttributeBinding, bool]]:
    """Yield (file, binding, whether it is one of its class) that may be of the same attribute."""
    related_classes = project.find_related_classes(path, statement.class_name)
    for file, binding in project.iter_bindings(fault.attribute):
        if binding.node is statement.node and file == path:
            continue
        is_related = (file, binding.class_name) in related_classes
        is_self = binding.is_own or binding.root in {"self", ""}
        if is_self and not is_related:
            continue
        if is_self or project.may_use_class(file, path, statement.class_name):
            yield file, binding, is_self


def _judge_others(
    fault: AttributeFault, statement: AttributeBinding, path: Path, project: ProjectFiles
) -> str:
    """Return a second binding of the attribute that the edit might contradict."""
    for file, binding, is_self in _iter_other_bindings(fault, statement, path, project):
        if _changes_in_place(fault, binding):
            continue
        place = format_location(str(file), binding.line)
        if binding.form.startswith("a property") or binding.form == "a method":
            return f"{binding.form} of its class has its name ({place})"
        if binding.form == "a del statement" or binding.form.startswith(("delattr", "__del")):
            return f"it is deleted at {place}"
        if not is_self:
            return f"an attribute of this name is set from outside at {place}"
        if not binding.is_plain:
            return f"it is also bound by {binding.form} at {place}"
        return f"it is assigned twice, also at {place}"
    return ""


def _judge_constructor(statement: AttributeBinding, tree: ast.Module | None) -> str:
    """Return why the statement may not run once, in a module that is ready to register."""
    function = statement.function
    assert function is not None
    assert tree is not None
    if function.decorator_list:
        return f"it is assigned in {function.name}(), which is decorated"
    if function.name not in _CONSTRUCTORS:
        callers = {
            caller.name
            for caller in ast.walk(tree)
            if isinstance(caller, ast.FunctionDef)
            for node in ast.walk(caller)
            if isinstance(node, ast.Attribute) and node.attr == function.name
        }
        if not callers or not callers <= {*_CONSTRUCTORS}:
            return f"it is assigned in {function.name}(), not in the constructor"
        return ""
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.lineno < statement.line:
            return "the constructor may return before its assignment"
    calls = [
        node.lineno
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "__init__"
    ]
    if not calls or min(calls) > statement.line:
        return "it is assigned before super().__init__()"
    return ""


def _judge_value(fault: AttributeFault, statement: AttributeBinding) -> str:  # noqa: PLR0911 - a reason each
    """Return why the value is not known to be what the new statement needs."""
    value = _get_value(statement)
    if isinstance(value, ast.IfExp):
        return "its value is chosen by a condition"
    if isinstance(value, ast.Attribute) and _is_own_attribute(value, statement):
        return f"it is another name of `self.{value.attr}`"
    if isinstance(value, ast.Lambda | ast.Yield | ast.YieldFrom | ast.Starred):
        return "its value is not a plain expression"
    if fault.kind not in _CONTAINERS:
        return ""
    if isinstance(value, ast.Name):
        function = statement.function
        assert function is not None
        is_used_later = any(
            isinstance(node, ast.Name) and node.id == value.id and node.lineno > statement.line
            for node in ast.walk(function)
        )
        parameters = {
            argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)
        }
        if is_used_later or value.id in parameters:
            return f"the container is also the variable `{value.id}`"
        return ""
    if isinstance(value, ast.Dict | ast.DictComp) and fault.form is ContainerForm.LIST:
        return "it is a dict whose keys are not strings"
    if not _builds_container(value, fault.form):
        noun = "list" if fault.form is ContainerForm.LIST else "dict with string keys"
        return f"its value is not seen to be a new {noun}"
    return ""


def _builds_container(value: ast.expr | None, form: ContainerForm | None) -> bool:
    match value:
        case ast.List() | ast.ListComp() | ast.Tuple():
            return form is ContainerForm.LIST
        case ast.Dict(keys=keys):
            are_strings = all(
                not isinstance(key, ast.Constant) or isinstance(key.value, str) for key in keys
            )
            return form is ContainerForm.DICT and are_strings
        case ast.DictComp():
            return form is ContainerForm.DICT
        case ast.BinOp(left=left, op=ast.Mult() | ast.Add()):
            return form is ContainerForm.LIST and _builds_container(left, form)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            builders = _LIST_BUILDERS if form is ContainerForm.LIST else _DICT_BUILDERS
            return name in builders
        case _:
            return False


def _judge_uses(fault: AttributeFault, path: Path, project: ProjectFiles) -> str:
    """Return a use that the new object would not serve, or that gives it another name."""
    tree = project.find_tree(path)
    assert tree is not None
    parents = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr != fault.attribute:
            continue
        if not isinstance(node.ctx, ast.Load):
            continue
        parent = parents.get(id(node))
        reason = _judge_use(fault, node, parent)
        if reason:
            return f"{reason} at {format_location(str(path), node.lineno)}"
    return ""


def _judge_use(fault: AttributeFault, node: ast.Attribute, parent: ast.AST | None) -> str:
    is_container = fault.kind in _CONTAINERS
    match parent:
        case ast.Assign(targets=targets, value=value) if value is node:
            has_owner = any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
            return "it gets a second name" if has_owner else _judge_array_use(fault, parent)
        case ast.Call() if node in parent.args and _get_called_name(parent) in _COLLECTORS:
            return "it is put into a container"
        case ast.Call(func=ast.Name(id="isinstance")) if is_container:
            return "its type is asked for"
        case ast.Attribute(attr=name) if is_container and fault.form is not None:
            is_known = name in _KNOWN_METHODS[fault.kind, fault.form]
            return "" if is_known else f"it is used with .{name}, which the registered one lacks"
        case ast.Subscript(ctx=ast.Store() | ast.Del()) if fault.kind is FaultKind.TENSORS:
            return "its elements are replaced"
        case _:
            return _judge_array_use(fault, parent)


def _judge_array_use(fault: AttributeFault, parent: ast.AST | None) -> str:
    if fault.kind is not FaultKind.ARRAY:
        return ""
    is_reader = isinstance(parent, ast.Call) and _get_called_name(parent) in _ARRAY_READERS
    is_shape = isinstance(parent, ast.Attribute) and parent.attr in {"shape", "ndim"}
    return "" if is_reader or is_shape else "it is used as a NumPy array"


def _get_called_name(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _get_value(statement: AttributeBinding) -> ast.expr | None:
    node = statement.node
    return node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None


def _is_own_attribute(value: ast.Attribute, statement: AttributeBinding) -> bool:
    return isinstance(value.value, ast.Name) and value.value.id == statement.root


def choose_style(project: ProjectFiles) -> str:
    """Return how the project registers buffers: "nn.Buffer", or "register_buffer"."""
    buffers = project.find_text(r"\bnn\.Buffer\(")
    calls = project.find_text(r"\.register_buffer\(")
    return "nn.Buffer" if buffers > calls else "register_buffer"


def resolve_source(location: str, folder: Path) -> Path:
    """Return the resolved path of the file of a "file:line" that is relative to `folder`."""
    return Path(folder, re.sub(r":\d+$", "", location)).resolve()
