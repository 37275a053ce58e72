"""Assignment of an attribute -> the others: edited with it, left as they are, or in the way."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

from ckptool.migration.codemod.assignments import (
    CONSTRUCTORS,
    AttributeBinding,
    find_set_value,
    get_root,
)
from ckptool.migration.codemod.attribute_fault import (
    CONTAINER_KINDS,
    AttributeFault,
    ContainerForm,
    FaultKind,
)
from ckptool.migration.codemod.control_flow import exclude_each_other
from ckptool.migration.codemod.project_files import ProjectFiles
from ckptool.migration.codemod.seen_values import TENSOR_OR_NONE, SeenValue, is_random, see_value
from ckptool.modules.assignment_locations import format_location
from ckptool.phrases import truncate

_MOVES: Final = frozenset(
    {"to", "cuda", "cpu", "type", "type_as", "contiguous", "detach", "clone", "float", "double",
     "half", "bfloat16"}
)  # fmt: skip
"""Methods with which `self.mask = self.mask.to(device)` is right for a buffer as well."""
_LIST_BUILDERS: Final = frozenset({"list", "tuple"})
_DICT_BUILDERS: Final = frozenset({"dict", "OrderedDict"})
_RESHAPES: Final = frozenset(
    {"cat", "concat", "expand", "flatten", "new_zeros", "new_ones", "new_full", "permute", "repeat",
     "repeat_interleave", "reshape", "squeeze", "stack", "tile", "transpose", "unsqueeze", "view"}
)  # fmt: skip
"""Methods and functions after which a value may not have the shape that the constructor gave it."""
_REGISTRATIONS: Final = frozenset(
    {"register_buffer()", "register_parameter()", "add_module()", "register_module()"}
)
_VALUE_KINDS: Final = frozenset({FaultKind.TENSOR, FaultKind.ARRAY})


@dataclass(frozen=True, slots=True, eq=False)
class PlacedStatement:
    """An assignment, and the file that it is in."""

    path: Path
    binding: AttributeBinding

    @property
    def place(self) -> str:
        """Location "file:line", relative to the working directory."""
        return format_location(str(self.path), self.binding.line)

    @property
    def is_in_constructor(self) -> bool:
        function = self.binding.function
        return function is not None and function.name in CONSTRUCTORS


@dataclass(frozen=True, slots=True, eq=False)
class StatementGroup:
    """The assignments of an attribute that are edited together."""

    statements: tuple[PlacedStatement, ...]
    """First the one that the finding names, then others that run in the constructor."""
    is_saved: bool = False
    """Whether a file has to have the value although the named statement makes it again."""
    left: tuple[PlacedStatement, ...] = ()
    """Other branches that assign something else, and stay as they are."""
    assumed: tuple[PlacedStatement, ...] = ()
    """Those whose value is an argument, of which nothing says that it is a tensor or None."""

    def list_unseen(self) -> tuple[str, ...]:
        """Return the places of statements in branches that the named one does not show to run."""
        return tuple(
            s.place
            for s in self.statements[1:]
            if s.binding.branch or _exclude(s, self.statements[0])
        )

    @property
    def main(self) -> AttributeBinding:
        """The statement that the finding names."""
        return self.statements[0].binding


def group_statements(
    fault: AttributeFault, main: PlacedStatement, project: ProjectFiles
) -> "StatementGroup | str":
    """Return the statement with the others that have to be edited with it, or what is in the way.

    A name is registered as a buffer only if no plain attribute has it: what may have run before is
    edited too. Later a tensor or None may be assigned to it as before.
    """
    edited, left, is_saved = [main], list[PlacedStatement](), False
    for other in _iter_others_of_all(fault, edited, project):
        if reason := _find_obstacle(fault, other):
            return reason
        match _judge_other(fault, main, other, project):
            case _Treatment.EDITED:
                edited.append(other)
            case _Treatment.CHANGED:
                is_saved = True
            case _Treatment.OTHER:
                left.append(other)
            case _Treatment.KEPT:
                pass
    for other in left:
        if not all(_exclude(other, statement) for statement in edited):
            return _describe_conflict(fault, other)
    is_saved = is_saved or any(is_random(get_value(s.binding)) for s in edited[1:])
    assumed = tuple(
        s for s in edited if fault.kind in _VALUE_KINDS and _see(fault, s) is SeenValue.ARGUMENT
    )
    return StatementGroup(tuple(edited), is_saved=is_saved, left=tuple(left), assumed=assumed)


def _iter_others_of_all(
    fault: AttributeFault, statements: list[PlacedStatement], project: ProjectFiles
) -> Iterator[PlacedStatement]:
    """Yield the other bindings of a list that may grow: an edited base class has other children."""
    visited = {id(statement.binding.node) for statement in statements}
    for statement in statements:
        for other in _iter_others(fault, statement, project):
            if id(other.binding.node) not in visited:
                visited.add(id(other.binding.node))
                yield other


def get_value(statement: AttributeBinding) -> ast.expr | None:
    """Return the right side of an assignment, None for another statement."""
    node = statement.node
    return node.value if isinstance(node, ast.Assign | ast.AnnAssign) else find_set_value(node)


def can_be_split(fault: AttributeFault, statement: AttributeBinding) -> bool:
    """Whether `self.a, b = ...` or `self.a = a = ...` can assign to a variable first.

    The new statement `self.register_buffer("a", a)` follows it on a line of its own.
    """
    node = statement.node
    if fault.kind not in _VALUE_KINDS or not isinstance(node, ast.Assign):
        return False
    match node.targets:
        case [ast.Tuple(elts=parts) | ast.List(elts=parts)]:
            return any(_is_attribute(part, fault.attribute) for part in parts)
        case [_, _, *_] as targets:
            return all(isinstance(target, ast.Name | ast.Attribute) for target in targets)
        case _:
            return False


def changes_in_place(fault: AttributeFault, binding: AttributeBinding) -> bool:
    """Whether it is `mask *= 2`, which assigns the same tensor, or `convs += [...]` of a list."""
    match fault.kind, binding.node:
        case FaultKind.TENSOR, ast.AugAssign():
            return True
        case _, ast.AugAssign(op=ast.Add()) if fault.kind in CONTAINER_KINDS:
            return fault.form is ContainerForm.LIST
        case _:
            return False


def derives_from_itself(fault: AttributeFault, binding: AttributeBinding) -> bool:
    """Whether it is `self.mask = self.mask / 2`: a tensor that is made of the earlier one.

    A registered name is assigned it as a plain attribute is, and stays registered.
    """
    value = get_value(binding)
    if fault.kind is not FaultKind.TENSOR or not binding.is_plain or value is None:
        return False
    reads_itself = any(
        isinstance(node, ast.Attribute)
        and (get_root(node.value), node.attr) == (binding.root, fault.attribute)
        for node in ast.walk(value)
    )
    return reads_itself and see_value(value, binding, fault.attribute) is SeenValue.TENSOR


def _is_attribute(target: ast.expr, attribute: str) -> bool:
    return isinstance(target, ast.Attribute) and target.attr == attribute


def _moves_itself(fault: AttributeFault, binding: AttributeBinding) -> bool:
    """Whether it is `self.mask = self.mask.to(device)`, or `self.mask = fn(self.mask)` of _apply().

    Assigned to a registered name, a tensor takes the place of the buffer.
    """
    if fault.kind is not FaultKind.TENSOR or not binding.is_plain:
        return False
    match get_value(binding):
        case ast.Call(
            func=ast.Attribute(value=ast.Attribute(value=owner, attr=source), attr=name)
        ) if name in _MOVES:
            return (get_root(owner), source) == (binding.root, fault.attribute)
        case ast.Call(func=ast.Name(), args=[ast.Attribute(value=ast.Name(id=root), attr=name)]):
            is_apply = binding.function is not None and binding.function.name == "_apply"
            return is_apply and (root, name) == (binding.root, fault.attribute)
        case _:
            return False


def _iter_others(
    fault: AttributeFault, main: PlacedStatement, project: ProjectFiles
) -> Iterator[PlacedStatement]:
    """Yield the other bindings that may be of the same attribute."""
    class_name = main.binding.class_name
    related_classes = project.find_related_classes(main.path, class_name)
    for file, binding in project.iter_bindings(fault.attribute):
        if binding.node is main.binding.node and file == main.path:
            continue
        is_related = (file, binding.class_name) in related_classes
        if _is_of_self(binding):
            if is_related:
                yield PlacedStatement(file, binding)
        elif project.may_use_class(file, main.path, class_name):
            yield PlacedStatement(file, binding)


def _is_of_self(binding: AttributeBinding) -> bool:
    return binding.is_own or binding.root in {"self", ""}


class _Treatment(Enum):
    """What becomes of another assignment of the attribute."""

    EDITED = auto()
    """It registers the attribute too."""
    KEPT = auto()
    """It does for a registered name what it does for a plain attribute."""
    CHANGED = auto()
    """The same, and it changes the value, so that a file has to have it."""
    OTHER = auto()
    """It may only stay if no call runs it and one that is edited."""


def _find_obstacle(  # noqa: PLR0911 - a reason each
    fault: AttributeFault, other: PlacedStatement
) -> str:
    """Return why a binding that is no assignment of the module itself is in the way."""
    binding = other.binding
    if changes_in_place(fault, binding):
        return ""
    if binding.form.startswith("a property") or binding.form == "a method":
        return f"{binding.form} of its class has its name ({other.place})"
    if binding.form == "a del statement" or binding.form.startswith(("delattr", "__del")):
        return f"it is deleted at {other.place}"
    if not _is_of_self(binding):
        return f"an attribute of this name is set from outside at {other.place}"
    if binding.form in _REGISTRATIONS and other.is_in_constructor:
        return ""
    if binding.computed_name is not None and not other.is_in_constructor:
        return f"it is also bound by {binding.form} at {other.place}"
    is_assignment = binding.is_plain or can_be_split(fault, binding)
    if not is_assignment or not binding.is_own:
        return f"it is also bound by {binding.form} at {other.place}"
    return ""


def _judge_other(
    fault: AttributeFault, main: PlacedStatement, other: PlacedStatement, project: ProjectFiles
) -> _Treatment:
    if changes_in_place(fault, other.binding):
        return _Treatment.KEPT if other.is_in_constructor else _Treatment.CHANGED
    if fault.kind is FaultKind.TENSOR and other.binding.form == "register_buffer()":
        return _Treatment.KEPT  # before or after another registration of the name
    is_early = (
        other.is_in_constructor
        or other.binding.function is main.binding.function
        or _is_called_by_constructor(other.binding, project)
    )
    return _judge_early(fault, other) if is_early else _judge_later(fault, main, other)


def _judge_early(fault: AttributeFault, other: PlacedStatement) -> _Treatment:
    """Judge an assignment that runs in the constructor."""
    if derives_from_itself(fault, other.binding):
        return _Treatment.KEPT  # the name is registered, or a plain attribute, as before
    if fault.kind not in _VALUE_KINDS and _see(fault, other) is SeenValue.NONE:
        return _Treatment.KEPT  # a module takes None for what is registered or not
    return _Treatment.EDITED if _is_seen_alike(fault, other) else _Treatment.OTHER


def _is_seen_alike(fault: AttributeFault, other: PlacedStatement) -> bool:
    """Whether the value is seen to be what the new statement needs."""
    match fault.kind:
        case FaultKind.TENSOR:
            return _see(fault, other) in TENSOR_OR_NONE
        case FaultKind.ARRAY:
            return _see(fault, other) in {SeenValue.ARRAY, SeenValue.NONE}
        case FaultKind.PARAMETER:
            return _see(fault, other) is SeenValue.TENSOR
        case _:
            return builds_container(get_value(other.binding), fault.form)


def _judge_later(
    fault: AttributeFault, main: PlacedStatement, other: PlacedStatement
) -> _Treatment:
    """Judge an assignment in a method that runs after the constructor."""
    if _moves_itself(fault, other.binding):
        return _Treatment.KEPT
    value, own_value = get_value(other.binding), get_value(main.binding)
    kind = _see(fault, other)
    if fault.kind is not FaultKind.TENSOR or value is None or own_value is None:
        return _Treatment.OTHER
    if kind is SeenValue.NONE or ast.dump(value) == ast.dump(own_value):
        return _Treatment.KEPT
    names = {node.attr for node in ast.walk(value) if isinstance(node, ast.Attribute)}
    is_change = derives_from_itself(fault, other.binding) and not names & _RESHAPES
    return _Treatment.CHANGED if is_change else _Treatment.OTHER


def _see(fault: AttributeFault, statement: PlacedStatement) -> SeenValue:
    """Return what the value of an assignment is seen to be; UNKNOWN for one of several targets."""
    binding = statement.binding
    value = get_value(binding)
    match binding.node, value:
        case ast.Assign(targets=[ast.Tuple(elts=targets)]), ast.Tuple(elts=values) if len(
            targets
        ) == len(values):
            pairs = zip(targets, values, strict=True)
            value = next(v for t, v in pairs if _is_attribute(t, fault.attribute))
        case ast.Assign(targets=[ast.Tuple() | ast.List()]), _:
            return SeenValue.UNKNOWN
        case _:
            pass
    return see_value(value, binding, fault.attribute)


def builds_container(value: ast.expr | None, form: ContainerForm | None) -> bool:
    """Whether an expression is seen to be a new list, or dict with string keys."""
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
            return form is ContainerForm.LIST and builds_container(left, form)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            builders = _LIST_BUILDERS if form is ContainerForm.LIST else _DICT_BUILDERS
            return name in builders
        case _:
            return False


def _is_called_by_constructor(binding: AttributeBinding, project: ProjectFiles) -> bool:
    """Whether a constructor calls the method of a statement, directly or through one other."""
    if binding.function is None or binding.function.name == "forward":
        return False
    callers = project.find_callers(binding.function.name)
    outer = {name for caller in callers for name in project.find_callers(caller)}
    return not {*CONSTRUCTORS}.isdisjoint(callers | outer)


def _exclude(statement: PlacedStatement, other: PlacedStatement) -> bool:
    """Whether no call of the constructor runs both statements."""
    function = statement.binding.function
    if function is None or function is not other.binding.function:
        return False
    return exclude_each_other(function, statement.binding.node, other.binding.node)


def _describe_conflict(fault: AttributeFault, other: PlacedStatement) -> str:
    function, value = other.binding.function, get_value(other.binding)
    if function is not None and function.name not in CONSTRUCTORS:
        return (
            f"it is assigned twice, also at {other.place} in {function.name}(), perhaps with a "
            "different shape or type"
        )
    if value is None:
        return f"it is also bound by {other.binding.form} at {other.place}"
    text = truncate(ast.unparse(value), 60)
    noun = fault.form or "tensor"
    return f"it is assigned twice, also at {other.place}, where `{text}` may not be a {noun}"
