"""Checkpoints x chain -> CurrentReport: the revision that each of them is at."""

from collections.abc import Sequence
from pathlib import Path

from ckptool.commands.revisions.project_chain import build_options, find_project_chain
from ckptool.commands.target import PathLike, list_paths, open_checkpoint_or_stdin
from ckptool.config import ProjectConfig
from ckptool.errors import NoStateError, ReadError, RevisionError, UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import parse_location
from ckptool.reports.revisions.current import (
    CurrentReport,
    StandingReport,
    build_current_report,
)
from ckptool.revisions.chain import Chain
from ckptool.revisions.standing import Standing, find_standing


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
    rows: list[StandingReport] = []
    for path in named:
        location = parse_location(path)
        revision_chain = find_project_chain(options, location, needs_module=False).read()
        revision_chain.require_one_head()
        try:
            checkpoint = open_checkpoint_or_stdin(location, limits)
            rows.append(
                _describe_standing(
                    str(location), find_standing(checkpoint, revision_chain, at), revision_chain
                )
            )
        except (ReadError, NoStateError, RevisionError) as error:
            if len(named) == 1:
                raise
            rows.append(StandingReport(path=str(location), error=str(error)))
    return build_current_report(rows)


def _describe_standing(path: str, standing: Standing, chain: Chain) -> StandingReport:
    is_known = standing.is_known and standing.revision is not None
    behind = chain.list_between(standing.revision, chain.head) if standing.revision else ()
    return StandingReport(
        path=path,
        at=standing.state.at,
        revision=standing.revision.revision if is_known and standing.revision else "",
        name=standing.revision.name if is_known and standing.revision else "",
        known_by=str(standing.kind),
        is_head=is_known and standing.revision == chain.head,
        behind=len(behind) if is_known else 0,
        text=standing.text,
        note="; ".join(filter(None, (standing.note, *(o.text for o in standing.others)))),
    )
