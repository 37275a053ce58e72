"""AttributeFault x the project's files -> why it is not edited, or the statements to edit."""

import ast
import re
from pathlib import Path

from ckptool.migration.codemod.assignments import CONSTRUCTORS, AttributeBinding
from ckptool.migration.codemod.attribute_fault import (
    CONTAINER_KINDS,
    AttributeFault,
    ContainerForm,
    FaultKind,
)
from ckptool.migration.codemod.computed_names import has_text, list_names
from ckptool.migration.codemod.project_files import ProjectFiles, is_own_source
from ckptool.migration.codemod.seen_values import (
    TENSOR_OR_NONE,
    SeenValue,
    find_default,
    see_value,
)
from ckptool.migration.codemod.statement_group import (
    PlacedStatement,
    StatementGroup,
    builds_container,
    can_be_split,
    changes_in_place,
    derives_from_itself,
    get_value,
    group_statements,
)
from ckptool.phrases import truncate


def find_statements(  # noqa: C901, PLR0911 - a reason each
    fault: AttributeFault, path: Path, project: ProjectFiles
) -> "StatementGroup | str":
    """Return the assignments that an edit replaces, or the reason why nothing is edited."""
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
    if reason := _judge_form(fault):
        return reason
    if project.find_tree(path) is None:
        return "its file is not Python that can be parsed"
    bindings = project.list_bindings_in(path, fault.attribute, fault.line)
    statement = _find_named(fault, bindings)
    if statement is None:
        return "the line does not assign an attribute of this name"
    main = PlacedStatement(path, statement)
    if reason := _judge_statement(fault, main, project):
        return reason
    group = group_statements(fault, main, project)
    if isinstance(group, str):
        return group
    for placed in group.statements[1:]:
        if reason := _judge_statement(fault, placed, project):
            return f"it is assigned twice, and at {placed.place} {reason}"
    return group


def _judge_form(fault: AttributeFault) -> str:
    """Return why no container of torch has these elements, "" if one does."""
    if fault.form is ContainerForm.OTHER:
        return "it is a nested container, an object, or a container of arrays: not a list or dict"
    if fault.form is ContainerForm.DICT:
        kind = "Module" if fault.kind is FaultKind.MODULES else "Parameter"
        for text in (key.partition("[")[2].removesuffix("]") for key in fault.keys):
            if "." in text or text in {"''", '""'}:
                return f"nn.{kind}Dict does not accept its key {text}: use a name without dots"
    return ""


def _find_named(fault: AttributeFault, bindings: list[AttributeBinding]) -> AttributeBinding | None:
    """Return the assignment at the line of a fault; an earlier one, if that line changes it."""
    named = next((b for b in bindings if b.line == fault.line), None)
    if named is None or not _changes(fault, named):
        return named
    others = [
        b
        for b in bindings
        if b.class_name == named.class_name and b.is_own and not _changes(fault, b)
    ]
    return max(others, key=lambda b: (b.function is named.function, b.line), default=named)


def _changes(fault: AttributeFault, binding: AttributeBinding) -> bool:
    return changes_in_place(fault, binding) or derives_from_itself(fault, binding)


def _judge_statement(fault: AttributeFault, placed: PlacedStatement, project: ProjectFiles) -> str:
    statement = placed.binding
    if not (statement.is_plain or can_be_split(fault, statement)):
        way_out = f': write self.register_buffer("{fault.attribute}", ...)'
        is_unregistered = statement.form == "__setattr__()"
        return f"it is bound by {statement.form}{way_out if is_unregistered else ''}"
    if not statement.class_name or not statement.is_own:
        return "it is assigned from outside of its class, or in a nested function"
    if statement.branch == "in a lambda":
        return "it is assigned in a lambda"
    return _judge_constructor(fault, statement, project) or _judge_value(fault, statement)


def _judge_constructor(
    fault: AttributeFault, statement: AttributeBinding, project: ProjectFiles
) -> str:
    """Return why the statement may run in a module that is not ready to register."""
    function = statement.function
    assert function is not None
    if function.name not in CONSTRUCTORS:
        if not all(map(_keeps_calls, function.decorator_list)):
            return _describe_decorated(fault, statement)
        if fault.kind is FaultKind.TENSOR:
            return ""  # it ran in the constructor, and may register again
        callers = project.find_callers(function.name)
        if not callers or not callers <= {*CONSTRUCTORS}:
            return f"it is assigned in {function.name}(), not in the constructor"
        return ""
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


