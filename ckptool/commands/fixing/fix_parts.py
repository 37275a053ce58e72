"""ProvedEdits -> the parts of a FixReport."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from ckptool.commands.fixing.edit_selection import ProvedEdits
from ckptool.commands.fixing.proofs import TargetProofs
from ckptool.migration.codemod.attribute_fault import (
    EditedStatement,
    EditPlan,
    FaultKind,
    LineEdit,
    SourceChange,
)
from ckptool.migration.codemod.project_files import decode_source
from ckptool.modules.assignment_locations import format_location
from ckptool.phrases import join_limited
from ckptool.reports.fix import (
    ProofReport,
    RefusedEditReport,
    ReplacementReport,
    SourceEditReport,
)


def report_edits(plan: EditPlan) -> list[SourceEditReport]:
    replacements = _list_replacements(plan)
    edited_lines = {line for edit in plan.edits for line in _list_lines(edit)}
    return [
        SourceEditReport(
            keys=edit.fault.keys,
            codes=edit.fault.codes,
            where=_locate(edit.statements[0]),
            before="\n".join(statement.before for statement in edit.statements),
            after="\n".join(statement.after for statement in edit.statements),
            also_at=tuple(map(_locate, edit.statements[1:])),
            replacements=_select_replacements(_list_lines(edit), edited_lines, replacements),
        )
        for edit in plan.edits
    ]


def _list_replacements(plan: EditPlan) -> dict[Path, list[ReplacementReport]]:
    """Return the lines of each file that change, in order."""
    return {
        path: [*_iter_replacements(format_path(path), change)]
        for path, change in plan.changes.items()
    }


def _iter_replacements(name: str, change: SourceChange) -> Iterator[ReplacementReport]:
    old_lines, new_lines = (
        decode_source(content)[0].splitlines(keepends=True)
        for content in (change.old_content, change.new_content)
    )
    matcher = SequenceMatcher(None, old_lines, new_lines)
    for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if tag != "equal":
            text = "".join(new_lines[new_start:new_end])
            yield ReplacementReport(
                file=name, start_line=old_start + 1, end_line=old_end, text=text
            )


def _list_lines(edit: LineEdit) -> set[tuple[Path, int]]:
    """Return (file, line) of the statement and of the uses that an edit replaces."""
    lines = {
        (statement.path, statement.line + n)
        for statement in edit.statements
        for n in range(statement.before.count("\n") + 1)
    }
    return lines | {
        (use.path, line) for use in edit.uses.edits for line in range(use.start[0], use.end[0] + 1)
    }


def _locate(statement: EditedStatement) -> str:
    return format_location(str(statement.path), statement.line)


def _select_replacements(
    lines: set[tuple[Path, int]],
    edited_lines: set[tuple[Path, int]],
    replacements: dict[Path, list[ReplacementReport]],
) -> tuple[ReplacementReport, ...]:
    """Return the replacements of lines, and those in their files that are of no edit: imports."""
    selected = []
    for path in dict.fromkeys(path for path, _ in sorted(lines)):
        for replacement in replacements.get(path, ()):
            numbers = range(replacement.start_line, replacement.end_line + 1)
            replaced = {(path, number) for number in numbers}
            if replaced & lines or not replaced & edited_lines:
                selected.append(replacement)
    return tuple(selected)


def report_refusals(plan: EditPlan) -> list[RefusedEditReport]:
    return [
        RefusedEditReport(
            keys=refusal.fault.keys,
            codes=refusal.fault.codes,
            where=refusal.fault.location,
            reason=refusal.reason,
        )
        for refusal in plan.refused
    ]


def report_proofs(proofs: Sequence[TargetProofs]) -> list[ProofReport]:
    return [
        ProofReport(name=p.name, module=p.module, result=p.result, reason=p.reason)
        for target_proofs in proofs
        for p in target_proofs.proofs
    ]


def describe_reached_modules(edits: ProvedEdits) -> list[str]:
    """Return what changes where modules of a plain list or dict are registered."""
    reached = [e.fault for e in edits.plan.edits if e.fault.kind is FaultKind.MODULES]
    if not reached:
        return []
    names = join_limited([f"`{f.attribute}` ({f.location})" for f in reached], 5)
    notes = [f"from now on train(), eval(), to(), parameters() and state_dict() reach {names}"]
    changed = [
        target.label
        for target, proofs in zip(edits.targets, edits.proofs, strict=True)
        if proofs.is_eval_changed
    ]
    if changed:
        notes.append(
            f"after eval() the outputs of {join_limited(changed, 5)} differ from before: modules "
            "in plain containers stayed in training mode"
        )
    return notes


def describe_unrun_uses(edits: ProvedEdits) -> list[str]:
    """Return a note on uses of edited attributes in methods that forward does not call."""
    uses = [f"`{e.fault.attribute}` in {use}" for e in edits.plan.edits for use in e.uses.unrun]
    if not uses:
        return []
    return [f"not checked, because forward does not call it: {join_limited(uses, 5)}"]


def describe_branches(edits: ProvedEdits) -> list[str]:
    """Return notes on statements of branches that no module at hand is seen to run."""
    unseen = [f"`{e.fault.attribute}` at {place}" for e in edits.plan.edits for place in e.unseen]
    left = [f"`{e.fault.attribute}` at {place}" for e in edits.plan.edits for place in e.left]
    assumed = [f"`{e.fault.attribute}` at {place}" for e in edits.plan.edits for place in e.assumed]
    notes = []
    if assumed:
        notes.append(
            f"assumed: the argument that is assigned is a tensor or None: "
            f"{join_limited(assumed, 5)}; register_buffer() raises TypeError for anything else"
        )
    if unseen:
        notes.append(
            f"not seen to run, and not checked then: {join_limited(unseen, 5)}; an entry of the "
            "configuration with other kwargs builds another branch"
        )
    if left:
        notes.append(f"stays as it is, in a branch of its own: {join_limited(left, 5)}")
    return notes


def format_diffs(plan: EditPlan) -> str:
    """Return the unified diff of all files."""
    from ckptool.migration.codemod.rewrite import format_diff

    return "".join(
        format_diff(
            format_path(path),
            decode_source(change.old_content)[0],
            decode_source(change.new_content)[0],
        )
        for path, change in plan.changes.items()
    )


def format_path(path: Path) -> str:
    """Return the path relative to the working directory, if it is below."""
    return format_location(str(path), 0).removesuffix(":0")
