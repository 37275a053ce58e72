"""Checkpoint x chain -> the checkpoint at a later revision, and UpgradeReport."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ckptool.commands.revisions.chain_migration import MoveOptions, move_to_revision
from ckptool.commands.revisions.chain_steps import Direction
from ckptool.commands.revisions.project_chain import build_options
from ckptool.commands.sources.checkpoint_paths import PathLike
from ckptool.config import ProjectConfig
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.reports.revisions.upgrade import UpgradeReport

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
    options = MoveOptions(
        to, from_, at, run_python, drop_extra, force, dry_run, limits=limits, progress=progress
    )
    chain_options = build_options(config, module, kwargs, loader, chain)
    return move_to_revision(Direction.UPGRADE, source, target, chain_options, options)
