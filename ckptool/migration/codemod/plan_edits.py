"""AttributeFaults of a project -> EditPlan: changed files, edits and refusals."""

import ast
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import PlanError
from ckptool.migration.codemod.attribute_fault import (
    COMPUTED_NAME,
    AttributeFault,
    AttributeUses,
    EditedStatement,
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
    find_statements,
    resolve_source,
)
from ckptool.migration.codemod.project_files import ProjectFiles, decode_source
from ckptool.migration.codemod.rewrite import FACTORIES, StatementAddress, rewrite_source
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
    if incomplete := planned.find_incomplete_calls():
        other_faults = [fault for fault in faults if fault not in incomplete]
        plan = plan_edits(other_faults, project, folder, options, hooks)
        new_refused = [RefusedFix(fault, reason) for fault, reason in incomplete.items()]
        return replace(plan, refused=(*plan.refused, *new_refused))
    style = options.style or choose_style(project)
    changes: dict[Path, SourceChange] = {}
    new_texts: dict[tuple[Path, int, str], str] = {}
    for path in planned.paths:
        try:
            content = path.read_bytes()
            text, encoding = decode_source(content)
            rewritten = rewrite_source(
                text,
                planned.statements[path],
                style,
                planned.devices[path],
                (hooks or {}).get(path, []),
                planned.uses[path],
            )
            new_content = rewritten.text.encode(encoding)
        except (PlanError, OSError, UnicodeEncodeError) as error:
            failed = planned.list_faults(path)
            other_faults = [fault for fault in faults if fault not in failed]
            plan = plan_edits(other_faults, project, folder, options, hooks)
            new_refused = [RefusedFix(fault, str(error)) for fault in failed]
            return replace(plan, refused=(*plan.refused, *new_refused))
        changes[path] = SourceChange(path, content, new_content)
        new_texts |= {(path, *address): text for address, text in rewritten.statements.items()}
    edits = tuple(_add_new_texts(edit, new_texts) for edit in planned.edits)
    return EditPlan(changes, edits, tuple(planned.refused))


def _add_new_texts(edit: LineEdit, new_texts: Mapping[tuple[Path, int, str], str]) -> LineEdit:
    statements = (replace(s, after=new_texts[s.path, s.line, s.name]) for s in edit.statements)
    return replace(edit, statements=tuple(statements))


