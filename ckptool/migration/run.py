"""MigrationRequest -> MigrationResult and the file: describe, plan, dry run, write, verify."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from ckptool.compare.module_diff import ModuleDiff, strict_load_obstacles
from ckptool.compare.states import (
    equally_good_states,
    find_best_state,
    get_state,
    list_model_states,
    split_part,
)
from ckptool.errors import (
    PlanError,
    ReadError,
    UnconfirmedRenamesError,
    UsageError,
)
from ckptool.formats import open_checkpoint
from ckptool.formats.files.atomic import check_target, write_file
from ckptool.formats.files.signals import raise_on_signal
from ckptool.formats.files.source import is_directory, open_source
from ckptool.formats.files.writer import ProgressCallback
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.safetensors.writer import SAFETENSORS_DTYPES
from ckptool.locations import Location, RemotePath
from ckptool.migration.check.plan_outcome import PlanOutcome
from ckptool.migration.check.strict_load import (
    STRICT_LOAD,
    CheckResult,
    ForwardCheck,
    check_pending_file,
)
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.container_limits import (
    SAFETENSORS,
    TORCH,
    check_container_limits,
    get_result_place,
    keeps_saved_object,
    reject_absent_values,
    reject_packed_weights,
)
from ckptool.migration.plan.draft import Draft, create_draft, is_pickled_array
from ckptool.migration.plan.open_decisions import UndecidedError
from ckptool.migration.plan.part_steps import find_part_steps
from ckptool.migration.plan.pending_file import PendingFile
from ckptool.migration.plan.plan_file import Plan, apply_plan, format_plan, reverse_plan
from ckptool.migration.plan.suggest import (
    PlanChoices,
    SuggestedPlan,
    suggest_plan,
)
from ckptool.migration.plan.value_sources import ValueSources, describe_rounding
from ckptool.migration.source_guard import SourceGuard
from ckptool.migration.write import tied_items
from ckptool.migration.write.background_fingerprints import BackgroundFingerprints
from ckptool.migration.write.early_copy import EarlyCopy
from ckptool.migration.write.file import (
    WriteJob,
    compute_header_room,
    order_tensors,
    write_checkpoint,
)
from ckptool.migration.write.inflate_storages import inflate_storages
from ckptool.migration.write.provenance import (
    PROVENANCE_KEY,
    RECORD_SUFFIX,
    MigrationDigests,
    check_record_target,
    is_applied,
)
from ckptool.migration.write.sidecar_files import is_web_location, list_sidecar_files
from ckptool.model import Checkpoint, Container, IssueKind, ModuleInfo, StateDict, all_tensors
from ckptool.modules.submodule import select_submodule
from ckptool.phrases import MAX_NAMED, join_limited, quote_code
from ckptool.tensors.progress import start_step

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule

_CONTAINER_BY_SUFFIX = {
    ".safetensors": SAFETENSORS, ".pth": TORCH, ".pt": TORCH, ".ckpt": TORCH, ".bin": TORCH,
}  # fmt: skip


_MAX_RECORD_NBYTES: Final = 16 << 20
"""Maximum size in bytes of the record file beside a .pth."""


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """Source, target, plan and options of a migration."""

    source: Location
    target: Path | None
    """None for a dry run without a target."""
    module: "Callable[[Checkpoint], TargetModule] | None" = None
    """Returns the module for the opened checkpoint."""
    at: str | None = None
    into: str = ""
    """Path of the sub-module that alone is meant, "" for the whole module."""
    to: str | None = None
    plan: Plan | None = None
    """None: derive the plan."""
    plan_name: str = ""
    """Path of the plan file, for error messages; "" without one."""
    reverse: bool = False
    choices: PlanChoices = field(default_factory=PlanChoices)
    can_confirm_renames: bool = False
    """Whether `forward_check` compares the outputs with those of the old module."""
    donor: Location | None = None
    drop_extra: bool = False
    force: bool = False
    dry_run: bool = False
    save_plan: Path | None = None
    max_shard_size: int | None = None
    hard_links: bool = True
    record_provenance: bool = True
    limits: Limits = DEFAULT_LIMITS
    progress: ProgressCallback = lambda _: None
    forward_check: ForwardCheck | None = None
    check_plan: Callable[[PlanOutcome], None] = lambda _: None
    """Called before anything is written; raises a PlanError to refuse the plan."""

    @property
    def is_sharded(self) -> bool:
        """Whether the result is a folder of shards.

        True if a shard size is given, or if the source is sharded and neither the target's suffix
        nor `to` names a container.
        """
        if self.max_shard_size is not None:
            return True
        is_source_sharded = is_directory(self.source) or self.source.suffix == ".json"
        has_file_suffix = (
            self.target is not None and self.target.suffix.lower() in _CONTAINER_BY_SUFFIX
        )
        return is_source_sharded and not has_file_suffix and self.to is None


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """Outcome of a migration, or of its dry run."""

    checkpoint: Checkpoint
    state: StateDict
    module_info: ModuleInfo | None
    plan: Plan
    to: str
    target: Path | None
    diff: ModuleDiff | None
    """The result compared with the module; None without a module."""
    checks: tuple[CheckResult, ...]
    digests: MigrationDigests | None
    """None if nothing was written."""
    notes: tuple[str, ...]
    state_changed: bool
    """Whether the state_dict of the result differs from the source's."""
    already_applied: bool
    """Whether the source already has this plan applied, by its provenance."""

    container: Container
    """Container of the result."""

    @property
    def is_converted(self) -> bool:
        """Whether the state_dict or the container differs from the source's, or is repaired."""
        is_repaired = self.checkpoint.load_refusal or any(
            issue.kind is IssueKind.COMPRESSED for issue in self.checkpoint.faults
        )
        is_other_container = self.checkpoint.container is not self.container
        return self.state_changed or is_other_container or bool(is_repaired)


