"""Checkpoint x chain -> the checkpoint at an earlier revision, and UpgradeReport."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.commands.revisions.chain_migration import MovedFile, MoveOptions, move_checkpoint
from ckptool.commands.revisions.project_chain import find_project_chain
from ckptool.commands.revisions.upgrade import build_options, describe_outcome, require_target
from ckptool.commands.target import PathLike
from ckptool.config import ProjectConfig
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import parse_location
from ckptool.reports.revisions.upgrade import UpgradeReport, build_upgrade_report

if TYPE_CHECKING:
    from torch import nn

_NOT_COMPARED = "the earlier file: the stamp does not record one at that revision"


def downgrade(  # noqa: PLR0913
    source: PathLike,
    target: PathLike | None = None,
    *,
    to: str,
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
    """Write a checkpoint at an earlier revision, if each step between them can be undone.

    Args:
        source: the checkpoint; it is never modified.
        target: path of the result; None with `dry_run` only.
        to: the revision: "base", an identifier or the start of one, the name or number of a file.
        from_: the revision that the source is at; None takes its stamp, or recognises it.
        at: dotted place of the state in the file; None takes the one that fits best.
        module: as for `upgrade`.
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
        RevisionError: a step cannot be undone; else as for `upgrade`.
        ReadError, ModuleError, PlanError, WriteError, UsageError: as for `upgrade`.
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
        is_downgrade=True,
    )
    outcome = describe_outcome("downgrade", moved, is_same_as_earlier=compare_with_earlier(moved))
    if outcome.is_same_as_earlier is None and moved.steps and not outcome.unchecked:
        outcome = replace(outcome, unchecked=_NOT_COMPARED)
    return build_upgrade_report(outcome)


def compare_with_earlier(moved: MovedFile) -> bool | None:
    """Return whether the result has the content of the file that was upgraded; None if unknown.

    The stamp records the content digest of that file's state, and the revision that it was at.
    """
    stamp, digests = moved.standing.stamp, moved.result.digests
    if stamp is None or digests is None or stamp.source_revision != moved.end.revision:
        return None
    recorded_digest = moved.standing.source_digest
    return digests.result == recorded_digest if recorded_digest else None
