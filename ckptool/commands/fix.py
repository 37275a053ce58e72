"""Findings about a module -> edits of its source, proved before they are written."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.fixing.old_files import build_old_file_hooks
from ckptool.commands.fixing.project_scope import ProjectScope, find_project
from ckptool.commands.fixing.proofs import FAILED, UNPROVED, FixTarget, TargetProofs, prove_edits
from ckptool.commands.sources.configured_models import list_configured_targets
from ckptool.commands.target import ModuleOptions, ModuleTarget, name_object
from ckptool.commands.worker.fix_requests import RunModule
from ckptool.commands.worker.requests import DescribeModule
from ckptool.commands.worker.worker import get_worker
from ckptool.config import ProjectConfig, load_config
from ckptool.errors import UsageError
from ckptool.migration.codemod.attribute_fault import AttributeFault, EditPlan, SourceChange
from ckptool.migration.codemod.project_files import ProjectFiles, decode_source
from ckptool.model import Skipped
from ckptool.modules.assignment_locations import format_location
from ckptool.phrases import join_limited, quote_code
from ckptool.policy import Policy, judge
from ckptool.reports.fix import (
    FixReport,
    ProofReport,
    RefusedEditReport,
    SourceEditReport,
    build_fix_report,
)
from ckptool.rules import Finding, run_rules
from ckptool.rules.fixes.faults import collect_created_tensors, collect_faults

if TYPE_CHECKING:
    from torch import nn


def fix(
    module: "str | Callable[..., nn.Module] | None" = None,
    *,
    kwargs: Mapping[str, object] | None = None,
    loader: str | None = None,
    inputs: object = None,
    write: bool = False,
    style: str | None = None,
    parameters: Sequence[str] = (),
    keep_old_files: bool = False,
    allow_unproved: bool = False,
    policy: Policy | None = None,
    config: ProjectConfig | None = None,
) -> FixReport:
    """Edit the source of a module so that its state is registered; show the diff, or write it.

    An edit is written only if a copy of the project with it builds, is free of the findings,
    computes the same and loads its old checkpoints.

    Args:
        module: "package.module:Name", or a class or function that can be imported; None takes all
            modules of the configuration.
        kwargs: constructor arguments.
        loader: framework whose loader loads it; None is load_state_dict.
        inputs: arguments of forward, as for `verify`: without them nothing shows that the outputs
            are the same.
        write: write the edited files.
        style: "register_buffer" or "nn.Buffer"; None takes what the project does.
        parameters: names of tensors that become an nn.Parameter.
        keep_old_files: add a hook with which old checkpoints load strictly, and its test.
        allow_unproved: write although a proof could not be made.
        policy: reported findings, which are the ones that are fixed.
        config: the configuration; None takes the nearest one from the current directory up.

    Raises:
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or libcst is not installed.
        WriteError: a file could not be written; no file is changed then.
    """
    _require_libcst()
    scope = find_project(config or load_config(Path.cwd()))
    options = ModuleOptions(module, kwargs, loader=loader)
    with tempfile.TemporaryDirectory(prefix="ckptool-fix-") as folder:
        examined = [
            _examine_target(
                target,
                inputs,
                policy or Policy(),
                parameters,
                Path(folder, f"before{n}.pth"),
                scope,
            )
            for n, target in enumerate(_list_targets(options, scope.config))
        ]
        run = _FixRun(
            scope, examined, policy or Policy(), style or "", keep_old_files=keep_old_files
        )
        return run.finish(write=write, allow_unproved=allow_unproved)


class _ExaminedTarget(Struct, frozen=True):
    """A module as it is, and what the rules find in it."""

    fix_target: FixTarget
    findings: tuple[Finding, ...]
    """All of them, before the policy."""


class _FixRun(Struct, frozen=True):
    """Examined modules -> edits, proofs, files and the report."""

    scope: ProjectScope
    examined: Sequence[_ExaminedTarget]
    policy: Policy
    style: str
    keep_old_files: bool

    def finish(self, *, write: bool, allow_unproved: bool) -> FixReport:
        from ckptool.migration.codemod.plan_edits import EditOptions, merge_faults, plan_edits

        project = ProjectFiles(self.scope.root)
        faults = merge_faults([f for e in self.examined for f in e.fix_target.faults])
        options = EditOptions(self.style)
        plan = plan_edits(faults, project, self.scope.folder, options)
        targets = _select_fixed(self.examined, plan)
        proofs = self._prove(targets, plan, {})
        notes = _describe_old_files(targets, proofs)
        new_files: dict[Path, bytes] = {}
        if self.keep_old_files and plan.edits and not _has_failed(proofs, of="builds"):
            hooks = build_old_file_hooks(plan, targets, proofs)
            notes, new_files = hooks.notes, hooks.files
            if hooks.files:
                plan = plan_edits(faults, project, self.scope.folder, options, hooks.registrations)
                targets = [_add_saved_file(target) for target in targets]
                proofs = self._prove(targets, plan, new_files)
        block = _find_block(proofs, allow_unproved=allow_unproved)
        is_written = write and bool(plan.edits) and not block
        if is_written:
            from ckptool.migration.codemod.write_files import write_changes

            additions = [SourceChange(path, b"", content) for path, content in new_files.items()]
            write_changes([*plan.changes.values(), *additions], self.scope.root)
        findings = [f for e in self.examined for f in e.findings]
        if is_written:
            findings = [f for target_proofs in proofs for f in target_proofs.findings]
        skipped = [Skipped("writes in Python files beyond the first 5,000", "the project is large")]
        return build_fix_report(
            [e.fix_target.label for e in self.examined],
            judge(findings, self.policy),
            _report_edits(plan),
            _report_refusals(plan),
            [
                ProofReport(name=p.name, module=p.module, result=p.result, reason=p.reason)
                for target_proofs in proofs
                for p in target_proofs.proofs
            ],
            diff=_format_diffs(plan),
            new_files=[_format_path(path) for path in new_files],
            block=block if write or _has_failed(proofs) else "",
            is_written=is_written,
            is_asked=write,
            notes=notes,
            skipped=skipped if project.is_cut else (),
        )

    def _prove(
        self, targets: Sequence[FixTarget], plan: EditPlan, new_files: Mapping[Path, bytes]
    ) -> list[TargetProofs]:
        if not plan.edits:
            return [TargetProofs(()) for _ in targets]
        return prove_edits(targets, plan, new_files, self.scope, self.policy)


def _require_libcst() -> None:
    try:
        import libcst  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "fix edits source with libcst, which is not installed: pip install 'ckptool[fix]'"
        ) from error


def _list_targets(options: ModuleOptions, config: ProjectConfig) -> list[ModuleTarget]:
    """Return the named module, else those of the configuration.

    Raises:
        UsageError: there is none, or a live module was given.
    """
    target = options.target
    if target is None:
        targets = [configured for _, configured in list_configured_targets(config)]
        for configured in targets:
            config.announce_code(str(configured.module))
        if not targets:
            raise UsageError(
                "no module was given: use -m package.module:Name, or [[tool.ckptool.models]] of "
                "pyproject.toml or ckptool.toml (ckptool init writes it)"
            )
        return targets
    name = target.module if isinstance(target.module, str) else name_object(target.module)
    if target.is_live or ":" not in name:
        raise UsageError(
            "fix builds the module again from its edited source: give its name, "
            "'package.module:Name', or a class that can be imported"
        )
    return [replace(target, module=name)]


def _examine_target(
    target: ModuleTarget,
    inputs: object,
    policy: Policy,
    parameters: Sequence[str],
    saved_before: Path,
    scope: ProjectScope,
) -> _ExaminedTarget:
    worker = get_worker()
    given_inputs = inputs if inputs is not None else target.inputs or None
    facts = worker.ask(DescribeModule(target, inputs=given_inputs))
    run = worker.ask(RunModule(target, given_inputs, save_to=saved_before))
    module_info = facts.apply_effects()
    findings = tuple(run_rules([module_info, *facts.forward_effects]))
    reported = judge(findings, policy).findings
    faults = collect_faults(reported, module_info, parameters)
    faults += collect_created_tensors(run.device_mismatches)
    fix_target = FixTarget(
        target,
        facts,
        run,
        tuple(faults),
        scope.list_checkpoints(target),
        given_inputs,
        saved_before,
    )
    return _ExaminedTarget(fix_target, findings)


def _select_fixed(examined: Sequence[_ExaminedTarget], plan: EditPlan) -> list[FixTarget]:
    """Return the modules, each with those of its faults that an edit repairs."""
    fixed_lines = {(edit.fault.location, edit.fault.attribute) for edit in plan.edits}

    def is_fixed(fault: AttributeFault) -> bool:
        return (fault.location, fault.attribute) in fixed_lines

    return [
        replace(e.fix_target, faults=tuple(filter(is_fixed, e.fix_target.faults))) for e in examined
    ]


def _add_saved_file(target: FixTarget) -> FixTarget:
    """Return the module with its own state_dict as an old checkpoint, if it saves any tensor."""
    paths = (target.saved_before,) if target.run.state else ()
    return replace(target, checkpoints=(*target.checkpoints, *paths))


def _has_failed(proofs: Sequence[TargetProofs], of: str = "") -> bool:
    """Whether a proof has failed; with `of`, one of this name."""
    return any(
        proof.result == FAILED and of in {"", proof.name}
        for target_proofs in proofs
        for proof in target_proofs.proofs
    )


def _find_block(proofs: Sequence[TargetProofs], *, allow_unproved: bool) -> str:
    """Return why nothing is written, "" if nothing is in the way."""
    all_proofs = [p for target_proofs in proofs for p in target_proofs.proofs]
    for proof in all_proofs:
        if proof.result == FAILED:
            return f"{proof.module}: {proof.name}: {proof.reason}"
    unproved = [proof for proof in all_proofs if proof.result == UNPROVED]
    if unproved and not allow_unproved:
        names = join_limited(dict.fromkeys(proof.name for proof in unproved), 3, quote_code)
        return f"not checked: {names} ({unproved[0].reason}); --allow-unproved writes anyway"
    return ""


def _describe_old_files(
    targets: Sequence[FixTarget], proofs: Sequence[TargetProofs]
) -> tuple[str, ...]:
    """Return a note for each module whose old state_dicts lack keys after the edit."""
    notes = []
    for target, target_proofs in zip(targets, proofs, strict=True):
        if target_proofs.new_keys:
            keys = join_limited(target_proofs.new_keys, 3, quote_code)
            notes.append(
                f"checkpoints of {target.label} saved before lack {keys}: with --keep-old-files "
                "they load as before"
            )
    return tuple(notes)


def _report_edits(plan: EditPlan) -> list[SourceEditReport]:
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


def _report_refusals(plan: EditPlan) -> list[RefusedEditReport]:
    return [
        RefusedEditReport(
            keys=refusal.fault.keys,
            codes=refusal.fault.codes,
            where=refusal.fault.location,
            reason=refusal.reason,
        )
        for refusal in plan.refused
    ]


def _format_diffs(plan: EditPlan) -> str:
    from ckptool.migration.codemod.rewrite import format_diff

    return "".join(
        format_diff(
            _format_path(path),
            decode_source(change.old_content)[0],
            decode_source(change.new_content)[0],
        )
        for path, change in plan.changes.items()
    )


def _format_path(path: Path) -> str:
    return format_location(str(path), 0).removesuffix(":0")
