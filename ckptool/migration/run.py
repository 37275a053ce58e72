"""MigrationRequest -> MigrationResult and the file: describe, plan, dry run, write, verify."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.compare.states import equally_good_states
from ckptool.errors import (
    PlanError,
    UnconfirmedRenamesError,
    UsageError,
)
from ckptool.formats.files.atomic import check_target
from ckptool.formats.files.output_group import gather_outputs
from ckptool.formats.files.signals import raise_on_signal
from ckptool.formats.files.weight_names import (
    LOOKUP_ORDERS,
    find_unsharded_loader,
    is_weights_name,
)
from ckptool.formats.safetensors.writer import SAFETENSORS_DTYPES
from ckptool.loaders.folder_weights import open_weights
from ckptool.loaders.model_folder import find_model_folder
from ckptool.locations import Location, RemotePath
from ckptool.migration.applied_plan import UNWRITTEN, AppliedPlan
from ckptool.migration.hook.hook_trace import HookTrace, trace_plan
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.container_limits import (
    SAFETENSORS,
    TORCH,
    check_container_limits,
    list_left_out,
)
from ckptool.migration.plan.conversion import find_stripped_places, restrict_draft, strip_places
from ckptool.migration.plan.draft import Draft, create_draft
from ckptool.migration.plan.plan_file import Plan, format_plan
from ckptool.migration.plan.value_sources import ValueSources, describe_rounding
from ckptool.migration.planning import (
    PlannedResult,
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
)
from ckptool.migration.source_guard import SourceGuard
from ckptool.migration.write import tied_items
from ckptool.migration.write.background_fingerprints import BackgroundFingerprints
from ckptool.migration.write.early_copy import EarlyCopy
from ckptool.migration.write.file import (
    compute_header_room,
    order_tensors,
)
from ckptool.migration.write.inflate_storages import inflate_storages
from ckptool.migration.write.provenance import check_record_target, find_record
from ckptool.migration.write.sidecar_files import is_web_location, list_sidecar_files
from ckptool.migration.write.torch_pickle import TorchFile, build_torch_file
from ckptool.model import Checkpoint, ModuleInfo
from ckptool.phrases import MAX_NAMED, describe_missing_parts, join_limited, quote_code
from ckptool.values.batches.batch_runner import is_threadable
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
    _reject_unread_shards(request, to)
    with (
        raise_on_signal(),
        gather_outputs(),
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
    """Open the source, choose, apply and check the plan, and write the result if it is wanted."""
    conversion = request.conversion
    source_guard = _guard_source(request.source)
    _check_targets(request, to, source_guard)
    checkpoint = _open_source_checkpoint(request, anonymous_file)
    _guard_remote_files(request.source, checkpoint, source_guard)
    stripped_places = find_stripped_places(checkpoint, conversion.strip if conversion else ())
    checkpoint = strip_places(checkpoint, stripped_places)
    _start_early_work(request, to, checkpoint, fingerprints, early_copy)
    target_module = _load_module(request, checkpoint)
    module_info = target_module.module_info if target_module else None
    draft = _create_source_draft(request, to, checkpoint, module_info, stripped_places)
    sources = ValueSources(
        target_module,
        request.donor,
        anonymous_file,
        source_guard,
        request.limits,
        follows_chain=request.follows_chain,
    )
    sources.require_donor()
    suggested = choose_plan(request, draft, target_module, sources)
    planned = apply_suggested(request, to, suggested, draft, target_module, sources)
    trace = _check_trace(request, suggested.plan, draft, sources)
    notes = _collect_notes(request, to, planned.result, sources, module_info)
    check_outcome(request, planned, target_module)
    torch_file = _build_output_file(request, to, planned, stripped_places)
    applied_plan = AppliedPlan(
        request, to, planned, target_module, source_guard, fingerprints, early_copy, torch_file,
        suggested.keys_to_confirm,
    )  # fmt: skip
    try:
        written = UNWRITTEN if request.dry_run else applied_plan.write_result()
    except UnconfirmedRenamesError as error:
        raise add_undecided_hint(ask_again(suggested, checkpoint, error), request) from error
    save_plan(request, format_plan(suggested.plan))
    result = applied_plan.describe_result(written)
    notes = notes if conversion else (*notes, *_describe_changes(torch_file))
    return dataclasses.replace(result, notes=notes, trace=trace, stripped_places=stripped_places)


def _guard_source(source: Location) -> SourceGuard:
    """Return a guard of a local source; of an index, the folder with its shards."""
    source_guard = SourceGuard()
    is_index = source.name.endswith(".json") or source.name == ".metadata"
    if isinstance(source, Path):
        source_guard.add_path(source.parent if is_index else source)
    return source_guard


def _guard_remote_files(
    source: Location, checkpoint: Checkpoint, source_guard: SourceGuard
) -> None:
    """Guard the files of a remote source, which are known once it is open."""
    if isinstance(source, RemotePath):
        for file in checkpoint.files or (checkpoint.path,):
            source_guard.add_path(file)


def _create_source_draft(
    request: MigrationRequest,
    to: str,
    checkpoint: Checkpoint,
    module_info: ModuleInfo | None,
    stripped_places: Sequence[str],
) -> Draft:
    """Return the source's selected state as a draft, with its ties and without what is stripped."""
    state = select_state(checkpoint, module_info, request, to)
    draft = tied_items.restore_ties(create_draft(checkpoint, state))
    draft = replace(draft, is_extracted=request.writes_state_alone)
    return (
        restrict_draft(draft, request.conversion, stripped_places) if request.conversion else draft
    )


