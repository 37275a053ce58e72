"""A class of a file -> the same class with `_version` and the lines that register a hook."""

from collections.abc import Sequence

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
        assert isinstance(constructor.body, cst.IndentedBlock)
        owner = constructor.params.params[0].name.value
        call = cst.parse_statement(f"{self._registration.function}({owner})")
        body = constructor.body.with_changes(body=[*constructor.body.body, call])
        members[members.index(constructor)] = constructor.with_changes(body=body)
        first = members[0]
        has_docstring = (
            isinstance(first, cst.SimpleStatementLine)
            and isinstance(first.body[0], cst.Expr)
            and isinstance(first.body[0].value, cst.SimpleString)
        )
        version = cst.parse_statement(f"_version = {self._registration.version}")
        if has_docstring:
            version = version.with_changes(leading_lines=[cst.EmptyLine(indent=False)])
        elif not _begins_with_blank_line(first):
            lines = [cst.EmptyLine(indent=False), *_list_leading_lines(first)]
            members[0] = first.with_changes(leading_lines=lines)
        members.insert(int(has_docstring), version)
        self.is_done = True
        return updated_node.with_changes(body=updated_node.body.with_changes(body=members))


def _list_leading_lines(member: cst.BaseStatement) -> Sequence[cst.EmptyLine]:
    return getattr(member, "leading_lines", ())


def _begins_with_blank_line(member: cst.BaseStatement) -> bool:
    lines = _list_leading_lines(member)
    return len(lines) > 0 and lines[0].comment is None


def _is_constructor(member: cst.BaseStatement) -> bool:
    return (
        isinstance(member, cst.FunctionDef)
        and member.name.value in CONSTRUCTORS
        and isinstance(member.body, cst.IndentedBlock)
        and bool(member.params.params)
    )


def _list_names(member: cst.BaseStatement) -> list[str]:
    names: list[str] = []
    for statement in member.body if isinstance(member, cst.SimpleStatementLine) else ():
        if isinstance(statement, cst.Assign):
            names += [t.target.value for t in statement.targets if isinstance(t.target, cst.Name)]
        elif isinstance(statement, cst.AnnAssign) and isinstance(statement.target, cst.Name):
            names.append(statement.target.value)
    return names
