"""Edits of a project's source -> proofs, from child processes that run a copy of its tree."""

import sys
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.fixing.project_scope import ProjectScope
from ckptool.commands.migrate import migrate
from ckptool.commands.sources.file_arguments import FileArguments
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.fix_requests import InitialValues, ModuleRun, RunModule
from ckptool.commands.worker.requests import DescribeModule, ModuleFacts, ProbeLoad
from ckptool.commands.worker.worker import ModuleWorker, get_worker, stop_using_worker, use_worker
from ckptool.compare.loader_diff import build_loaded_diff
from ckptool.compare.module_diff import ModuleDiff, strict_load_obstacles
from ckptool.config import ProjectConfig
from ckptool.errors import CkptoolError, ModuleError
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.loaders.folder_weights import open_weights
from ckptool.migration.codemod.attribute_fault import AttributeFault, EditPlan, FaultKind
from ckptool.migration.codemod.source_overlay import build_overlay, move_into_overlay
from ckptool.model import ModuleInfo
from ckptool.phrases import join_limited, pluralize, quote_code
from ckptool.policy import Policy, judge
from ckptool.rules import Finding, run_rules
from ckptool.verification.result import LevelStatus

PASSED, FAILED, UNPROVED = "passed", "failed", "not checked"
_OLD_FILES: Final = "; --keep-old-files loads a file that lacks keys"


class Proof(Struct, frozen=True):
    """One question about the edited source, and its answer."""

    name: str
    module: str
    result: str
    """PASSED, FAILED or UNPROVED."""
    reason: str = ""


class FixTarget(Struct, frozen=True):
    """A module whose class is edited, and what it is and computes before."""

    target: ModuleTarget
    facts: ModuleFacts
    run: ModuleRun
    faults: tuple[AttributeFault, ...]
    """Those that an edit repairs."""
    checkpoints: tuple[Path, ...] = ()
    """Old checkpoints that it has to load."""
    inputs: object = None
    saved_before: Path = Path()
    """A state_dict that the module saved before the edit."""

    @property
    def label(self) -> str:
        """The import target."""
        return str(self.target.module)


class TargetProofs(Struct, frozen=True):
    """Proofs for one module, and what is left to find in it."""

    proofs: tuple[Proof, ...]
    module_info: ModuleInfo | None = None
    """The module after the edit; None if it does not build."""
    findings: tuple[Finding, ...] = ()
    """What the rules find after the edit."""
    new_keys: tuple[str, ...] = ()
    """Keys of the state_dict that a file saved before lacks."""
    is_eval_changed: bool = False
    """Whether eval() alone gives other outputs than before, since it reaches more modules."""

    @property
    def failure(self) -> str:
        """Name and reason of the first proof that failed, "" for none."""
        failed = (p for p in self.proofs if p.result == FAILED)
        return next((f"{proof.name}: {proof.reason}" for proof in failed), "")


@contextmanager
def _open_edited_project(
    scope: ProjectScope, contents: Mapping[Path, bytes]
) -> Iterator[tuple[ModuleWorker, Path]]:
    """Context manager with a worker in a copy of the project, and the copy's folder."""
    with tempfile.TemporaryDirectory(prefix="ckptool-fix-") as name:
        overlay = build_overlay(scope.root, contents, Path(name))
        import_path = [str(overlay)]
        import_path += [move_into_overlay(path, scope.root, overlay) for path in sys.path]
        folder = overlay / scope.folder.relative_to(scope.root)
        worker = get_worker().create_worker(folder, import_path)
        try:
            yield worker, overlay
        finally:
            worker.close()


def prove_edits(
    targets: Sequence[FixTarget],
    plan: EditPlan,
    new_files: Mapping[Path, bytes],
    scope: ProjectScope,
    policy: Policy,
) -> list[TargetProofs]:
    """Return the proofs for each module, asked of a copy of the project with the edits."""
    contents = {path: change.new_content for path, change in plan.changes.items()} | {**new_files}
    with _open_edited_project(scope, contents) as (worker, overlay):
        proofs = [_prove_target(target, worker, overlay, scope, policy) for target in targets]
    edited_files = {path.resolve() for path in contents}
    return [
        of_target if _is_edited(target, edited_files) else _drop_unproved(of_target)
        for target, of_target in zip(targets, proofs, strict=True)
    ]