def run_migration(request: MigrationRequest) -> MigrationResult:
    """Run a migration: describe, plan, apply, write, read back, verify.

    Raises:
        ReadError: the source cannot be read.
        ModuleError: the module cannot be built.
        PlanError: the plan is undecided, or cannot be applied.
        WriteError: the result could not be completed; the target is unchanged.
        UsageError: the options of the request contradict each other.
    """
    to = _choose_output_container(request)
    with (
        raise_on_signal(),
        AnonymousFile() as anonymous_file,
        BackgroundFingerprints() as fingerprints,
        EarlyCopy() as early_copy,
    ):
        return _run_stages(request, to, anonymous_file, fingerprints, early_copy)


def _run_stages(
    request: MigrationRequest,
    to: str,
    anonymous_file: AnonymousFile,
    fingerprints: BackgroundFingerprints,
    early_copy: EarlyCopy,
) -> MigrationResult:
    source_guard = SourceGuard()
    is_index = request.source.name.endswith(".json") or request.source.name == ".metadata"
    if isinstance(request.source, Path):
        source_guard.add_path(request.source.parent if is_index else request.source)
    _check_targets(request, to, source_guard)
    checkpoint = _open_source_checkpoint(request, anonymous_file)
    if isinstance(request.source, RemotePath):
        for file in checkpoint.files or (checkpoint.path,):
            source_guard.add_path(file)
    _start_early_work(request, to, checkpoint, fingerprints, early_copy)
    target_module = _load_module(request, checkpoint)
    module_info = target_module.module_info if target_module else None
    draft = tied_items.restore_ties(
        create_draft(checkpoint, _select_state(checkpoint, module_info, request))
    )
    sources = ValueSources(
        target_module, request.donor, anonymous_file, source_guard, request.limits
    )
    suggested = _choose_plan(request, draft, target_module, sources)
    plan = suggested.plan
    already_applied = is_applied(plan, _read_provenance(draft))
    result = draft if already_applied else apply_plan(plan.ops, draft, sources, request.plan_name)
    diff = _predict_load(target_module, result, to)
    notes = check_container_limits(result, to, drop_extra=request.drop_extra)
    notes = (*notes, *describe_rounding(sources.rounding_differences))
    notes = (*notes, *(tied_items.describe_left_out_names(result) if to == SAFETENSORS else ()))
    if module_info and request.at is None:
        equal_matches = equally_good_states(checkpoint, module_info, draft.state)
        state_paths = join_limited(equal_matches, MAX_NAMED, quote_code)
        note = f"{state_paths} matches as well as `{draft.state.at or '.'}`: --at takes it instead"
        notes = (*notes, note) if equal_matches else notes
    if request.is_sharded and (sidecar_files := list_sidecar_files(checkpoint)):
        notes = (*notes, f"also copied: {', '.join(file.name for file in sidecar_files)}")
    if request.is_sharded and is_web_location(checkpoint.path):
        notes = (*notes, "other files next to the shards are not copied: http cannot list them")
    _save_plan(request, format_plan(plan))
    if target_module and diff:
        source_diff = target_module.predict_load(draft, state_only=False, keeps_versions=True)
        request.check_plan(PlanOutcome(plan, request.plan is None, source_diff, diff))
    state_changed = result is not draft or result.items.keys() != result.state.tensors.keys()
    has_arrays = any(map(is_pickled_array, result.state.tensors.values()))
    state_changed = state_changed or result.state.role == "module" or has_arrays
    load_obstacles = strict_load_obstacles(diff) if diff else ""
    applied_plan = _AppliedPlan(
        request,
        to,
        plan,
        result,
        target_module,
        source_guard,
        fingerprints,
        early_copy,
        state_changed,
        load_obstacles,
        suggested.keys_to_confirm,
    )
    try:
        checks, digests = ((), None) if request.dry_run else applied_plan.write_result()
    except UnconfirmedRenamesError as error:
        raise _add_undecided_hint(_ask_again(suggested, checkpoint, error), request) from error
    if diff and any(check.name == STRICT_LOAD and check.result == "passed" for check in checks):
        diff = replace(diff, unchecked_load=None)
    return MigrationResult(
        checkpoint=checkpoint,
        state=result.state,
        module_info=module_info,
        plan=Plan() if already_applied else plan,
        to=to,
        target=request.target,
        diff=diff,
        checks=checks,
        digests=digests,
        notes=notes,
        state_changed=state_changed,
        already_applied=already_applied,
        container=_get_result_container(request, to),
    )


