"""AttributeFaults of a project -> EditPlan: changed files, edits and refusals."""

import ast
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import PlanError
from ckptool.migration.codemod.attribute_fault import (
    AttributeFault,
    EditPlan,
    FaultKind,
    HookRegistration,
    LineEdit,
    RefusedFix,
    SourceChange,
    UseEdit,
)
from ckptool.migration.codemod.evidence import (
    choose_style,
    find_statement,
    is_changed_in_place,
    resolve_source,
)
from ckptool.migration.codemod.project_files import ProjectFiles, decode_source
from ckptool.migration.codemod.rewrite import FACTORIES, rewrite_source
from ckptool.migration.codemod.uses import examine_uses


class EditOptions(Struct, frozen=True):
    """How edits are made."""

    style: str = ""
    """"register_buffer" or "nn.Buffer"; "" for what the project does."""


def plan_edits(
    faults: Sequence[AttributeFault],
    project: ProjectFiles,
    folder: Path,
    options: EditOptions,
    hooks: "dict[Path, list[HookRegistration]] | None" = None,
) -> EditPlan:
    """Return what is edited for the faults, and what is refused; nothing is written.

    Args:
        faults: of one or more modules.
        project: files of the project.
        folder: that locations of faults are relative to.
        options: how edits are made.
        hooks: file -> classes that register a hook there.
    """
    planned = _PlannedEdits()
    for fault in sorted(faults, key=_is_created):  # an array that is a buffer creates none
        planned.add_fault(fault, resolve_source(fault.location, folder), project)
    style = options.style or choose_style(project)
    changes: dict[Path, SourceChange] = {}
    finished: list[LineEdit] = []
    for path in planned.paths:
        try:
            content = path.read_bytes()
            text, encoding = decode_source(content)
            rewritten = rewrite_source(
                text,
                planned.edits[path],
                style,
                planned.devices[path],
                (hooks or {}).get(path, []),
                planned.uses[path],
            )
            new_content = rewritten.text.encode(encoding)
        except (PlanError, OSError, UnicodeEncodeError) as error:
            failed = planned.list_faults(path)
            kept_faults = [fault for fault in faults if fault not in failed]
            plan = plan_edits(kept_faults, project, folder, options, hooks)
            new_refused = [RefusedFix(fault, str(error)) for fault in failed]
            return replace(plan, refused=(*plan.refused, *new_refused))
        changes[path] = SourceChange(path, content, new_content)
        finished += rewritten.edits
    return EditPlan(changes, tuple(finished), tuple(planned.refused))


