"""Checkpoint x chain -> the file at another revision, and UpgradeReport: up or down."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.commands.revisions.chain_steps import (
    ChainRun,
    ChainStep,
    Direction,
    list_reverse_steps,
    list_steps,
    open_chain_plan,
)
from ckptool.commands.revisions.project_chain import (
    ChainOptions,
    ProjectChain,
    find_project_chain,
    format_revision_command,
)
from ckptool.commands.revisions.unrecorded_change import describe_module, find_unrecorded_change
from ckptool.commands.sources.checkpoint_paths import (
    PathLike,
    open_checkpoint_or_stdin,
    require_local_path,
)
from ckptool.commands.sources.pipeline_files import find_pipeline
from ckptool.commands.worker.migration_requests import load_target_module
from ckptool.commands.worker.worker import ModuleWorker, get_worker, start_early
from ckptool.compare.digest import digest_checkpoint
from ckptool.errors import RevisionError, StrictLoadError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.files.output_group import find_written_path
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.loaders.model_folder import list_components
from ckptool.locations import Location, parse_location
from ckptool.migration.plan.container_limits import SAFETENSORS, TORCH
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.request import MigrationRequest, MigrationResult
from ckptool.migration.run import run_migration
from ckptool.migration.write.provenance import RevisionStamp
from ckptool.model import Checkpoint, Container
from ckptool.phrases import MAX_NAMED, join_limited, quote_code, quote_path, quote_shell
from ckptool.reports.common import format_load_failure
from ckptool.reports.revisions.upgrade import MoveOutcome, UpgradeReport, build_upgrade_report
from ckptool.revisions.chain import Chain
from ckptool.revisions.current_revision import CurrentRevision, find_current_revision
from ckptool.revisions.revision import Revision

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule

_SHARDED: Final = frozenset({Container.SHARDED_SAFETENSORS, Container.SHARDED_TORCH})
_NOT_COMPARED: Final = "the earlier file: the stamp has no digest of one at that revision"
_NOT_LOADED: Final = "today's module loads files at the head of the chain only"


class MoveOptions(Struct, frozen=True):
    """How a file is brought to another revision."""

    to: str
    from_: str | None = None
    at: str | None = None
    run_python: bool = True
    drop_extra: bool = False
    force: bool = False
    dry_run: bool = False
    limits: Limits = DEFAULT_LIMITS
    progress: Callable[[int], None] = lambda _: None


class MovedFile(Struct, frozen=True):
    """A file that was brought to another revision."""

    current_revision: CurrentRevision
    start: Revision
    end: Revision
    steps: tuple[ChainStep, ...]
    result: MigrationResult
    recorded_plan: Plan
    """The steps without temporary files, as the record has them."""
    is_head: bool
    """Whether it is at the head now."""
    unchecked: str
    """Why results were not compared with what the revisions record, "" if they were."""


def move_to_revision(
    direction: Direction,
    source: PathLike,
    target: PathLike | None,
    chain_options: ChainOptions,
    options: MoveOptions,
) -> UpgradeReport:
    """Write the file at another revision of its project's chain, and report it.

    Raises:
        UsageError: there is no target, and it is not a dry run; or a pipeline would become one
            folder of weights.
        CkptoolError: as for `move_checkpoint`.
    """
    if target is None and not options.dry_run:
        raise UsageError("no output was given: -o OUT, or --dry-run to see only the steps")
    location = parse_location(source)
    target_path = None if target is None else require_local_path(target)
    _require_one_model(direction, location, target_path)
    project_chain = find_project_chain(chain_options, location)
    try:
        moved = move_checkpoint(direction, location, target_path, project_chain, options)
        _require_planned_load(moved)
    except StrictLoadError as error:
        chain = project_chain.read()
        change = find_unrecorded_change(chain, describe_module(project_chain, direction))
        if not change.difference:
            raise
        raise RevisionError(
            f"{error}: the state of the module changed since {change.head}, and no revision "
            f"covers that: draft it with {format_revision_command(chain_options)}"
        ) from error
    return build_upgrade_report(_describe_outcome(direction, moved))


def _require_planned_load(moved: MovedFile) -> None:
    """Check that today's module would load the result of a dry run, as a written file is checked.

    Raises:
        StrictLoadError: it would not.
    """
    result, diff = moved.result, moved.result.diff
    is_checked = result.digests is None and diff is not None and diff.unchecked_load is None
    if is_checked and diff is not None and not diff.is_strict:
        failure = format_load_failure(diff, "would not load strictly")
        raise StrictLoadError(f"{result.checkpoint.path}: {failure}")


def _require_one_model(direction: Direction, source: Location, target: Path | None) -> None:
    """Check that a pipeline is not written as a folder, in which its models are not separate.

    Raises:
        UsageError: it would be.
    """
    pipeline = find_pipeline(source)
    if pipeline is None or target is None or target.suffix:
        return
    names = [*list_components(pipeline)]
    source_text, target_text = (
        quote_path(str(Path(str(folder)) / next(iter(names), "MODEL")))
        for folder in (source, target)
    )
    raise UsageError(
        f"{source}: a pipeline has its models in folders of their own "
        f"({join_limited(names, MAX_NAMED, quote_code)}), each with a chain of its own: "
        f"ckptool {direction} {source_text} -o {target_text} --chain FOLDER"
    )


def move_checkpoint(
    direction: Direction,
    source: Location,
    target: Path | None,
    project_chain: ProjectChain,
    options: MoveOptions,
) -> MovedFile:
    """Write the file at another revision of the chain.

    Raises:
        ReadError: the file cannot be read.
        RevisionError: the chain is inconsistent, or the file has no place from which a way leads.
        ModuleError: today's module, or a Python revision, raised.
        PlanError, WriteError: as for a migration.
        UsageError: code is not to be run, and a revision is code.
    """
    chain, worker = project_chain.read(), get_worker()
    chain.require_one_head()
    end = chain.find_revision(options.to)
    start_early(worker, project_chain.module_target, source)
    checkpoint = open_checkpoint_or_stdin(source, options.limits)
    current_revision = find_current_revision(checkpoint, chain, options.at, options.from_)
    start = _require_revision(checkpoint, current_revision)
    steps = _find_steps(direction, source, chain, start, end)
    load_module = _find_module_loader(project_chain, chain, end, worker)
    assert current_revision.difference is not None
    run = ChainRun(
        checkpoint,
        current_revision.state,
        current_revision.prefix,
        start.state.ties,
        current_revision.difference,
        worker,
        options.limits,
        options.run_python,
        load_module(checkpoint) if load_module and needs_module(steps) else None,
    )
    with open_chain_plan(run, steps) as chain_plan:
        result = run_migration(
            MigrationRequest(
                source=source,
                target=target,
                module=load_module,
                at=current_revision.state.at,
                to=_choose_container(checkpoint) if target is None else None,
                plan=chain_plan.plan,
                recorded_plan=chain_plan.recorded_plan,
                follows_chain=True,
                stamp=RevisionStamp(
                    chain.project, end.revision, "" if current_revision.prefix else start.revision
                ),
                drop_extra=options.drop_extra,
                force=options.force,
                dry_run=options.dry_run,
                limits=options.limits,
                progress=options.progress,
            )
        )
    return MovedFile(
        current_revision,
        start,
        end,
        steps,
        result,
        chain_plan.recorded_plan,
        end == chain.head,
        chain_plan.unchecked,
    )


def _choose_container(checkpoint: Checkpoint) -> str:
    """Return the container of a dry run without a target: that of the source."""
    is_safetensors = checkpoint.container in {Container.SAFETENSORS, Container.SHARDED_SAFETENSORS}
    return SAFETENSORS if is_safetensors else TORCH


def _require_revision(checkpoint: Checkpoint, current_revision: CurrentRevision) -> Revision:
    """Return the revision that a file is at.

    Raises:
        RevisionError: it is not known.
    """
    if not current_revision.is_known or current_revision.revision is None:
        raise RevisionError(f"{checkpoint.path}: {current_revision.text}")
    return current_revision.revision


def needs_module(steps: tuple[ChainStep, ...]) -> bool:
    """Whether a step takes a value from the constructor of today's module."""
    sources = [getattr(op, "source", "") for step in steps for op in step.revision.plan.ops]
    return any(source.partition(":")[0] in {"constructor", "seed"} for source in sources)