def _open_source_checkpoint(request: MigrationRequest, anonymous_file: AnonymousFile) -> Checkpoint:
    checkpoint = open_checkpoint(request.source, request.limits)
    if checkpoint.damage:
        raise PlanError(f"{checkpoint.path}: is not migrated: {checkpoint.damage}")
    return inflate_storages(checkpoint, anonymous_file, request.limits)


def _start_early_work(
    request: MigrationRequest,
    to: str,
    checkpoint: Checkpoint,
    fingerprints: BackgroundFingerprints,
    early_copy: EarlyCopy,
) -> None:
    """Start plan-independent work (copying, fingerprints) while torch is imported."""
    if (
        request.target is None
        or request.dry_run
        or request.is_sharded
        or len(checkpoint.states) != 1
    ):
        return
    state = checkpoint.states[0]
    header_room = compute_header_room(state)
    if (
        to == SAFETENSORS
        and header_room
        and all(
            tensor.dtype in SAFETENSORS_DTYPES and tensor.span for tensor in state.tensors.values()
        )
    ):
        items, _ = tied_items.split_ties(create_draft(checkpoint, state))
        tensors = [items[stored_tensor.key].tensor for stored_tensor in order_tensors(items)]
        nbytes = sum(tensor.nbytes for tensor in tensors)
        start_step(f"writing {request.target.name}", nbytes, in_background=True)
        early_copy.start_copying(
            tensors,
            header_room,
            request.target,
            force=request.force,
            with_fingerprints=request.record_provenance,
            progress=request.progress,
        )
    elif request.record_provenance:
        fingerprints.start_fingerprints(state)


def _choose_output_container(request: MigrationRequest) -> str:
    suffix = request.target.suffix.lower() if request.target else ".safetensors"
    container = request.to or _CONTAINER_BY_SUFFIX.get(suffix)
    if request.is_sharded:
        if container == TORCH or suffix in _CONTAINER_BY_SUFFIX:
            raise UsageError(
                f"-o {request.target}: a sharded checkpoint is a folder of safetensors files: "
                "give it without a suffix, and without --to pth"
            )
        return SAFETENSORS
    if container is None and request.target is not None and request.target.is_dir():
        name = f"{Path(request.source.name).stem}.safetensors"
        raise UsageError(f"-o {request.target}: is a folder: give a file in it, for example {name}")
    if container is None and str(request.target) == "-":
        raise UsageError("-o -: a checkpoint cannot be written to standard output: give a file")
    if container is None:
        suffixes_text = ", ".join(_CONTAINER_BY_SUFFIX)
        raise UsageError(
            f"-o {request.target}: its suffix does not determine the format ({suffixes_text}): "
            "choose --to safetensors or --to pth"
        )
    return container


