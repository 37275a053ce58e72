"""Report -> findings and explained errors with file and line, for the formats of CI systems."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.locations import is_remote
from ckptool.phrases import make_printable
from ckptool.render.views import digest
from ckptool.render.views.explain import format_advice, iter_placeholders
from ckptool.reports.audit import AuditReport, ProjectAuditReport
from ckptool.reports.common import FindingReport
from ckptool.reports.convert import ConvertReport
from ckptool.reports.diff import DiffModuleReport
from ckptool.reports.diff_files import DiffFilesReport
from ckptool.reports.digest import DigestReport
from ckptool.reports.explain import ExplainReport
from ckptool.reports.gate import GateReport
from ckptool.reports.inspect import InspectReport
from ckptool.reports.load import LoadReport
from ckptool.reports.lock import LockReport, ProjectLockReport
from ckptool.reports.migrate import MigrateManyReport, MigrateReport
from ckptool.reports.problems import group_by_cause
from ckptool.reports.revisions.check import ChainCheckReport
from ckptool.reports.revisions.current import CurrentReport
from ckptool.reports.revisions.upgrade import UpgradeReport
from ckptool.reports.verify import VerifyReport

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_SOURCE_LOCATION: Final = re.compile(r"(.+\.py):([0-9]+)", re.DOTALL)


MAX_OF_CAUSE: Final = 20
"""Maximum findings of one rule and one cause in a checkpoint that formats of CI systems list."""
_ALL_FINDINGS: Final = "--format json lists all"


_ERROR_LINES: Final = (ProjectAuditReport, ProjectLockReport, MigrateManyReport, ConvertReport)
"""Reports whose errors are lines that begin with the name of a module or the path of a file."""


class LocatedFinding(Struct, frozen=True):
    """A finding with its file and line."""

    finding: FindingReport
    file: str
    """The source file, else the checkpoint; "" if there is neither."""
    line: int
    """Line of the source file, from 1; 0: none."""
    silenced: str = ""
    """"waiver" or "baseline" if the finding does not count, else ""."""
    reason: str = ""

    @property
    def title(self) -> str:
        return f"{self.finding.code} {self.finding.name}"


def _iter_located_findings(report: "AnyReport", root: Path | None) -> Iterator[LocatedFinding]:
    """Yield the findings that count, then the silenced ones."""
    for finding in report.findings:
        yield _locate_finding(finding, report, root, "", "")
    for entry in report.silenced:
        yield _locate_finding(entry.finding, report, root, entry.by, entry.reason)


class OmittedFindings(Struct, frozen=True):
    """Findings of one rule and one cause beyond `MAX_OF_CAUSE`."""

    first: LocatedFinding
    """The first of those that are shown."""
    count: int

    @property
    def text(self) -> str:
        finding = self.first.finding
        path = f"{finding.path}: " if finding.path else ""
        like = f", like `{finding.key}`" if finding.key else ""
        return f"{path}{self.count:,} more findings of {self.first.title}{like}: {_ALL_FINDINGS}"


class LocatedCause(Struct, frozen=True):
    """The cause of an error in a log, with its place in the log; no rule has it."""

    name: str
    """Name of the kind of error: "wrapped-file"."""
    summary: str
    """Certainty and cause: "certain: the checkpoint was saved from a GPU"."""
    quote: str
    """The line of the log with the error, and how often the log has it."""
    steps: tuple[str, ...]
    """What to do next, and what the words in capitals in it stand for."""
    file: str
    """The log, "" if it is not a file."""
    line: int
    """Line of the log, from 1; 0 if it is not a file."""

    @property
    def text(self) -> str:
        """All of it, a line each."""
        lines = (self.summary, self.quote, *self.steps)
        return "\n".join(map(make_printable, lines))


def list_causes(report: "AnyReport", root: Path | None) -> tuple[LocatedCause, ...]:
    """Return the causes that `explain` found, in the order of the log; () of other reports."""
    if not isinstance(report, ExplainReport):
        return ()
    is_file = report.source not in {"", "-"}
    return tuple(
        LocatedCause(
            name=error.name,
            summary=f"{error.certainty}: {error.cause}",
            quote=f"{error.quote} ({error.count} times)" if error.count > 1 else error.quote,
            steps=(*map(format_advice, error.advice), *iter_placeholders([error])),
            file=make_relative(report.source, root) if is_file else "",
            line=error.line if is_file else 0,
        )
        for error in report.errors
    )


def list_limited_findings(
    report: "AnyReport", root: Path | None
) -> tuple[tuple[LocatedFinding, ...], tuple[OmittedFindings, ...]]:
    """Return at most `MAX_OF_CAUSE` findings of each rule and cause, and the counts of the others.

    Findings that fail the run are kept first. A model of 300 layers has one cause and thousands of
    findings, and viewers of CI systems show a few.
    """
    groups: dict[tuple[str, ...], list[LocatedFinding]] = {}
    for located in _iter_located_findings(report, root):
        finding = located.finding
        key = (finding.path, finding.code, finding.cause or finding.fingerprint, located.silenced)
        groups.setdefault(key, []).append(located)
    kept: set[int] = set()
    omitted: list[OmittedFindings] = []
    for members in groups.values():
        ordered = sorted(members, key=lambda located: not located.finding.fails)
        kept.update(map(id, ordered[:MAX_OF_CAUSE]))
        if len(members) > MAX_OF_CAUSE:
            omitted.append(OmittedFindings(ordered[0], len(members) - MAX_OF_CAUSE))
    shown = (located for members in groups.values() for located in members if id(located) in kept)
    return tuple(shown), tuple(omitted)


def locate_finding(
    finding: FindingReport, report: "AnyReport", root: Path | None
) -> LocatedFinding:
    """Return a finding that counts with its file and line."""
    return _locate_finding(finding, report, root, "", "")


def index_main_findings(report: "AnyReport", root: Path | None) -> dict[str, LocatedFinding]:
    """Return cause -> the first finding that says what is wrong, for causes with consequences."""
    return {
        problem.main.cause: locate_finding(problem.main, report, root)
        for problem in group_by_cause(report.findings)
        if problem.consequences
    }


def describe_cause(finding: FindingReport, main_findings: Mapping[str, LocatedFinding]) -> str:
    """Return "follows from CK101 unregistered-tensor: ..."; "" if it says what is wrong itself."""
    if not finding.is_consequence or finding.cause not in main_findings:
        return ""
    main = main_findings[finding.cause]
    return f"follows from {main.title}: {make_printable(main.finding.summary)}"


def get_subjects(report: "AnyReport") -> tuple[str, ...]:
    """Return the checkpoint paths of a report; for an audit its module."""
    match report:
        case InspectReport() | GateReport() | DigestReport() | CurrentReport():
            return tuple(checkpoint.path for checkpoint in report.checkpoints)
        case DiffFilesReport():
            return (report.new,)
        case DiffModuleReport() | VerifyReport() | LockReport() | LoadReport() | ChainCheckReport():
            return (report.path,)
        case MigrateReport() | UpgradeReport():
            return (report.target or report.source,)
        case AuditReport():
            return (report.module,)
        case _:
            return ()


def list_errors(report: "AnyReport", root: Path | None) -> tuple[tuple[str, str], ...]:
    """Return (path, reason) of the checkpoints that could not be checked."""
    if isinstance(
        report, ProjectAuditReport | ProjectLockReport | MigrateManyReport | ConvertReport
    ):
        return tuple((error.partition(": ")[0], error) for error in report.errors)
    if not isinstance(report, GateReport | InspectReport | DigestReport):
        return ()
    return tuple(
        (make_relative(path, root), error)
        for path, error in zip(report.error_paths, report.errors, strict=True)
    )


def get_unexplained_verdict(report: "AnyReport") -> str:
    """Return the verdict if the run fails without a failing finding (values differ), else ""."""
    is_explained = (
        not report.exit_code or any(f.fails for f in report.findings) or list_errors(report, None)
    )
    if is_explained:
        return ""
    if isinstance(report, DigestReport):
        return digest.format_digest_verdict(report)
    return str(getattr(report, "verdict", ""))


def make_relative(path: str, root: Path | None) -> str:
    """Return `path` with slashes, relative to `root` if inside it; URLs are unchanged."""
    if is_remote(path):
        return path
    file_path = Path(path)
    if root is not None and file_path.is_absolute() and file_path.is_relative_to(root):
        return file_path.relative_to(root).as_posix()
    return file_path.as_posix()


def _locate_finding(
    finding: FindingReport, report: "AnyReport", root: Path | None, silenced: str, reason: str
) -> LocatedFinding:
    source_location = _SOURCE_LOCATION.fullmatch(finding.where)
    if source_location:
        file = make_relative(source_location[1], root)
        return LocatedFinding(finding, file, int(source_location[2]), silenced, reason)
    subjects = get_subjects(report)
    is_audit = isinstance(report, AuditReport)
    path = finding.path or (subjects[0] if len(subjects) == 1 and not is_audit else "")
    return LocatedFinding(finding, make_relative(path, root) if path else "", 0, silenced, reason)


def format_message(located_finding: LocatedFinding) -> str:
    """Format the message on one line, after the checkpoint's path if the file is a source file."""
    finding = located_finding.finding
    prefix = f"{finding.path}: " if finding.path and located_finding.line else ""
    return make_printable(f"{prefix}{finding.message}")
