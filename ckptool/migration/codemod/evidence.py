"""AttributeFault x the project's files -> why its assignment is not edited, or its statement."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ckptool.migration.codemod.assignments import CONSTRUCTORS, AttributeBinding, get_root
from ckptool.migration.codemod.attribute_fault import (
    CONTAINER_KINDS,
    AttributeFault,
    ContainerForm,
    FaultKind,
)
from ckptool.migration.codemod.project_files import ProjectFiles, is_own_source
from ckptool.modules.assignment_locations import format_location

_LIST_BUILDERS: Final = frozenset({"list", "tuple"})
_DICT_BUILDERS: Final = frozenset({"dict", "OrderedDict"})
_MOVES: Final = frozenset(
    {"to", "cuda", "cpu", "type", "type_as", "contiguous", "detach", "clone", "float", "double",
     "half", "bfloat16"}
)  # fmt: skip
"""Methods with which `self.mask = self.mask.to(device)` is right for a buffer as well."""


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
    if fault.requires_grad and fault.kind is FaultKind.TENSOR:
        name = fault.attribute
        return (
            f"it requires gradients: --parameter {name} makes it an nn.Parameter, which is trained"
        )
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
        or _judge_constructor(statement, project)
        or _judge_value(fault, statement)
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


def _moves_itself(fault: AttributeFault, binding: AttributeBinding) -> bool:
    """Whether it is `self.mask = self.mask.to(device)`, or `self.mask = fn(self.mask)` of _apply().

    Assigned to a registered name, a tensor takes the place of the buffer.
    """
    if fault.kind is not FaultKind.TENSOR or not binding.is_plain:
        return False
    match _get_value(binding):
        case ast.Call(
            func=ast.Attribute(value=ast.Attribute(value=owner, attr=source), attr=name)
        ) if name in _MOVES:
            return (get_root(owner), source) == (binding.root, fault.attribute)
        case ast.Call(func=ast.Name(), args=[ast.Attribute(value=ast.Name(id=root), attr=name)]):
            is_apply = binding.function is not None and binding.function.name == "_apply"
            return is_apply and (root, name) == (binding.root, fault.attribute)
        case _:
            return False


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
        if _changes_in_place(fault, binding) or _moves_itself(fault, binding):
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


def _judge_constructor(statement: AttributeBinding, project: ProjectFiles) -> str:
    """Return why the statement may not run once, in a module that is ready to register."""
    function = statement.function
    assert function is not None
    if function.decorator_list:
        return f"it is assigned in {function.name}(), which is decorated"
    if function.name not in CONSTRUCTORS:
        callers = {
            caller.name
            for _, tree in project.iter_trees(rf"\b{re.escape(function.name)}\b")
            for caller in ast.walk(tree)
            if isinstance(caller, ast.FunctionDef)
            for node in ast.walk(caller)
            if isinstance(node, ast.Attribute) and node.attr == function.name
        }
        if not callers or not callers <= {*CONSTRUCTORS}:
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
    if fault.kind in {FaultKind.TENSOR, FaultKind.ARRAY} and (
        owner := _find_owner(value, statement)
    ):
        return f"its value is {owner}, and loading a checkpoint would write into that"
    if isinstance(value, ast.Lambda | ast.Yield | ast.YieldFrom | ast.Starred):
        return "its value is not a plain expression"
    if fault.kind not in CONTAINER_KINDS:
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


def _find_owner(value: ast.expr | None, statement: AttributeBinding) -> str:
    """Return what has the value as well: "the global `MASK`"; "" if it is the module's own."""
    function = statement.function
    assert function is not None
    match value:
        case ast.Attribute():
            return f"`{ast.unparse(value)}` of another object"
        case ast.Name(id=name):
            default = _find_default(function, name)
            if default is not None and not isinstance(default, ast.Constant):
                return f"the default of the argument `{name}`, one tensor for all instances"
            is_local = default is not None or any(
                (isinstance(node, ast.arg) and node.arg == name)
                or (isinstance(node, ast.Name) and node.id == name and _is_stored(node))
                for node in ast.walk(function)
            )
            return "" if is_local else f"the global `{name}`"
        case _:
            return ""


def _is_stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def _find_default(function: "ast.FunctionDef | ast.AsyncFunctionDef", name: str) -> ast.expr | None:
    """Return the default of an argument, None if it has none."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    count = len(arguments.defaults)
    pairs = [
        *zip(positional[len(positional) - count :], arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return next((default for argument, default in pairs if argument.arg == name), None)


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