def _check_trace(
    request: MigrationRequest, plan: Plan, draft: Draft, sources: ValueSources
) -> HookTrace | None:
    """Return the trace of the plan if the request checks it; None if not.

    Raises:
        PlanError: the check refuses a step.
    """
    if not request.check_trace:
        return None
    trace = trace_plan(plan, draft, sources)
    request.check_trace(trace)
    return trace


def _build_output_file(
    request: MigrationRequest,
    to: str,
    planned: PlannedResult,
    stripped_places: Sequence[str],
) -> TorchFile | None:
    """Return the pickle of a .pth; None if the result is another container, or a folder."""
    if to != TORCH or request.is_sharded:
        return None
    return build_torch_file(
        planned.result,
        request.limits,
        has_changes=planned.is_rewritten or request.conversion is not None,
        conversion=request.conversion,
        stripped_places=stripped_places,
    )


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
    if request.is_sharded and (files := list_sidecar_files(checkpoint, request.source)):
        notes = (*notes, f"also copied: {', '.join(file.name for file in files)}")
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
    checkpoint = open_weights(request.source, request.limits)
    if checkpoint.damage:
        raise PlanError(f"{checkpoint.path}: is not migrated: {checkpoint.damage}")
    if checkpoint.missing_parts and request.module is None and request.plan is None:
        raise PlanError(f"{checkpoint.path}: {describe_missing_parts(checkpoint.missing_parts)}")
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
        and is_threadable(state.nbytes, len(state.tensors))
        and all(
            tensor.dtype in SAFETENSORS_DTYPES and tensor.span for tensor in state.tensors.values()
        )
    ):
        items = create_draft(checkpoint, state).untied_items
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


def _reject_unread_shards(request: MigrationRequest, to: str) -> None:
    """Check that the framework whose weights the source has loads shards of this format.

    Raises:
        UsageError: it does not.
    """
    if request.max_shard_size is None:
        return
    model_folder = find_model_folder(request.source)
    loader = model_folder.loader if model_folder is not None else ""
    suffix = ".safetensors" if to == SAFETENSORS else ".bin"
    framework = find_unsharded_loader(request.source.name, loader, suffix)
    if framework:
        names = join_limited([n for n in LOOKUP_ORDERS[framework] if is_weights_name(n)], MAX_NAMED)
        raise UsageError(
            f"--max-shard-size: {framework} loads one file ({names}) and no shards of {suffix} "
            "files: leave the option out"
        )


def _check_targets(request: MigrationRequest, to: str, source_guard: SourceGuard) -> None:
    inputs = [path for path in (request.source, request.donor) if isinstance(path, Path)]
    inputs += source_guard.local_files
    _check_distinct_targets(request, to)
    for path in (request.save_plan, *request.hook_files):
        if path is not None:
            check_target(path, inputs, force=request.force, folder=False)
    if request.target is None:
        if not request.dry_run:
            raise UsageError("no output was given: -o DST, or --dry-run to see only the plan")
        return
    if request.dry_run:
        return
    check_target(request.target, inputs, force=request.force, folder=request.is_sharded)
    if request.record_provenance and to == TORCH and not request.is_sharded:
        check_record_target(request.target, inputs, force=request.force)


def _check_distinct_targets(request: MigrationRequest, to: str) -> None:
    """Raise UsageError if two of the files that are written have one name."""
    record = find_record(request.target) if request.target and to == TORCH else None
    targets = [
        ("--save-plan", request.save_plan),
        ("-o", request.target),
        ("the provenance record of -o", record if request.record_provenance else None),
        *(("--emit-hook", path) for path in request.hook_files),
    ]
    names: dict[Path, str] = {}
    for name, path in targets:
        if path is None:
            continue
        place = path.parent.resolve() / path.name
        if place in names:
            raise UsageError(f"{names[place]} and {name} are the same file, {path}: choose another")
        names[place] = name


def _load_module(request: MigrationRequest, checkpoint: Checkpoint) -> "TargetModule | None":
    if request.module is None:
        return None
    target_module = request.module(checkpoint)
    return target_module.restrict(request.into) if request.into else target_module