def _get_result_container(request: MigrationRequest, to: str) -> Container:
    if request.is_sharded:
        return Container.SHARDED_SAFETENSORS
    return Container.SAFETENSORS if to == SAFETENSORS else Container.TORCH_ZIP


def _check_targets(request: MigrationRequest, to: str, source_guard: SourceGuard) -> None:
    inputs = [path for path in (request.source, request.donor) if isinstance(path, Path)]
    inputs += source_guard.local_files
    if request.save_plan is not None:
        check_target(request.save_plan, inputs, force=request.force, folder=False)
    if request.target is None:
        if not request.dry_run:
            raise UsageError("no output was given: -o DST, or --dry-run to see only the plan")
        return
    if request.dry_run:
        return
    check_target(request.target, inputs, force=request.force, folder=request.is_sharded)
    if request.record_provenance and to == TORCH:
        check_record_target(request.target, inputs, force=request.force)


def _load_module(request: MigrationRequest, checkpoint: Checkpoint) -> "TargetModule | None":
    if request.module is None:
        return None
    target_module = request.module(checkpoint)
    return target_module.restrict(request.into) if request.into else target_module


def _select_state(
    checkpoint: Checkpoint, module_info: ModuleInfo | None, request: MigrationRequest
) -> StateDict:
    """Return the state_dict to migrate: at `request.at`, else the best match, else the only one."""
    if request.at is not None:
        state = get_state(checkpoint, request.at)
        owner, _ = split_part(checkpoint, request.at)
        state = state if state.tensors or owner is None else owner
    elif module_info is not None:
        path = module_info.submodule
        part_info = select_submodule(module_info, path) if path else module_info
        state = find_best_state(checkpoint, part_info)
    else:
        model_states = list_model_states(checkpoint) or [*checkpoint.states]
        if len(model_states) > 1:
            places = [state.at or "." for state in model_states]
            state_paths = join_limited(places, MAX_NAMED, quote_code)
            raise PlanError(f"{checkpoint.path}: has states at {state_paths}: name one with --at")
        state = model_states[0] if model_states else StateDict("", {})
    reject_packed_weights(checkpoint)
    reject_absent_values(checkpoint.path, state, module_info)
    if not state.tensors and not state.unsaved_tensors:
        raise PlanError(f"{checkpoint.path}: there are no tensors at `{state.at or '.'}`")
    return state


def _choose_plan(
    request: MigrationRequest,
    draft: Draft,
    target_module: "TargetModule | None",
    sources: ValueSources,
) -> SuggestedPlan:
    """Return the plan of the request, or derive one; an empty one if the draft loads as it is.

    Raises:
        UndecidedError: no plan can be derived; `--save-plan` then gets the open decisions.
        UsageError: the request has both a plan and choices.
    """
    if request.plan is None:
        module_info = target_module.module_info if target_module else None
        loads_whole = request.choices == PlanChoices() and _loads_whole(
            request, draft, target_module
        )
        if loads_whole and target_module and target_module.has_custom_load:
            return SuggestedPlan(Plan())
        try:
            first_steps = find_part_steps(draft, module_info, request.at)
            return suggest_plan(
                draft,
                module_info,
                sources,
                request.choices,
                first_steps,
                can_confirm=request.can_confirm_renames and not request.dry_run,
            )
            # What torch's own upgrades do is written into the file all the same.
        except UndecidedError as error:
            if loads_whole:
                return SuggestedPlan(Plan())
            raise _add_undecided_hint(error, request) from error
    if request.choices != PlanChoices():
        raise UsageError(
            "--plan is the complete plan: add what --inject, --drop, --rename and "
            "--accept-renames ask for to it, as steps"
        )
    return SuggestedPlan(reverse_plan(request.plan) if request.reverse else request.plan)


def _loads_whole(
    request: MigrationRequest, draft: Draft, target_module: "TargetModule | None"
) -> bool:
    """Whether the module's own loading code loads the unchanged draft, and loses nothing."""
    diff = _predict_load(target_module, draft, _choose_output_container(request))
    return diff is not None and diff.loads_whole


