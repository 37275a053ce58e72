"""Checkpoints x chain -> CurrentReport: the revision that each of them is at."""

from collections.abc import Sequence
from pathlib import Path

from ckptool.commands.revisions.project_chain import build_options, find_project_chain
from ckptool.commands.sources.checkpoint_paths import PathLike, list_paths, open_checkpoint_or_stdin
from ckptool.config import ProjectConfig
from ckptool.errors import NoStateError, ReadError, RevisionError, UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import parse_location
from ckptool.reports.revisions.current import (
    CurrentReport,
    CurrentRevisionReport,
    build_current_report,
)
from ckptool.revisions.chain import Chain
from ckptool.revisions.current_revision import CurrentRevision, find_current_revision


def current(
    paths: PathLike | Sequence[PathLike],
    *,
    at: str | None = None,
    module: str | None = None,
    chain: str | Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    config: ProjectConfig | None = None,
) -> CurrentReport:
    """Return the revision that each checkpoint is at, and how that is known; no module is built.

    It is the stamp that `upgrade` wrote, in the metadata of a safetensors file or in the record
    next to a .pth, and for a file without one the revision that records its keys and shapes.

    Args:
        paths: the checkpoints; an error of one does not stop the others.
        at: dotted place of the state in the files; None takes the one that fits best.
        module: chooses among the chains of a project with several.
        chain: folder of the revisions; None takes `ckpt_migrations` of the configuration.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.

    Raises:
        RevisionError: there is no chain, or it is inconsistent.
        ReadError, NoStateError: the only file cannot be read, or has no such state.
        UsageError: no file was given.
    """
    options = build_options(config, module, None, None, chain)
    named = list_paths(paths)
    if not named:
        raise UsageError("no checkpoint was given: ckptool current PATH...")
    rows: list[CurrentRevisionReport] = []
    for path in named:
        location = parse_location(path)
        revision_chain = find_project_chain(options, location, needs_module=False).read()
        revision_chain.require_one_head()
        try:
            checkpoint = open_checkpoint_or_stdin(location, limits)
            rows.append(
                _describe_revision(
                    str(location),
                    find_current_revision(checkpoint, revision_chain, at),
                    revision_chain,
                )
            )
        except (ReadError, NoStateError, RevisionError) as error:
            if len(named) == 1:
                raise
            rows.append(CurrentRevisionReport(path=str(location), error=str(error)))
    return build_current_report(rows)


def _describe_revision(
    path: str, current_revision: CurrentRevision, chain: Chain
) -> CurrentRevisionReport:
    is_known = current_revision.is_known and current_revision.revision is not None
    behind = (
        chain.list_between(current_revision.revision, chain.head)
        if current_revision.revision
        else ()
    )
    return CurrentRevisionReport(
        path=path,
        at=current_revision.state.at,
        revision=current_revision.revision.revision
        if is_known and current_revision.revision
        else "",
        name=current_revision.revision.name if is_known and current_revision.revision else "",
        known_by=str(current_revision.kind),
        is_head=is_known and current_revision.revision == chain.head,
        behind=len(behind) if is_known else 0,
        text=current_revision.text,
        note="; ".join(
            filter(None, (current_revision.note, *(o.text for o in current_revision.others)))
        ),
    )
