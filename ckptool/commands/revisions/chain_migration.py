"""Checkpoint x chain -> the file at another revision: what `upgrade` and `downgrade` share."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from ckptool.commands.revisions.chain_steps import (
    ChainRun,
    ChainStep,
    list_reverse_steps,
    list_steps,
    open_chain_plan,
)
from ckptool.commands.revisions.project_chain import ProjectChain
from ckptool.commands.target import open_checkpoint_or_stdin
from ckptool.commands.worker.migration_requests import load_target_module
from ckptool.commands.worker.worker import ModuleWorker, get_worker, start_early
from ckptool.errors import RevisionError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import Location
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.request import MigrationRequest, MigrationResult
from ckptool.migration.run import run_migration
from ckptool.migration.write.provenance import RevisionStamp
from ckptool.model import Checkpoint
from ckptool.revisions.chain import Chain
from ckptool.revisions.revision import Revision
from ckptool.revisions.standing import Standing, find_standing

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule


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

    standing: Standing
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


def move_checkpoint(
    source: Location,
    target: Path | None,
    project_chain: ProjectChain,
    options: MoveOptions,
    *,
    is_downgrade: bool,
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
    standing = find_standing(checkpoint, chain, options.at, options.from_)
    start = require_revision(checkpoint, standing)
    steps = _find_steps(source, chain, start, end, is_downgrade=is_downgrade)
    load_module = _find_module_loader(project_chain, chain, end, worker)
    assert standing.difference is not None
    run = ChainRun(
        checkpoint,
        standing.state,
        standing.prefix,
        start.state.ties,
        standing.difference,
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
                at=standing.state.at,
                plan=chain_plan.plan,
                recorded_plan=chain_plan.recorded_plan,
                stamp=RevisionStamp(
                    chain.project, end.revision, "" if standing.prefix else start.revision
                ),
                drop_extra=options.drop_extra,
                force=options.force,
                dry_run=options.dry_run,
                limits=options.limits,
                progress=options.progress,
            )
        )
    return MovedFile(
        standing,
        start,
        end,
        steps,
        result,
        chain_plan.recorded_plan,
        end == chain.head,
        chain_plan.unchecked,
    )


def require_revision(checkpoint: Checkpoint, standing: Standing) -> Revision:
    """Return the revision that a file is at.

    Raises:
        RevisionError: it is not known.
    """
    if not standing.is_known or standing.revision is None:
        raise RevisionError(f"{checkpoint.path}: {standing.text}")
    return standing.revision


def needs_module(steps: tuple[ChainStep, ...]) -> bool:
    """Whether a step takes a value from the constructor of today's module."""
    sources = [getattr(op, "source", "") for step in steps for op in step.revision.plan.ops]
    return any(source.partition(":")[0] in {"constructor", "seed"} for source in sources)


def _find_steps(
    source: Location, chain: Chain, start: Revision, end: Revision, *, is_downgrade: bool
) -> tuple[ChainStep, ...]:
    if is_downgrade:
        undone = chain.list_between(end, start)
        if not undone and start != end:
            raise RevisionError(
                f"{source}: is at {start.name}, which comes before {end.name}: ckptool upgrade"
            )
        return list_reverse_steps(end, undone)
    taken = chain.list_between(start, end)
    if not taken and start != end:
        raise RevisionError(
            f"{source}: is at {start.name}, which comes after {end.name}: ckptool downgrade"
        )
    return list_steps(taken)


def _find_module_loader(
    project_chain: ProjectChain, chain: Chain, end: Revision, worker: ModuleWorker
) -> "Callable[[Checkpoint], TargetModule] | None":
    """Return what gives today's module, which loads files at the head; None for another end."""
    target = project_chain.module_target
    if target is None or end != chain.head:
        return None
    return partial(load_target_module, worker, target)
