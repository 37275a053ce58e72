"""A class of a file -> the same class with `_version` and the lines that register a hook."""

import libcst as cst

from ckptool.errors import PlanError
from ckptool.migration.codemod.assignments import CONSTRUCTORS
from ckptool.migration.codemod.attribute_fault import HookRegistration


def add_hook_lines(module: cst.Module, registration: HookRegistration) -> cst.Module:
    """Return the module with the class's `_version`, the call in __init__, and the import.

    Raises:
        PlanError: there is no such class, it has no __init__, or it sets `_version` itself.
    """
    editor = _ClassEditor(registration)
    result = module.visit(editor)
    if not editor.is_done:
        raise PlanError(f"class {registration.class_name}: {editor.reason}")
    import_line = cst.parse_statement(registration.import_text, module.config_for_parsing)
    body = [*result.body]
    imports = [
        index
        for index, line in enumerate(body)
        if isinstance(line, cst.SimpleStatementLine)
        and isinstance(line.body[0], cst.Import | cst.ImportFrom)
    ]
    place = imports[-1] + 1 if imports else 0
    return result.with_changes(body=[*body[:place], import_line, *body[place:]])


class _ClassEditor(cst.CSTTransformer):
    def __init__(self, registration: HookRegistration) -> None:
        super().__init__()
        self._registration = registration
        self.is_done = False
        self.reason = "it is not in the file"

    def leave_ClassDef(  # noqa: N802 - libcst calls it
        self, original_node: cst.ClassDef, updated_node: cst.ClassDef
    ) -> cst.ClassDef:
        if original_node.name.value != self._registration.class_name or self.is_done:
            return updated_node
        if not isinstance(updated_node.body, cst.IndentedBlock):
            self.reason = "its body is one line"
            return updated_node
        members = [*updated_node.body.body]
        if any("_version" in _list_names(member) for member in members):
            self.reason = "it sets _version itself"
            return updated_node
        constructor = next((m for m in members if _is_constructor(m)), None)
        if constructor is None:
            self.reason = "it has no __init__ of its own"
            return updated_node
        assert isinstance(constructor, cst.FunctionDef)
        new_constructor = self._add_call(constructor)
        if new_constructor is None:
            self.reason = "its __init__ returns early, and super().__init__() is not a line of it"
            return updated_node
        members[members.index(constructor)] = new_constructor
        first = members[0]
        has_docstring = (
            isinstance(first, cst.SimpleStatementLine)
            and isinstance(first.body[0], cst.Expr)
            and isinstance(first.body[0].value, cst.SimpleString)
        )
        version = cst.parse_statement(f"_version = {self._registration.version}")
        if has_docstring:
            version = version.with_changes(leading_lines=[cst.EmptyLine(indent=False)])
        else:
            members[0] = _begin_with_blank_line(first)
        members.insert(int(has_docstring), version)
        self.is_done = True
        return updated_node.with_changes(body=updated_node.body.with_changes(body=members))

    def _add_call(self, constructor: cst.FunctionDef) -> cst.FunctionDef | None:
        """Return the constructor with the call that registers the hook at its end.

        If it returns early, the call follows super().__init__(); None if there is no such line.
        """
        owner = constructor.params.params[0].name.value
        call_text = f"{self._registration.function}({owner})"
        lines = [*constructor.body.body]
        if isinstance(constructor.body, cst.SimpleStatementSuite):  # def __init__(self): a; b
            expression = cst.Expr(cst.parse_expression(call_text))
            body = constructor.body.with_changes(body=[*lines, expression])
            return constructor.with_changes(body=body)
        place = len(lines)
        if _returns_early(constructor):
            calls = [index for index, line in enumerate(lines) if _calls_super(line)]
            if not calls:
                return None
            place = calls[0] + 1
        lines.insert(place, cst.parse_statement(call_text))
        return constructor.with_changes(body=constructor.body.with_changes(body=lines))


def _begin_with_blank_line(member: cst.BaseStatement) -> cst.BaseStatement:
    """Return a member of a class with an empty line in front of it, if it has none."""
    if not isinstance(member, cst.SimpleStatementLine | cst.BaseCompoundStatement):
        return member
    lines = [*member.leading_lines]
    if lines and lines[0].comment is None:
        return member
    return member.with_changes(leading_lines=[cst.EmptyLine(indent=False), *lines])


def _is_constructor(member: cst.BaseStatement) -> bool:
    return (
        isinstance(member, cst.FunctionDef)
        and member.name.value in CONSTRUCTORS
        and bool(member.params.params)
    )


def _returns_early(constructor: cst.FunctionDef) -> bool:
    """Whether it has a return statement of its own, not only in a function inside."""
    finder = _ReturnFinder()
    constructor.body.visit(finder)
    return finder.is_found


class _ReturnFinder(cst.CSTVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.is_found = False

    def visit_Return(self, node: cst.Return) -> None:  # noqa: N802, ARG002
        self.is_found = True

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:  # noqa: N802, ARG002
        return False


def _calls_super(line: cst.CSTNode) -> bool:
    """Whether a line is `super().__init__(...)`, or calls that of a base class by name."""
    if not isinstance(line, cst.SimpleStatementLine) or not isinstance(line.body[0], cst.Expr):
        return False
    call = line.body[0].value
    return (
        isinstance(call, cst.Call)
        and isinstance(call.func, cst.Attribute)
        and call.func.attr.value == "__init__"
    )


def _list_names(member: cst.BaseStatement) -> list[str]:
    names: list[str] = []
    for statement in member.body if isinstance(member, cst.SimpleStatementLine) else ():
        if isinstance(statement, cst.Assign):
            names += [t.target.value for t in statement.targets if isinstance(t.target, cst.Name)]
        elif isinstance(statement, cst.AnnAssign) and isinstance(statement.target, cst.Name):
            names.append(statement.target.value)
    return names
