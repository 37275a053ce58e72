"""HistoryReport: the result of `history`."""

from collections.abc import Sequence

from msgspec import Struct

from ckptool.phrases import pluralize
from ckptool.policy import ExitCode
from ckptool.reports.common import Report


class RevisionRowReport(Struct, frozen=True, kw_only=True):
    """One revision of a chain."""

    name: str
    revision: str
    parent: str
    """Identifier of the revision before it, "" for the first."""
    message: str
    date: str
    keys: int
    steps: int
    python: str
    """File with its function, "" if it has steps."""
    irreversible: str
    """Why `downgrade` cannot undo it, "" if it can."""
    fixture: str
    """Its old file, "" without one."""
    is_head: bool


class HistoryReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"3 revisions, head NAME", or that there are several heads."""
    folder: str
    project: str
    revisions: tuple[RevisionRowReport, ...]
    """The head first."""


def build_history_report(
    folder: str, project: str, rows: Sequence[RevisionRowReport], problem: str
) -> HistoryReport:
    """Build the report; `problem` says that there are several heads, "" if there is one."""
    head = next(row.name for row in rows if row.is_head)
    return HistoryReport(
        command="history",
        findings=(),
        skipped=(),
        exit_code=ExitCode.COULD_NOT_CHECK if problem else ExitCode.PASSED,
        verdict=problem or f"{pluralize(len(rows), 'revision')}, head {head}",
        folder=folder,
        project=project,
        revisions=tuple(rows),
    )