def _is_edited(target: FixTarget, edited_files: Container[Path]) -> bool:
    return any(Path(file).resolve() in edited_files for file in target.run.source_files)


def _drop_unproved(proofs: TargetProofs) -> TargetProofs:
    """Return the proofs without those that no edit waits for: no class of the module is edited."""
    return replace(proofs, proofs=tuple(p for p in proofs.proofs if p.result != UNPROVED))


def _prove_target(
    target: FixTarget, worker: ModuleWorker, overlay: Path, scope: ProjectScope, policy: Policy
) -> TargetProofs:
    """Build and run the edited module in `overlay`; compare it with what `target` was."""
    moved = scope.move_target(target.target, overlay)
    try:
        facts = worker.ask(DescribeModule(moved, inputs=target.inputs))
        run = worker.ask(RunModule(moved, target.inputs))
    except CkptoolError as error:
        reason = error.reason if isinstance(error, ModuleError) else str(error)
        return TargetProofs((Proof("builds", target.label, FAILED, reason),))
    module_info = facts.apply_effects()
    rules_findings = run_rules([module_info, *facts.forward_effects])
    findings = judge(rules_findings, policy).findings
    new_keys = tuple(key for key in run.keys if key not in target.run.keys)
    answers = [
        ("builds", *_judge_build(target, run, scope, overlay)),
        ("audit", *_judge_findings(target, findings)),
        ("same initial values", *_judge_initial_values(target, run.initial_values)),
        ("same outputs", *_judge_outputs(target.run, run)),
        ("loads again", *_judge_reload(target.run, run)),
        ("device", *_judge_device(target, run)),
    ]
    answers += [
        (f"loads {path.name}", *_judge_checkpoint(path, target, moved, module_info, worker))
        for path in target.checkpoints
    ]
    proofs = tuple(Proof(name, target.label, result, reason) for name, result, reason in answers)
    before_eval = target.run.outputs_after_eval
    is_eval_changed = before_eval != (run.outputs_after_eval or run.outputs.get("eval"))
    return TargetProofs(
        proofs,
        module_info,
        findings,
        new_keys,
        is_eval_changed=bool(before_eval) and is_eval_changed,
    )


def _judge_build(
    target: FixTarget, run: ModuleRun, scope: ProjectScope, overlay: Path
) -> tuple[str, str]:
    """Say whether the classes that were built are those of the copy."""
    for file in target.run.source_files:
        path = Path(file).resolve()
        if not path.is_relative_to(scope.root):
            continue
        copy = str(overlay / path.relative_to(scope.root))
        if copy not in run.source_files and str(path) in {*run.source_files, file}:
            return FAILED, f"{file} was imported from the project, not from its copy"
    return PASSED, ""


def _judge_findings(target: FixTarget, findings: Sequence[Finding]) -> tuple[str, str]:
    codes = {key: {*fault.codes} for fault in target.faults for key in fault.keys}
    left = [f for f in findings if f.rule.code in codes.get(f.key, ())]
    if left:
        return FAILED, f"{left[0].summary} ({left[0].rule.code})"
    return PASSED, "the findings are gone"


def _judge_initial_values(target: FixTarget, after: InitialValues) -> tuple[str, str]:
    """Say whether every tensor, registered or not, has the value that it had."""
    before = target.run.initial_values
    new_parameters = {
        key for fault in target.faults if fault.kind is FaultKind.PARAMETER for key in fault.keys
    }
    changed = [path for path in before.digests if before.digests[path] != after.digests.get(path)]
    if changed:
        keys = join_limited(changed, 3, quote_code)
        return FAILED, f"built under one seed, the values differ at {keys}"
    unlike = (before.requiring_grad ^ after.requiring_grad) - new_parameters
    if unlike & before.digests.keys():
        keys = join_limited(sorted(unlike & before.digests.keys()), 3, quote_code)
        return FAILED, f"requires_grad differs at {keys}"
    return PASSED, f"{pluralize(len(before.digests), 'tensor')} under one seed"


