"""MigrationRequest -> MigrationResult and the file: describe, plan, dry run, write, verify."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.compare.module_diff import strict_load_obstacles
from ckptool.compare.states import (
    equally_good_states,
)
from ckptool.errors import (
    PlanError,
    UnconfirmedRenamesError,
    UsageError,
)
from ckptool.formats import open_checkpoint
from ckptool.formats.files.atomic import check_target
from ckptool.formats.files.signals import raise_on_signal
from ckptool.formats.safetensors.writer import SAFETENSORS_DTYPES
from ckptool.locations import RemotePath
from ckptool.migration.check.restricted_load import check_restricted_load
from ckptool.migration.check.strict_load import (
    STRICT_LOAD,
    CheckResult,
    check_pending_file,
)
from ckptool.migration.hook.hook_trace import trace_plan
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.container_limits import (
    SAFETENSORS,
    TORCH,
    check_container_limits,
    get_result_place,
    keeps_saved_object,
    list_left_out,
)
from ckptool.migration.plan.conversion import find_stripped_places, restrict_draft, strip_places
from ckptool.migration.plan.draft import Draft, create_draft, is_pickled_array
from ckptool.migration.plan.pending_file import PendingFile
from ckptool.migration.plan.plan_file import Plan, format_plan
from ckptool.migration.plan.value_sources import ValueSources, describe_rounding
from ckptool.migration.planning import (
    add_undecided_hint,
    apply_suggested,
    ask_again,
    check_outcome,
    choose_plan,
    save_plan,
    select_state,
)
from ckptool.migration.request import (
    MigrationRequest,
    MigrationResult,
    choose_output_container,
    get_result_container,
)
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
    MigrationDigests,
    check_record_target,
)
from ckptool.migration.write.read_back import check_entries
from ckptool.migration.write.sidecar_files import is_web_location, list_sidecar_files
from ckptool.migration.write.torch_pickle import TorchFile, build_torch_file
from ckptool.model import Checkpoint, ModuleInfo, Safety, all_tensors, join_key
from ckptool.phrases import MAX_NAMED, join_limited, quote_code
from ckptool.values.progress import start_step

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule


def run_migration(request: MigrationRequest) -> MigrationResult:
    """Run a migration: describe, plan, apply, write, read back, verify.

    Raises:
        ReadError: the source cannot be read.
        ModuleError: the module cannot be built.
        PlanError: the plan is undecided, or cannot be applied.
        WriteError: the result could not be completed; the target is unchanged.
        UsageError: the options of the request contradict each other.
    """
    with open_migration(request) as result:
        return result


@contextmanager
def open_migration(request: MigrationRequest) -> Iterator[MigrationResult]:
    """Run a migration as `run_migration` does; values that it computed can be read in the context.

    Raises:
        as `run_migration`.
    """
    to = choose_output_container(request)
    with (
        raise_on_signal(),
        AnonymousFile() as anonymous_file,
        BackgroundFingerprints() as fingerprints,
        EarlyCopy() as early_copy,
    ):
        yield _run_stages(request, to, anonymous_file, fingerprints, early_copy)


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
    conversion = request.conversion
    stripped_places = find_stripped_places(checkpoint, conversion.strip if conversion else ())
    checkpoint = strip_places(checkpoint, stripped_places)
    _start_early_work(request, to, checkpoint, fingerprints, early_copy)
    target_module = _load_module(request, checkpoint)
    module_info = target_module.module_info if target_module else None
    draft = tied_items.restore_ties(
        create_draft(checkpoint, select_state(checkpoint, module_info, request, to))
    )
    draft = replace(draft, is_extracted=request.writes_state_alone)
    draft = restrict_draft(draft, conversion, stripped_places) if conversion else draft
    sources = ValueSources(
        target_module, request.donor, anonymous_file, source_guard, request.limits
    )
    suggested = choose_plan(request, draft, target_module, sources)
    plan = suggested.plan
    planned = apply_suggested(request, to, suggested, draft, target_module, sources)
    result, diff = planned.result, planned.diff
    trace = trace_plan(plan, draft, sources) if request.check_trace else None
    if trace and request.check_trace:
        request.check_trace(trace)
    notes = _collect_notes(request, to, result, sources, module_info)
    save_plan(request, format_plan(plan))
    check_outcome(request, planned, target_module)
    state_changed = result is not draft or result.items.keys() != result.state.tensors.keys()
    has_arrays = any(map(is_pickled_array, result.state.tensors.values()))
    has_more = bool(result.state.at or checkpoint.entries or len(checkpoint.states) > 1)
    is_alone = result.is_extracted and has_more
    state_changed = state_changed or result.state.role == "module" or has_arrays or is_alone
    torch_file = None
    if to == TORCH and not request.is_sharded:
        torch_file = build_torch_file(
            result,
            request.limits,
            has_changes=state_changed or conversion is not None,
            conversion=conversion,
            stripped_places=stripped_places,
        )
    notes = notes if conversion else (*notes, *_describe_changes(torch_file))
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
        torch_file,
        load_obstacles,
        suggested.keys_to_confirm,
    )
    try:
        checks, digests = ((), None) if request.dry_run else applied_plan.write_result()
    except UnconfirmedRenamesError as error:
        raise add_undecided_hint(ask_again(suggested, checkpoint, error), request) from error
    if diff and any(check.name == STRICT_LOAD and check.result == "passed" for check in checks):
        diff = replace(diff, unchecked_load=None)
    return MigrationResult(
        checkpoint=checkpoint,
        state=result.state,
        module_info=module_info,
        plan=Plan() if planned.already_applied else plan,
        to=to,
        target=request.target,
        diff=diff,
        checks=checks,
        digests=digests,
        notes=notes,
        state_changed=state_changed or bool(torch_file and torch_file.changes),
        already_applied=planned.already_applied,
        container=get_result_container(request, to),
        tensors=result.result_state.tensors,
        is_alone=result.is_extracted,
        omitted=list_left_out(result, to),
        tree_changes=torch_file.changes if torch_file else (),
        stripped_places=stripped_places,
        trace=trace,
        refused_globals=_list_refused_globals(request, checkpoint, torch_file),
    )


def _list_refused_globals(
    request: MigrationRequest, source: Checkpoint, torch_file: TorchFile | None
) -> tuple[str, ...]:
    """Return the globals of the result that torch.load refuses by default: all are the source's."""
    if torch_file is None or all(use.safety is Safety.SAFE for use in source.globals):
        return ()
    return torch_file.list_refused_globals(request.limits)