def _describe_decorated(fault: AttributeFault, statement: AttributeBinding) -> str:
    """Return why a statement of a decorated method is not edited; of a setter, what to write."""
    function = statement.function
    assert function is not None
    is_setter = any(
        isinstance(node, ast.Attribute) and node.attr == "setter"
        for node in function.decorator_list
    )
    if not is_setter:
        return f"it is assigned in {function.name}(), which is decorated"
    options = "" if fault.is_persistent else ", persistent=False"
    advice = (
        f'; write {statement.root}.register_buffer("{fault.attribute}", None{options}) after '
        "super().__init__(): a tensor that the setter assigns is then the buffer"
    )
    return (
        f"it is assigned in the setter of the property `{function.name}`, which any code may call "
        f"with any value{advice if fault.kind is FaultKind.TENSOR else ''}"
    )


def _keeps_calls(decorator: ast.expr) -> bool:
    """Whether a decorator calls the method once for each call: `@torch.no_grad()`."""
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = ast.unparse(function).removeprefix("torch.").removeprefix("jit.")
    return name in {"no_grad", "enable_grad", "unused", "ignore", "export"}


def _judge_value(  # noqa: C901, PLR0911 - a reason each
    fault: AttributeFault, statement: AttributeBinding
) -> str:
    """Return why the value is not known to be what the new statement needs."""
    value = get_value(statement)
    if reason := _judge_name(fault, statement):
        return reason
    if isinstance(value, ast.IfExp) and (reason := _judge_choice(fault, value, statement)):
        return reason
    if isinstance(value, ast.Attribute) and _is_own_attribute(value, statement):
        return f"it is another name of `self.{value.attr}`"
    if fault.kind in {FaultKind.TENSOR, FaultKind.ARRAY}:
        if owner := _find_owner(value, statement):
            return f"its value is {owner}, and loading a checkpoint would write into that"
        if text := _find_number(value, statement):
            return f"its value is an argument that is {text} by default, which is not a tensor"
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
    if not builds_container(value, fault.form):
        noun = "list" if fault.form is ContainerForm.LIST else "dict with string keys"
        return f"its value is not seen to be a new {noun}"
    return ""


def _judge_name(fault: AttributeFault, statement: AttributeBinding) -> str:
    """Return why a setattr() may set other names to something else, "" if its name says enough."""
    name, value = statement.computed_name, get_value(statement)
    if (
        name is None
        or value is None
        or has_text(name)
        or list_names(name, statement.function) is not None
    ):
        return ""
    kind = see_value(value, statement, fault.attribute)
    if kind in TENSOR_OR_NONE - {SeenValue.ARGUMENT} or fault.kind in CONTAINER_KINDS:
        return ""
    text, argument = truncate(ast.unparse(name), 40), truncate(ast.unparse(value), 40)
    return (
        f"its name is computed, and `{argument}` may not be a tensor for other names: where it is, "
        f"write {statement.root}.register_buffer({text}, {argument})"
    )


def _judge_choice(fault: AttributeFault, value: ast.IfExp, statement: AttributeBinding) -> str:
    """Return why `a if condition else b` may not be registered."""
    if fault.kind is not FaultKind.TENSOR:
        return "its value is chosen by a condition"
    if see_value(value, statement, fault.attribute) in TENSOR_OR_NONE:
        return ""
    for arm in (value.body, value.orelse):
        if see_value(arm, statement, fault.attribute) not in TENSOR_OR_NONE:
            text = truncate(ast.unparse(arm), 60)
            return f"its value is chosen by a condition, and `{text}` may not be a tensor"
    return ""


def _find_owner(value: ast.expr | None, statement: AttributeBinding) -> str:
    """Return what has the value as well: "the global `MASK`"; "" if it is the module's own."""
    function = statement.function
    assert function is not None
    match value:
        case ast.Attribute() if not any(isinstance(node, ast.Call) for node in ast.walk(value)):
            return f"`{ast.unparse(value)}` of another object"
        case ast.Name(id=name):
            default = find_default(function, name)
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


def _find_number(value: ast.expr | None, statement: AttributeBinding) -> str:
    """Return the default of an argument that is assigned as it is, "" for None or no default."""
    function = statement.function
    assert function is not None
    if not isinstance(value, ast.Name):
        return ""
    default = find_default(function, value.id)
    is_rebound = any(
        isinstance(node, ast.Name) and node.id == value.id and _is_stored(node)
        for node in ast.walk(function)
    )
    is_number = isinstance(default, ast.Constant) and default.value is not None
    return ast.unparse(default) if default is not None and is_number and not is_rebound else ""


def _is_stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


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