def _judge_outputs(before: ModuleRun, after: ModuleRun) -> tuple[str, str]:
    if before.unrun_reason:
        return UNPROVED, before.unrun_reason
    if not before.outputs:
        return UNPROVED, f"forward raises before the edit: {before.errors.get('eval', '')}"
    for mode, outputs in before.outputs.items():
        if mode in after.errors:
            return FAILED, f"in {mode} mode forward raises {after.errors[mode]}"
        if after.outputs.get(mode) != outputs:
            return FAILED, f"in {mode} mode the outputs differ"
    if "eval" not in before.outputs:
        return UNPROVED, f"in eval mode forward raises before: {before.errors.get('eval', '')}"
    return PASSED, f"bit for bit on the CPU, in {' and '.join(before.outputs)} mode"


def _judge_reload(before: ModuleRun, after: ModuleRun) -> tuple[str, str]:
    """Say whether a new instance loads what is saved after forward: shapes stay as built."""
    if not after.outputs:
        return UNPROVED, after.unrun_reason or "forward raises"
    if not after.reload_error:
        return PASSED, "a new instance loads the state after forward"
    if before.reload_error:
        return UNPROVED, f"a new instance does not load it before the edit: {before.reload_error}"
    return FAILED, f"a new instance does not load the state after forward: {after.reload_error}"


def _judge_device(target: FixTarget, run: ModuleRun) -> tuple[str, str]:
    before, after = target.run.device_level, run.device_level
    if after is None:
        return UNPROVED, run.unrun_reason
    if after.status is LevelStatus.PASSED:
        return PASSED, f"forward runs on {after.device}"
    if after.status is not LevelStatus.FAILED:
        return UNPROVED, after.reason
    names = {key.partition("[")[0] for fault in target.faults for key in fault.keys}
    is_ours = any(m.attribute.partition("[")[0] in names for m in run.device_mismatches)
    created_count = sum(fault.kind is FaultKind.CREATED_TENSOR for fault in target.faults)
    places_before, places_after = (
        len({m.description for m in mismatches if not m.attribute})
        for mismatches in (target.run.device_mismatches, run.device_mismatches)
    )
    is_broken = before is not None and before.status is LevelStatus.PASSED
    if is_ours or is_broken or places_after > places_before - created_count:
        return FAILED, after.reason
    return UNPROVED, f"another tensor is on the wrong device, as before: {after.reason}"


def _judge_checkpoint(
    path: Path,
    fix_target: FixTarget,
    target: ModuleTarget,
    module_info: ModuleInfo,
    worker: ModuleWorker,
) -> tuple[str, str]:
    """Say whether the edited module loads an old checkpoint, or whether it can be migrated.

    What the module did not load before the edit is no fault of the edit.
    """
    try:
        module_diff = _load_checkpoint(path, target, module_info, worker)
        if module_diff.is_strict:
            return PASSED, "loads strictly"
        before_info = fix_target.facts.module_info
        before = _load_checkpoint(path, fix_target.target, before_info, get_worker())
        obstacles = strict_load_obstacles(module_diff)
        if not before.is_strict and obstacles == strict_load_obstacles(before):
            return UNPROVED, f"it does not load before the edit either: {obstacles}"
        return _judge_migration(path, target, worker, obstacles)
    except CkptoolError as error:
        return FAILED, str(error)


def _load_checkpoint(
    path: Path, target: ModuleTarget, module_info: ModuleInfo, worker: ModuleWorker
) -> ModuleDiff:
    """Return what a module and a checkpoint have in common, and what its loader does."""
    return build_loaded_diff(
        open_weights(path, DEFAULT_LIMITS),
        replace(module_info, own_load_error=""),
        target.at,
        lambda diff: worker.ask(ProbeLoad(target, FileArguments(), diff)),
    )


def _judge_migration(
    path: Path, target: ModuleTarget, worker: ModuleWorker, obstacles: str
) -> tuple[str, str]:
    token = use_worker(worker)
    try:
        report = migrate(
            path,
            module=target.module,
            kwargs=target.kwargs,
            at=target.at,
            dry_run=True,
            config=ProjectConfig(),
        )
    except CkptoolError as error:
        reason = str(error).removeprefix(f"{path}: ").partition("\n")[0]
        return FAILED, f"{obstacles}, and it cannot be migrated: {reason}{_OLD_FILES}"
    finally:
        stop_using_worker(token)
    if report.exit_code:
        return FAILED, f"{obstacles}, and it cannot be migrated{_OLD_FILES}"
    return PASSED, f"can be migrated: {obstacles}"
