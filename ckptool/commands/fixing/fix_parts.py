"""ProvedEdits -> the parts of a FixReport."""

from collections.abc import Sequence
from pathlib import Path

from ckptool.commands.fixing.edit_selection import ProvedEdits
from ckptool.commands.fixing.proofs import TargetProofs
from ckptool.migration.codemod.attribute_fault import EditPlan, FaultKind
from ckptool.migration.codemod.project_files import decode_source
from ckptool.modules.assignment_locations import format_location
from ckptool.reports.fix import ProofReport, RefusedEditReport, SourceEditReport


def report_edits(plan: EditPlan) -> list[SourceEditReport]:
    return [
        SourceEditReport(
            keys=edit.fault.keys,
            codes=edit.fault.codes,
            where=edit.fault.location,
            before=edit.before,
            after=edit.after,
        )
        for edit in plan.edits
    ]


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
    """Return a note for each edit with which eval(), parameters() and to() reach more modules."""
    notes = []
    for edit in edits.plan.edits:
        if edit.fault.kind is not FaultKind.MODULES:
            continue
        is_eval_changed = any(
            proofs.is_eval_changed and edit.fault.location in {f.location for f in target.faults}
            for target, proofs in zip(edits.targets, edits.proofs, strict=True)
        )
        outputs_text = (
            "; after eval() the outputs are no longer those of training mode"
            if is_eval_changed
            else ""
        )
        notes.append(
            f"train(), eval(), to(), parameters() and state_dict() reach `{edit.fault.attribute}` "
            f"({edit.fault.location}) from now on{outputs_text}"
        )
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