def compare_with_earlier(moved: MovedFile) -> bool | None:
    """Return whether the result has the content of the file that was upgraded; None if unknown.

    The stamp records the content digest of that file's state, and the revision that it was at. A
    folder of shards has digests of its shards instead, which depend on how it is divided.
    """
    stamp, result = moved.current_revision.stamp, moved.result
    if stamp is None or result.digests is None or stamp.source_revision != moved.end.revision:
        return None
    recorded_digest = moved.current_revision.source_digest
    if not recorded_digest or result.checkpoint.container in _SHARDED:
        return None
    if result.container in _SHARDED and result.target is not None:
        written = open_checkpoint(find_written_path(result.target))
        return digest_checkpoint(written, written.states[0].at).digest == recorded_digest
    return result.digests.result == recorded_digest


def _describe_outcome(direction: Direction, moved: MovedFile) -> MoveOutcome:
    """Return what the report is built from."""
    is_downgrade = direction is Direction.DOWNGRADE
    is_same = compare_with_earlier(moved) if is_downgrade else None
    is_uncompared = is_downgrade and is_same is None and bool(moved.steps)
    return MoveOutcome(
        command=str(direction),
        result=moved.result,
        plan=moved.recorded_plan,
        known_by=moved.current_revision.text,
        start=moved.start,
        end=moved.end,
        revisions=tuple(step.revision for step in moved.steps),
        is_same_as_earlier=is_same,
        unchecked=moved.unchecked or (_NOT_COMPARED if is_uncompared else ""),
        unloaded="" if moved.is_head else _NOT_LOADED,
        notes=_list_notes(direction, moved),
    )