@dataclass
class _PlannedEdits:
    """Edits by file, before any of them is made."""

    edits: dict[Path, list[LineEdit]] = field(default_factory=lambda: defaultdict(list))
    uses: dict[Path, list[UseEdit]] = field(default_factory=lambda: defaultdict(list))
    devices: dict[Path, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    refused: list[RefusedFix] = field(default_factory=list)
    _faults: dict[Path, list[AttributeFault]] = field(default_factory=lambda: defaultdict(list))

    @property
    def paths(self) -> list[Path]:
        """Files that change."""
        return [path for path in dict.fromkeys((*self.edits, *self.uses)) if self._faults[path]]

    def list_faults(self, path: Path) -> list[AttributeFault]:
        """Return the faults whose edits change a file."""
        return self._faults[path]

    def add_fault(self, fault: AttributeFault, path: Path, project: ProjectFiles) -> None:
        """Add what a fault in the file at `path` needs, or its refusal."""
        if _is_created(fault):
            arrays = {e.fault.attribute for e in self.edits[path] if _is_array(e.fault)}
            device = _find_device(fault, path, project, arrays)
            if device.startswith("!"):
                self.refused.append(RefusedFix(fault, device[1:]))
            elif device:
                self.devices[path][fault.line] = device
                self._add_edit(fault, LineEdit(fault, path, _read_line(path, fault.line)))
            return
        edit = _plan_edit(fault, path, project)
        if isinstance(edit, str):
            self.refused.append(RefusedFix(fault, edit))
        elif any(other.fault.line == fault.line for other in self.edits[path]):
            self.refused.append(RefusedFix(fault, "another statement of its line is edited"))
        else:
            self._add_edit(fault, edit)

    def _add_edit(self, fault: AttributeFault, edit: LineEdit) -> None:
        self.edits[edit.path].append(edit)
        for use in edit.uses.edits:
            self.uses[use.path].append(use)
        for path in dict.fromkeys((edit.path, *(use.path for use in edit.uses.edits))):
            self._faults[path].append(fault)


def _plan_edit(fault: AttributeFault, path: Path, project: ProjectFiles) -> "LineEdit | str":
    """Return the edit of an assignment and of the uses that need one, or why there is none."""
    statement = find_statement(fault, path, project)
    if isinstance(statement, str):
        return statement
    uses = examine_uses(fault, statement, path, project)
    if isinstance(uses, str):
        return uses
    before = ast.get_source_segment(_read_text(path), statement.node) or ""
    is_saved = fault.is_persistent or is_changed_in_place(fault, statement, path, project)
    saved_fault = replace(fault, is_persistent=is_saved)
    return LineEdit(saved_fault, path, before, statement.class_name, uses=uses)


def _is_created(fault: AttributeFault) -> bool:
    return fault.kind is FaultKind.CREATED_TENSOR


def _is_array(fault: AttributeFault) -> bool:
    return fault.kind is FaultKind.ARRAY


def merge_faults(faults: Sequence[AttributeFault]) -> list[AttributeFault]:
    """Return one fault for each line and attribute: several modules may share a class.

    It is persistent if it is so for one of them. Faults of one line and different kinds stay apart:
    the second is then refused.
    """
    merged: dict[tuple[str, str, str], AttributeFault] = {}
    for fault in faults:
        identity = fault.location or f"{fault.owner}:", fault.attribute, fault.kind
        other = merged.get(identity)
        if other is None:
            merged[identity] = fault
            continue
        merged[identity] = replace(
            other,
            keys=tuple(dict.fromkeys((*other.keys, *fault.keys))),
            codes=tuple(dict.fromkeys((*other.codes, *fault.codes))),
            is_persistent=other.is_persistent or fault.is_persistent,
            shared_with=other.shared_with or fault.shared_with,
            form=other.form if other.form == fault.form else fault.form,
        )
    return list(merged.values())


def _find_device(  # noqa: PLR0911 - a reason each
    fault: AttributeFault, path: Path, project: ProjectFiles, arrays: set[str]
) -> str:
    """Return the expression of the device that forward's call is given, or "!" and a reason.

    "" if the call is given an array, one of `arrays`, that another edit makes a buffer.
    """
    tree = project.find_tree(path)
    if tree is None:
        return "!its file is outside of the project"
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.lineno <= fault.line <= (node.end_lineno or node.lineno)
    ]
    if not functions:
        return "!the line is not in a method"
    function = max(functions, key=lambda node: node.lineno)
    calls = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and node.lineno == fault.line and _get_factory(node)
    ]
    if any(
        isinstance(node, ast.Attribute) and node.attr in arrays
        for call in calls
        for node in ast.walk(call)
    ):
        return ""
    parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    if len(calls) != 1:
        return f"!the line has {len(calls)} calls that create a tensor"
    if any(keyword.arg in {"device", None} for keyword in calls[0].keywords):
        return "!the call has a device or keyword arguments of its own"
    if any(isinstance(argument, ast.Starred) for argument in calls[0].args) or not calls[0].args:
        return "!the arguments of the call are not known"
    if len(parameters) < 2 or parameters[0] != "self":
        return "!the method has no argument to take the device from"
    is_rebound = any(
        isinstance(node, ast.Name) and node.id == parameters[1] and isinstance(node.ctx, ast.Store)
        for node in ast.walk(function)
        if getattr(node, "lineno", 0) < fault.line
    )
    if is_rebound:
        return f"!`{parameters[1]}` is assigned before the call"
    return f"{parameters[1]}.device"


def _get_factory(call: ast.Call) -> str:
    match call.func:
        case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in {"torch", "th"}:
            return name if name in FACTORIES else ""
        case ast.Name(id=name):
            return name if name in FACTORIES else ""
        case _:
            return ""


def _read_text(path: Path) -> str:
    return decode_source(path.read_bytes())[0]


def _read_line(path: Path, line: int) -> str:
    lines = _read_text(path).split("\n")
    return lines[line - 1].strip() if line <= len(lines) else ""