def _predict_load(target_module: "TargetModule | None", draft: Draft, to: str) -> ModuleDiff | None:
    """Return what the module will do with the draft's result, written to container `to`."""
    if target_module is None:
        return None
    return target_module.predict_load(
        draft,
        state_only=not keeps_saved_object(draft.checkpoint.container, to),
        keeps_versions=to != SAFETENSORS,
    )


def _read_provenance(draft: Draft) -> str | None:
    path = draft.checkpoint.path
    record_path = path.with_name(path.name + RECORD_SUFFIX)
    try:
        if record := draft.checkpoint.metadata.get(PROVENANCE_KEY):
            return record
        with open_source(record_path) as source:
            return source.read_head(_MAX_RECORD_NBYTES).decode()
    except (ReadError, UnicodeDecodeError):
        return None


def _ask_again(
    suggested: SuggestedPlan, checkpoint: Checkpoint, error: UnconfirmedRenamesError
) -> UndecidedError:
    """Return the questions on the renames that the old module's outputs do not confirm."""
    decisions = tuple(
        decision
        for decision in suggested.open_decisions
        if (renames := decision.renames)
        and (not error.keys or {*error.keys} & {*renames.pairs.values()})
    )
    asked_keys = {k for d in decisions if d.renames for k in d.renames.pairs.values()}
    ops = tuple(op for op in suggested.plan.ops if getattr(op, "to", "") not in asked_keys)
    return UndecidedError(str(checkpoint.path), Plan(ops), decisions, str(error))


def _add_undecided_hint(error: UndecidedError, request: MigrationRequest) -> UndecidedError:
    """Save the derived steps with the open decisions as comments; return the error with a hint."""
    if request.save_plan is None:
        hint = "--save-plan FILE writes the plan so far, with the questions, for editing"
    else:
        _save_plan(request, error.draft_plan_text)
        hint = (
            f"the plan so far is in {request.save_plan}, with the questions as comments: answer"
            f" them there, then run with --plan {shlex.quote(str(request.save_plan))}"
        )
    if error.accepts_renames:
        hint = f"--accept-renames accepts the unambiguous renames; {hint}"
    return error.add_hint(hint)


def _save_plan(request: MigrationRequest, text: str) -> None:
    if request.save_plan is None:
        return
    write_file(request.save_plan, text.encode(), force=request.force)


@dataclass(frozen=True, slots=True)
class _AppliedPlan:
    """A draft with its plan applied, ready to write."""

    request: MigrationRequest
    to: str
    plan: Plan
    result: Draft
    target_module: "TargetModule | None"
    source_guard: SourceGuard
    fingerprints: BackgroundFingerprints
    early_copy: EarlyCopy
    state_changed: bool
    load_obstacles: str
    keys_to_confirm: tuple[str, ...]

    def write_result(self) -> tuple[tuple[CheckResult, ...], MigrationDigests]:
        request, checks = self.request, list[CheckResult]()
        assert request.target is not None

        def check_file(path: Path) -> None:
            checks.extend(
                check_pending_file(
                    self._describe_pending_file(path, request.target),
                    self.target_module,
                    request.forward_check,
                )
            )

        if not self.early_copy.output:
            nbytes = sum(t.nbytes for t in all_tensors(self.result.checkpoint).values())
            start_step(f"writing {request.target.name}", nbytes)
        job = WriteJob(
            self.result,
            self.plan,
            request.target,
            self.to,
            request.force,
            request.record_provenance,
            self.state_changed,
            request.limits,
            request.progress,
            self.source_guard.check_unchanged,
            check_file,
            (
                self.early_copy.get_fingerprints
                if self.early_copy.output
                else self.fingerprints.get_fingerprints
            ),
            self.early_copy,
            request.hard_links,
        )
        if request.is_sharded:
            from ckptool.migration.write.sharded_folder import write_sharded_folder

            digests = write_sharded_folder(job, request.max_shard_size)
        else:
            digests = write_checkpoint(job)
        return tuple(checks), digests

    def _describe_pending_file(self, path: Path, target: Path | None) -> PendingFile:
        is_safetensors = self.to == SAFETENSORS
        tied_keys = tied_items.split_ties(self.result)[1] if is_safetensors else {}
        return PendingFile(
            path,
            target or path,
            is_safetensors,
            get_result_place(self.result, self.to),
            tied_keys,
            self.load_obstacles,
            self.keys_to_confirm,
        )