@dataclass
class _PlannedEdits:
    """Edits by file, before any of them is made."""

    edits: list[LineEdit] = field(default_factory=list)
    statements: dict[Path, dict[StatementAddress, AttributeFault]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    uses: dict[Path, list[UseEdit]] = field(default_factory=lambda: defaultdict(list))
    devices: dict[Path, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    refused: list[RefusedFix] = field(default_factory=list)
    _faults: dict[Path, list[AttributeFault]] = field(default_factory=lambda: defaultdict(list))

    @property
    def paths(self) -> list[Path]:
        """Files that change."""
        return [*self._faults]

    def list_faults(self, path: Path) -> list[AttributeFault]:
        """Return the faults whose edits change a file."""
        return self._faults[path]

    def find_incomplete_calls(self) -> dict[AttributeFault, str]:
        """Return the faults of a setattr() in a loop that also sets what is refused, and why."""
        reasons = {refusal.fault.location: refusal for refusal in self.refused}
        return {
            fault: f"its line also sets `{reasons[fault.location].fault.attribute}`: "
            f"{reasons[fault.location].reason}"
            for edit in self.edits
            if any(statement.name == COMPUTED_NAME for statement in edit.statements)
            for fault in edit.faults
            if fault.location in reasons
        }

    def add_fault(self, fault: AttributeFault, path: Path, project: ProjectFiles) -> None:
        """Add what a fault in the file at `path` needs, or its refusal."""
        if _is_created(fault):
            arrays = {e.fault.attribute for e in self.edits if e.path == path and _is_array(e)}
            device = _find_device(fault, path, project, arrays)
            if device.startswith("!"):
                self.refused.append(RefusedFix(fault, device[1:]))
            elif device:
                self.devices[path][fault.line] = device
                statement = EditedStatement(path, fault.line, "", _read_line(path, fault.line))
                self._add_edit(LineEdit(fault, (fault,), (statement,)))
            return
        edit = _plan_edit(fault, path, project)
        if isinstance(edit, str):
            self.refused.append(RefusedFix(fault, edit))
            return
        same = next(
            (n for n, other in enumerate(self.edits) if _share_statement(other, edit)), None
        )
        if same is None:
            self._add_edit(edit)
        elif (merged := _merge_edits(self.edits[same], edit)) is not None:
            self.edits[same] = merged
            self._register(merged)
        else:
            is_computed = edit.statements[0].name == COMPUTED_NAME
            reason = "several statements of its line need an edit: write each on its own line"
            other_reason = "another edit of its statement is planned"
            self.refused.append(RefusedFix(fault, reason if is_computed else other_reason))

    def _add_edit(self, edit: LineEdit) -> None:
        self.edits.append(edit)
        self._register(edit)

    def _register(self, edit: LineEdit) -> None:
        for use in edit.uses.edits:
            if use not in self.uses[use.path]:
                self.uses[use.path].append(use)
        for statement in edit.statements:
            self.statements[statement.path][statement.line, statement.name] = edit.fault
        paths = (*(s.path for s in edit.statements), *(use.path for use in edit.uses.edits))
        for path in dict.fromkeys(paths):
            self._faults[path] = [*dict.fromkeys((*self._faults[path], *edit.faults))]


def _plan_edit(fault: AttributeFault, path: Path, project: ProjectFiles) -> "LineEdit | str":
    """Return the edit of an attribute and of the uses that need one, or why there is none."""
    group = find_statements(fault, path, project)
    if isinstance(group, str):
        return group
    uses = examine_uses(fault, group.main, path, project)
    if isinstance(uses, str):
        return uses
    statements = tuple(
        EditedStatement(
            placed.path,
            placed.binding.line,
            fault.attribute if placed.binding.computed_name is None else COMPUTED_NAME,
            ast.get_source_segment(_read_text(placed.path), placed.binding.node) or "",
        )
        for placed in group.statements
    )
    saved_fault = replace(fault, is_persistent=fault.is_persistent or group.is_saved)
    return LineEdit(
        saved_fault,
        (fault,),
        statements,
        group.main.class_name,
        uses,
        unseen=group.list_unseen(),
        assumed=tuple(placed.place for placed in group.assumed),
        left=tuple(placed.place for placed in group.left),
    )


def _share_statement(first: LineEdit, other: LineEdit) -> bool:
    places = ({(s.path, s.line, s.name) for s in edit.statements} for edit in (first, other))
    return not set.isdisjoint(*places)


def _merge_edits(edit: LineEdit, other: LineEdit) -> LineEdit | None:
    """Return one edit for an attribute in two modules, whose constructors ran other branches.

    Or for two attributes that one setattr() in a loop sets. None if they do not replace the same
    statements in the same way.
    """
    fault, other_fault = edit.fault, other.fault
    if {*edit.statements} != {*other.statements}:
        return None
    if (fault.kind, fault.form) != (other_fault.kind, other_fault.form):
        return None
    return replace(
        edit,
        fault=_merge_two_faults(fault, other_fault),
        faults=(*edit.faults, *other.faults),
        uses=AttributeUses(
            tuple(dict.fromkeys((*edit.uses.edits, *other.uses.edits))),
            tuple(dict.fromkeys((*edit.uses.unrun, *other.uses.unrun))),
        ),
        unseen=tuple(place for place in edit.unseen if place in other.unseen),
    )


def _is_created(fault: AttributeFault) -> bool:
    return fault.kind is FaultKind.CREATED_TENSOR


def _is_array(edit: LineEdit) -> bool:
    return edit.fault.kind is FaultKind.ARRAY


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
        merged[identity] = _merge_two_faults(other, fault)
    return list(merged.values())


def _merge_two_faults(fault: AttributeFault, other: AttributeFault) -> AttributeFault:
    return replace(
        fault,
        keys=tuple(dict.fromkeys((*fault.keys, *other.keys))),
        codes=tuple(dict.fromkeys((*fault.codes, *other.codes))),
        is_persistent=fault.is_persistent or other.is_persistent,
        shared_with=fault.shared_with or other.shared_with,
        form=fault.form if fault.form == other.form else other.form,
    )


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
