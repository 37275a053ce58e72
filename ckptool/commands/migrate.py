"""Checkpoint x module or plan -> MigrateReport and the migrated file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as replace_field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptool.commands.comparison.previews import add_module_diff_previews, add_state_previews
from ckptool.commands.migrating.plan_refusal import refuse_errors
from ckptool.commands.migrating.result_run import ForwardOptions, make_forward_check
from ckptool.commands.sources.batch import choose_suffix, list_sources, run_batch
from ckptool.commands.sources.checkpoint_paths import PathLike, require_local_path
from ckptool.commands.sources.module_choice import ModuleOptions, find_target, require_frameworks
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.commands.sources.pipeline_files import find_pipeline
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.migration_requests import load_target_module
from ckptool.commands.worker.worker import get_worker
from ckptool.compare.module_diff import ModuleDiff
from ckptool.config import ProjectConfig
from ckptool.errors import UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import Location, parse_location
from ckptool.migration.request import MigrationRequest, MigrationResult
from ckptool.phrases import join_limited
from ckptool.policy import Policy, judge
from ckptool.reports.migrate import (
    MigrateManyReport,
    MigrateReport,
    build_many_report,
    build_migrate_report,
)
from ckptool.rules import Finding, run_rules

if TYPE_CHECKING:
    from torch import nn

    from ckptool.migration.check.plan_outcome import PlanOutcome
    from ckptool.migration.hook.hook_trace import HookTrace
    from ckptool.migration.plan.plan_file import Plan
    from ckptool.migration.plan.target_module import TargetModule
    from ckptool.model import Checkpoint


def migrate(  # noqa: PLR0913
    source: PathLike,
    target: PathLike | None = None,
    *,
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    kwargs: Mapping[str, object] | None = None,
    fresh: "Callable[[], nn.Module] | None" = None,
    loader: str | None = None,
    at: str | None = None,
    into: str | None = None,
    base: PathLike | None = None,
    to: str | None = None,
    plan: "str | Path | Plan | None" = None,
    reverse: bool = False,
    inject: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    renames: Mapping[str, str] | None = None,
    accept_renames: bool = False,
    from_: PathLike | None = None,
    merge_adapter: PathLike | None = None,
    drop_extra: bool = False,
    force: bool = False,
    dry_run: bool = False,
    save_plan: PathLike | None = None,
    emit_hook: PathLike | None = None,
    max_shard_size: int | None = None,
    links: bool = True,
    provenance: bool = True,
    inputs: object = None,
    device: str = "auto",
    old_module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    tolerance: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
    config: ProjectConfig | None = None,
    pictures: bool = False,
) -> MigrateReport:
    """Write a checkpoint that a module loads strictly; with `dry_run` only return the plan.

    Args:
        source: the checkpoint; it is never modified.
        target: path of the result; replaced atomically.
        module: "package.module:Name", a live module, or a class or function to call; None takes
            the configuration's; if there is none either, the state is only converted and no plan is
            derived.
        kwargs: constructor arguments; for a live module, those it was built with.
        fresh: function that builds a module like a live one, if `kwargs` do not determine it.
        loader: framework whose loader loads it ("transformers", ...), or "torch" for
            load_state_dict; None selects it by the folder.
        at: dotted place of the state in the file ("state_dict"), or of the part of a state whose
            keys begin so ("encoder"); None takes the best match.
        into: path of the sub-module of the module ("encoder") that the result is for: the keys get
            it as prefix, and the rest of the module is not looked at.
        base: folder of an adapter's base model; None takes the one that its configuration names.
        to: "safetensors" or "pth"; None decides by the target's suffix.
        plan: a plan, or the path of a plan file; None derives the plan.
        reverse: invert the plan.
        inject: key, or pattern of missing keys, -> source of its value: "attribute", "constructor",
            "file:PATH#KEY" (`#*`: the same key), "npz:PATH#KEY", "literal:VALUE", "seed:N" or
            "zeros".
        drop: keys to leave out.
        renames: key or pattern in the file -> key or pattern in the module; `*` stands for one
            segment, at the end for all that follow.
        accept_renames: take renames that nothing proves where nothing else fits as well.
        from_: a pickled module, or another file, whose attributes are used as well.
        merge_adapter: folder of the base that the adapter in `source` is merged into; `target` is
            then a new folder.
        drop_extra: write the state alone, without what lies around it in the source.
        force: replace an existing target.
        dry_run: write nothing.
        save_plan: path to write the plan to.
        emit_hook: path of a Python file to write the plan to, as a hook with which the module loads
            old state_dicts itself; its test is written next to it.
        max_shard_size: maximum bytes of one file of a folder.
        links: unchanged files of a folder may be hard links to the source's.
        provenance: record the plan and the digests in the result.
        inputs: arguments of forward, as for `verify`: the result is then run before it is placed.
        device: device to run it on.
        old_module: the module of the source, which must then compute the same outputs.
        tolerance: absolute and relative tolerance for its outputs; None is exact on the same
            device.
        progress: called with the number of bytes written since the last call.
        policy: reported findings about the result.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.
        pictures: read the values of small buffers, for drawing.

    Raises:
        ReadError: the source cannot be read.
        ModuleError: the module cannot be imported or built.
        PlanError: questions are open, or the plan does not apply.
        WriteError: the result could not be completed; the target is unchanged.
        UsageError: the options exclude each other.
    """
    from ckptool.commands.fixing.hook_files import list_hook_files
    from ckptool.commands.sources.merge_adapter import MergeRequest, merge_into_base
    from ckptool.migration.plan.suggest import PlanChoices
    from ckptool.migration.run import open_migration

    location, judging_policy = parse_location(source), policy or Policy()
    if merge_adapter is not None:
        _reject_unused_merge_options({
            "-m": module, "-k": kwargs or None, "--loader": loader, "--at": at, "--into": into,
            "--base": base, "--to": to, "--plan": plan, "--inject": inject or None,
            "--drop": drop or None, "--rename": renames or None, "--from": from_,
            "--accept-renames": accept_renames or None, "--drop-extra": drop_extra or None,
            "--save-plan": save_plan, "--emit-hook": emit_hook, "--input": inputs,
            "--max-shard-size": max_shard_size, "--no-links": None if links else True,
            "--device": None if device == "auto" else device, "--old-module": old_module,
            "--tolerance": tolerance,
        })  # fmt: skip
        base, folder = parse_location(merge_adapter), _require_new_folder(target, dry_run=dry_run)
        merge = MergeRequest(location, base, folder, limits, dry_run, force, provenance)
        return merge_into_base(merge)
    module_options = ModuleOptions(module, kwargs, at, into, loader, base, fresh)
    module_target = find_target(location, module_options, config)
    _reject_whole_module_options(into, module_target, emit_hook, inputs)
    worker = get_worker()
    forward_options = ForwardOptions(inputs, device, old_module, from_, tolerance)
    load_module = partial(load_target_module, worker, module_target) if module_target else None
    request = MigrationRequest(
        source=location,
        target=None if target is None else require_local_path(target),
        module=load_module,
        at=module_target.at if module_target else at,
        into=into or "",
        to=to,
        plan=_read_plan(plan),
        plan_name=str(plan) if isinstance(plan, str | Path) else "",
        reverse=reverse,
        choices=PlanChoices(inject or {}, tuple(drop), renames or {}, accept_renames),
        can_confirm_renames=old_module is not None and tolerance is None,
        donor=None if from_ is None else parse_location(from_),
        drop_extra=drop_extra,
        force=force,
        dry_run=dry_run,
        check_trace=_check_hook if emit_hook is not None else None,
        save_plan=None if save_plan is None else require_local_path(save_plan),
        hook_files=() if emit_hook is None else list_hook_files(require_local_path(emit_hook)),
        max_shard_size=max_shard_size,
        hard_links=links,
        record_provenance=provenance,
        limits=limits,
        progress=progress,
        check_plan=_make_plan_check(location, judging_policy, {*(inject or {}), *drop}),
        forward_check=make_forward_check(
            location, module_target, forward_options, limits, worker, dry_run=dry_run
        ),
    )
    with open_migration(request) as result:
        if emit_hook is not None:
            hook_notes = _write_hook(emit_hook, result, load_module, force=force)
            result = replace_field(result, notes=result.notes + hook_notes)  # noqa: PLW2901
        return _build_report(result, judging_policy, location, pictures=pictures)


def _reject_unused_merge_options(options: Mapping[str, object]) -> None:
    """Raise UsageError for options that --merge-adapter does not use; those left out are None."""
    reject_unused_options(
        {option: value is not None for option, value in options.items()},
        "has no use here: --merge-adapter takes the adapter's folder, its base and -o FOLDER",
    )


def _require_new_folder(target: PathLike | None, *, dry_run: bool) -> Path | None:
    """Return the folder that --merge-adapter writes; None, which only a dry run may have.

    Raises:
        UsageError: it is missing, or remote.
    """
    if target is None and not dry_run:
        raise UsageError("--merge-adapter writes a new folder: name it with -o FOLDER")
    return None if target is None else require_local_path(target)


def _reject_whole_module_options(
    into: str | None,
    module_target: ModuleTarget | None,
    emit_hook: PathLike | None,
    inputs: object,
) -> None:
    """Raise UsageError for what a part of a module, which --into selects, does not have."""
    if into is None:
        return
    conflicts = {
        "--emit-hook": (emit_hook, "is for a whole module, and --into selects a part"),
        "--input": (inputs, "runs the whole module, and --into selects a part"),
    }
    reject_unused_options(
        {"--into": module_target is None}, "selects a submodule: -m package.module:Name is required"
    )
    for option, (value, reason) in conflicts.items():
        reject_unused_options({option: value is not None}, reason)


def _make_plan_check(
    location: Location, policy: Policy, answered_keys: set[str]
) -> "Callable[[PlanOutcome], None]":
    """Return what refuses a plan whose result has errors that the options do not answer."""

    def judge_diff(diff: ModuleDiff) -> tuple[Finding, ...]:
        return run_rules([diff], location)

    return partial(refuse_errors, location, policy, answered_keys, judge_diff)


def _read_plan(plan: "str | Path | Plan | None") -> "Plan | None":
    from ckptool.migration.plan.plan_file import read_plan_file

    return read_plan_file(Path(plan)) if isinstance(plan, str | Path) else plan


def _build_report(
    result: MigrationResult, policy: Policy, location: Location, *, pictures: bool
) -> MigrateReport:
    module_diffs = [] if result.diff is None else [result.diff]
    differs = any(not module_diff.is_strict for module_diff in module_diffs)
    verdict = judge(run_rules(module_diffs, result.target or location), policy, differs=differs)
    migrate_report = build_migrate_report(result, verdict)
    if not pictures:
        return migrate_report
    return (
        add_module_diff_previews(migrate_report, result.diff)
        if result.diff
        else add_state_previews(migrate_report, result.state)
    )


def _check_hook(trace: "HookTrace") -> None:
    """Check that a hook can do all steps of a plan.

    Raises:
        PlanError: it cannot do one; the message names it.
    """
    from ckptool.migration.hook.step_code import write_steps

    write_steps(trace)


def _write_hook(
    path: PathLike,
    result: MigrationResult,
    load_module: "Callable[[Checkpoint], TargetModule] | None",
    *,
    force: bool,
) -> tuple[str, ...]:
    """Write the plan as a hook, with its test; return notes on the files.

    Raises:
        PlanError: a hook cannot do a step of the plan.
        WriteError: a file exists already, or cannot be written.
    """
    from ckptool.commands.fixing.hook_files import HookRequest, build_hook_files
    from ckptool.formats.files.output_group import write_files

    assert result.trace is not None
    files, notes = build_hook_files(
        HookRequest(
            require_local_path(path),
            result.trace,
            result.plan,
            result.state,
            result.module_info,
            result.module_info.target if result.module_info else "",
            load_module,
        )
    )
    write_files(files, force=force)
    names = ", ".join(file.name for file in files)
    return (*notes, f"wrote {names}")


def migrate_many(
    sources: Sequence[PathLike],
    folder: PathLike,
    *,
    to: str | None = None,
    dry_run: bool = False,
    **options: Any,
) -> MigrateManyReport:
    """Migrate several checkpoints into a folder; an error of one does not stop the others.

    Args:
        sources: checkpoints; a folder stands for the checkpoints in it.
        folder: for the results, which have the sources' names.
        to: "safetensors" or "pth"; None is safetensors.
        dry_run: write nothing.
        options: of `migrate`, the same for all.

    Raises:
        ReadError: a folder has no checkpoint.
        WriteError: the folder cannot be made.
        UsageError: two sources have one name, or an option is for one source.
    """
    for name in ("save_plan", "emit_hook", "merge_adapter"):
        option = f"--{name.replace('_', '-')}"
        if options.get(name) is not None:
            places = join_limited([str(s.location) for s in list_sources(sources)], 4)
            raise UsageError(f"{option} is for one source: give one of {places}")
    if options.get("module") is None:
        for pipeline in filter(None, map(find_pipeline, map(parse_location, sources))):
            require_frameworks(pipeline)
    suffix = "" if options.get("max_shard_size") else choose_suffix(to)
    batch = run_batch(
        list_sources(sources, to),
        require_local_path(folder),
        suffix,
        partial(migrate, to=to, dry_run=dry_run, **options),
        dry_run=dry_run,
        force=bool(options.get("force")),
    )
    return build_many_report(batch.reports, batch.errors)