def _collect_notes(
    request: MigrationRequest,
    to: str,
    result: Draft,
    sources: ValueSources,
    module_info: ModuleInfo | None,
) -> tuple[str, ...]:
    """Return what the report says of the result besides plan and checks.

    Raises:
        PlanError: the container cannot hold the result.
    """
    checkpoint = result.checkpoint
    is_conversion = request.conversion is not None
    drop_extra = request.drop_extra or is_conversion
    notes = check_container_limits(result, to, drop_extra=drop_extra)
    notes = notes[1:] if is_conversion and list_left_out(result, to) else notes
    notes = (*notes, *describe_rounding(sources.rounding_differences))
    notes = (*notes, *(tied_items.describe_left_out_names(result) if to == SAFETENSORS else ()))
    if module_info and request.at is None:
        equal_matches = equally_good_states(checkpoint, module_info, result.state)
        state_paths = join_limited(equal_matches, MAX_NAMED, quote_code)
        note = f"{state_paths} matches as well as `{result.state.at or '.'}`: --at takes it instead"
        notes = (*notes, note) if equal_matches else notes
    if request.is_sharded and (sidecar_files := list_sidecar_files(checkpoint)):
        notes = (*notes, f"also copied: {', '.join(file.name for file in sidecar_files)}")
    if request.is_sharded and is_web_location(checkpoint.path):
        notes = (*notes, "other files next to the shards are not copied: http cannot list them")
    return notes


def _describe_changes(torch_file: TorchFile | None) -> tuple[str, ...]:
    """Return a note on what a migration leaves out of the saved object, as it is dangerous."""
    changes = torch_file.changes if torch_file else ()
    if not changes:
        return ()
    names = join_limited(changes, MAX_NAMED, lambda change: f"`{change.place}` ({change.before})")
    return (f"dropped, as loading it would run code: {names}",)


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
    if request.record_provenance and to == TORCH and not request.is_sharded:
        check_record_target(request.target, inputs, force=request.force)


def _load_module(request: MigrationRequest, checkpoint: Checkpoint) -> "TargetModule | None":
    if request.module is None:
        return None
    target_module = request.module(checkpoint)
    return target_module.restrict(request.into) if request.into else target_module


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
    torch_file: TorchFile | None
    load_obstacles: str
    keys_to_confirm: tuple[str, ...]

    def write_result(self) -> tuple[tuple[CheckResult, ...], MigrationDigests]:
        request, checks = self.request, list[CheckResult]()
        assert request.target is not None

        def check_file(path: Path) -> None:
            pending_file = self._describe_pending_file(path, request.target)
            if request.conversion is not None:
                checks.append(self._check_converted_file(pending_file))
                return
            checks.extend(
                check_pending_file(pending_file, self.target_module, request.forward_check)
            )

        if not self.early_copy.output:
            nbytes = sum(t.nbytes for t in all_tensors(self.result.checkpoint).values())
            start_step(f"writing {request.target.name}", nbytes)
        job = WriteJob(
            self.result,
            request.recorded_plan or self.plan,
            request.target,
            self.to,
            request.force,
            request.record_provenance,
            self.torch_file,
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
            request.stamp,
        )
        if request.is_sharded:
            from ckptool.migration.write.sharded_folder import write_sharded_folder

            digests = write_sharded_folder(job, request.max_shard_size)
        else:
            digests = write_checkpoint(job)
        return tuple(checks), digests

    def _check_converted_file(self, pending_file: PendingFile) -> CheckResult:
        """Have a converted file read again; compare what stands beside the state."""
        result, limits = self.result, self.request.limits
        if keeps_saved_object(result, self.to) and not self.request.is_sharded:
            changes = self.torch_file.changes if self.torch_file else ()
            state_keys = [join_key(result.state.at, key) for key in result.state.non_tensors]
            places = [*(change.place for change in changes), *state_keys]
            check_entries(result.checkpoint, pending_file.path, pending_file.target, places, limits)
        return check_restricted_load(pending_file, limits)

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
