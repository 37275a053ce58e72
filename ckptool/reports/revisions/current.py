"""CurrentReport: the result of `current`."""

from collections.abc import Sequence

from msgspec import Struct

from ckptool.phrases import pluralize
from ckptool.policy import ExitCode
from ckptool.reports.common import Report


class CurrentRevisionReport(Struct, frozen=True, kw_only=True):
    """The revision of one checkpoint."""

    path: str
    at: str = ""
    revision: str = ""
    """Identifier of its revision, "" if it is not known."""
    name: str = ""
    """Name of the revision's file, "" if it is not known."""
    known_by: str = ""
    """"stamped", "named" (--from), "recognised", "ambiguous", "unknown", "of another project",
    "newer than the code" or "contradicted"; "" if the file could not be read."""
    is_head: bool = False
    behind: int = 0
    """Number of revisions between it and the head."""
    text: str = ""
    note: str = ""
    error: str = ""
    """Why the file could not be read, "" if it could."""


class CurrentReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"PATH is at NAME, by its stamp; it is the head", or "2 of 3 checkpoints are at the head"."""
    checkpoints: tuple[CurrentRevisionReport, ...]


def build_current_report(rows: Sequence[CurrentRevisionReport]) -> CurrentReport:
    """Build the report; a file whose revision is not known makes it "could not check"."""
    is_known = all(row.name for row in rows)
    return CurrentReport(
        command="current",
        findings=(),
        skipped=(),
        exit_code=ExitCode.PASSED if is_known else ExitCode.COULD_NOT_CHECK,
        verdict=_format_verdict(rows),
        checkpoints=tuple(rows),
    )


def format_current_revision(row: CurrentRevisionReport) -> str:
    """Return the revision of a file, how it is known, and how far the head is."""
    if row.error:
        return row.error
    if not row.name:
        return row.text
    if row.is_head:
        return f"{row.text}; it is the head"
    return f"{row.text}; the head is {pluralize(row.behind, 'revision')} later"


def _format_verdict(rows: Sequence[CurrentRevisionReport]) -> str:
    if len(rows) == 1:
        return f"{rows[0].path} {format_current_revision(rows[0])}"
    heads = sum(row.is_head for row in rows)
    return f"{heads} of {pluralize(len(rows), 'checkpoint')} at the head"
