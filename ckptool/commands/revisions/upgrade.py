"""Checkpoint x chain -> the checkpoint at a later revision, and UpgradeReport."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ckptool.commands.revisions.chain_migration import MovedFile, MoveOptions, move_checkpoint
from ckptool.commands.revisions.project_chain import ChainOptions, find_project_chain
from ckptool.commands.target import PathLike, require_local_path
from ckptool.config import ProjectConfig, load_config
from ckptool.errors import UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import Location, parse_location
from ckptool.reports.revisions.upgrade import MoveOutcome, UpgradeReport, build_upgrade_report

if TYPE_CHECKING:
    from torch import nn


def upgrade(  # noqa: PLR0913
    source: PathLike,
    target: PathLike | None = None,
    *,
    to: str = "head",
    from_: str | None = None,
    at: str | None = None,
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    kwargs: Mapping[str, object] | None = None,
    loader: str | None = None,
    chain: str | Path | None = None,
    run_python: bool = True,
    drop_extra: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda _: None,
    limits: Limits = DEFAULT_LIMITS,
    config: ProjectConfig | None = None,
) -> UpgradeReport:
    """Write a checkpoint at a later revision of the project's chain, with its stamp.

    Args:
        source: the checkpoint; it is never modified.
        target: path of the result; None with `dry_run` only.
        to: the revision: "head", an identifier or the start of one, the name or number of a file.
        from_: the revision that the source is at; None takes its stamp, or recognises it.
        at: dotted place of the state in the file; None takes the one that fits best.
        module: today's module, which must load a file at the head strictly; None takes the
            configuration's.
        kwargs: constructor arguments.
        loader: framework whose loader is used; None selects it by the folder.
        chain: folder of the revisions; None takes `ckpt_migrations` of the configuration.
        run_python: whether revisions that are Python functions may be run.
        drop_extra: write the state alone, without what lies around it in the source.
        force: replace an existing target.
        dry_run: write nothing.
        progress: called with the number of bytes written since the last call.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.

    Raises:
        ReadError: the source cannot be read.
        RevisionError: the chain is inconsistent, or the revision of the file is not known.
        ModuleError: the module cannot be built, or a Python revision raised.
        PlanError, WriteError: the result could not be completed; the target is unchanged.
        UsageError: the options exclude each other.
    """
    location = parse_location(source)
    moved = move_checkpoint(
        location,
        require_target(target, dry_run=dry_run),
        find_project_chain(build_options(config, module, kwargs, loader, chain), location),
        MoveOptions(
            to,
            from_,
            at,
            run_python,
            drop_extra=drop_extra,
            force=force,
            dry_run=dry_run,
            limits=limits,
            progress=progress,
        ),
        is_downgrade=False,
    )
    return build_upgrade_report(describe_outcome("upgrade", moved))


def build_options(
    config: ProjectConfig | None,
    module: "str | nn.Module | Callable[..., nn.Module] | None",
    kwargs: Mapping[str, object] | None,
    loader: str | None,
    chain: str | Path | None,
) -> ChainOptions:
    """Return the options of a command about a chain, with the nearest configuration by default."""
    settings = load_config(Path.cwd()) if config is None else config
    return ChainOptions(settings, module, kwargs, loader, None if chain is None else Path(chain))


def require_target(target: PathLike | Location | None, *, dry_run: bool) -> Path | None:
    """Return the file to write; None in a dry run without one.

    Raises:
        UsageError: none was given.
    """
    if target is None and not dry_run:
        raise UsageError("no output was given: -o OUT, or --dry-run to see only the steps")
    return None if target is None else require_local_path(target)


def describe_outcome(
    command: str, moved: MovedFile, *, is_same_as_earlier: bool | None = None
) -> MoveOutcome:
    """Return what the report of an upgrade or a downgrade is built from."""
    standing = moved.standing
    return MoveOutcome(
        command,
        moved.result,
        moved.recorded_plan,
        standing.text,
        moved.start,
        moved.end,
        tuple(step.revision for step in moved.steps),
        is_same_as_earlier,
        moved.unchecked,
        "" if moved.is_head else "today's module loads files at the head of the chain only",
        (standing.note,) if standing.note else (),
    )
