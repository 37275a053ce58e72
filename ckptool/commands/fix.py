"""Findings about a module -> edits of its source, proved before they are written."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.fixing.edit_selection import EditSelection, ProvedEdits, find_suspects
from ckptool.commands.fixing.fix_parts import (
    describe_branches,
    describe_reached_modules,
    describe_unrun_uses,
    format_diffs,
    format_path,
    report_edits,
    report_proofs,
    report_refusals,
)
from ckptool.commands.fixing.old_files import (
    OldFileHooks,
    build_old_file_hooks,
    find_hook_obstacles,
)
from ckptool.commands.fixing.project_scope import ProjectScope, find_project
from ckptool.commands.fixing.proofs import FAILED, UNPROVED, FixTarget, TargetProofs, prove_edits
from ckptool.commands.sources.configured_models import list_configured_targets
from ckptool.commands.sources.module_choice import ModuleOptions
from ckptool.commands.target import ModuleTarget, name_object
from ckptool.commands.worker.fix_requests import RunModule
from ckptool.commands.worker.requests import DescribeModule
from ckptool.commands.worker.worker import get_worker
from ckptool.config import ProjectConfig, load_config
from ckptool.errors import UsageError
from ckptool.migration.codemod.attribute_fault import (
    AttributeFault,
    EditPlan,
    RefusedFix,
    SourceChange,
)
from ckptool.migration.codemod.project_files import ProjectFiles
from ckptool.model import Skipped
from ckptool.phrases import join_limited, quote_code
from ckptool.policy import Policy, judge
from ckptool.reports.fix import FixOutcome, FixReport, build_fix_report
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
        from ckptool.migration.codemod.plan_edits import merge_faults

        project = ProjectFiles(self.scope.root)
        faults = merge_faults([f for e in self.examined for f in e.fix_target.faults])
        edits = self._select(faults, project)
        old_file_notes = _describe_old_files(edits)
        new_files: Mapping[Path, bytes] = {}
        if self.keep_old_files and edits.plan.edits:
            edits, hooks = self._add_hooks(edits, project)
            new_files = hooks.files
            old_file_notes = [*hooks.notes]
        notes = [
            *describe_reached_modules(edits),
            *describe_branches(edits),
            *describe_unrun_uses(edits),
            *old_file_notes,
        ]
        block = _find_block(edits.proofs, allow_unproved=allow_unproved)
        is_written = write and bool(edits.plan.edits) and not block
        if is_written:
            from ckptool.migration.codemod.write_files import write_changes

            additions = [SourceChange(path, b"", content) for path, content in new_files.items()]
            write_changes([*edits.plan.changes.values(), *additions], self.scope.root)
        findings = [f for e in self.examined for f in e.findings]
        if is_written:
            findings = [f for proofs in edits.proofs for f in proofs.findings]
        skipped = [Skipped("writes in Python files beyond the first 5,000", "the project is large")]
        has_failed = any(proofs.failure for proofs in edits.proofs)
        outcome = FixOutcome(
            modules=tuple(e.fix_target.label for e in self.examined),
            edits=tuple(report_edits(edits.plan)),
            refused=tuple(report_refusals(edits.plan)),
            proofs=tuple(report_proofs(edits.proofs)),
            diff=format_diffs(edits.plan),
            new_files=tuple(format_path(path) for path in new_files),
            block=block if write or has_failed else "",
            is_asked=write,
            is_written=is_written,
            notes=tuple(notes),
            skipped=tuple(skipped) if project.is_cut else (),
        )
        return build_fix_report(outcome, judge(findings, self.policy))

    def _select(
        self,
        faults: Sequence[AttributeFault],
        project: ProjectFiles,
        hooks: "OldFileHooks | None" = None,
    ) -> ProvedEdits:
        """Return the edits that are proved; with hooks, all of them are tried once, together.

        Only then has an old checkpoint to load, if hooks are to be added.
        """
        from ckptool.migration.codemod.plan_edits import EditOptions, plan_edits

        registrations = hooks.registrations if hooks else None
        new_files = hooks.files if hooks else {}
        targets = [e.fix_target for e in self.examined]
        if self.keep_old_files and hooks is None:
            targets = [replace(target, checkpoints=()) for target in targets]

        def plan(some_faults: Sequence[AttributeFault]) -> EditPlan:
            options = EditOptions(self.style)
            return plan_edits(some_faults, project, self.scope.folder, options, registrations)

        def prove(some_targets: Sequence[FixTarget], plan: EditPlan) -> list[TargetProofs]:
            if not plan.edits:
                return [TargetProofs(()) for _ in some_targets]
            return prove_edits(some_targets, plan, new_files, self.scope, self.policy)

        if hooks is None:
            return EditSelection(targets, plan, prove).select_edits(faults)
        return EditSelection([*map(_add_saved_file, targets)], plan, prove).try_edits(faults)

    def _add_hooks(
        self, edits: ProvedEdits, project: ProjectFiles
    ) -> tuple[ProvedEdits, OldFileHooks]:
        """Return the edits with hooks for the keys that they add, and the hooks.

        Edits of a module that does not load its old state even so are refused, too.
        """
        obstacles = find_hook_obstacles(edits.plan, edits.targets, edits.proofs)
        refused = (*edits.plan.refused, *obstacles)
        if obstacles:
            without_hook = [obstacle.fault for obstacle in obstacles]
            edits = self._select([f for f in edits.faults if f not in without_hook], project)
            refused += edits.plan.refused
        hooks = build_old_file_hooks(edits.plan, edits.targets, edits.proofs)
        hooked = self._select(edits.faults, project, hooks)
        suspects = find_suspects(hooked)
        if suspects:
            failure = next(proofs.failure for proofs in hooked.proofs if proofs.failure)
            edits = self._select([f for f in edits.faults if f not in suspects], project)
            failed = (RefusedFix(fault, f"with this edit, {failure}") for fault in suspects)
            refused += (*failed, *edits.plan.refused)
            hooks = build_old_file_hooks(edits.plan, edits.targets, edits.proofs)
            hooked = self._select(edits.faults, project, hooks)
        return replace(hooked, plan=replace(hooked.plan, refused=refused)), hooks


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
    faults = [
        replace(fault, requires_grad=not run.initial_values.requiring_grad.isdisjoint(fault.keys))
        for fault in collect_faults(reported, module_info, parameters)
    ]
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


def _add_saved_file(target: FixTarget) -> FixTarget:
    """Return the module with its own state_dict as an old checkpoint, if it saves any tensor."""
    paths = (target.saved_before,) if target.run.keys else ()
    return replace(target, checkpoints=(*target.checkpoints, *paths))


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


def _describe_old_files(edits: ProvedEdits) -> list[str]:
    """Return a note for each module whose old state_dicts lack keys after the edit."""
    notes = []
    for target, target_proofs in zip(edits.targets, edits.proofs, strict=True):
        if target_proofs.new_keys:
            keys = join_limited(target_proofs.new_keys, 3, quote_code)
            notes.append(
                f"checkpoints of {target.label} saved before lack {keys}: with --keep-old-files "
                "they load as before"
            )
    return notes