def _list_notes(direction: Direction, moved: MovedFile) -> tuple[str, ...]:
    """Return what was not believed, and the states of the result that stay as they were."""
    current_revision, result = moved.current_revision, moved.result
    notes = [current_revision.note] if current_revision.note else []
    if result.to == TORCH and not result.is_alone:
        notes += [
            f"{other.text}, and stays as it is: ckptool {direction} --at {quote_shell(other.at)}"
            for other in current_revision.others
            if moved.end not in other.revisions
        ]
        notes += [
            f"the optimizer's state at {quote_code(state.at)} stays as it is"
            for state in result.checkpoint.states
            if state.role == "optimizer" and moved.steps
        ]
    return tuple(notes)


def _find_steps(
    direction: Direction, source: Location, chain: Chain, start: Revision, end: Revision
) -> tuple[ChainStep, ...]:
    """Return the steps from `start` to `end`, () if they are the same.

    Raises:
        RevisionError: `end` is in the other direction, or a revision cannot be undone.
    """
    is_upgrade = direction is Direction.UPGRADE
    first, last = (start, end) if is_upgrade else (end, start)
    between = chain.list_between(first, last)
    if not between and start != end:
        place, other = ("after", "downgrade") if is_upgrade else ("before", "upgrade")
        raise RevisionError(
            f"{source}: is at {start.name}, which comes {place} {end.name}: ckptool {other}"
        )
    return list_steps(between) if is_upgrade else list_reverse_steps(end, between)


def _find_module_loader(
    project_chain: ProjectChain, chain: Chain, end: Revision, worker: ModuleWorker
) -> "Callable[[Checkpoint], TargetModule] | None":
    """Return what gives today's module, which loads files at the head; None for another end."""
    target = project_chain.module_target
    if target is None or end != chain.head:
        return None
    return partial(load_target_module, worker, target)
