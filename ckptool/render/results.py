"""Report -> LocatedFinding: findings with file and line, for the formats of CI systems."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.locations import is_remote
from ckptool.render.layouts import digesting
from ckptool.render.text import printable
from ckptool.report import (
    AnyReport,
    AuditReport,
    DiffFilesReport,
    DiffModuleReport,
    DigestReport,
    FindingReport,
    GateReport,
    InspectReport,
    LockReport,
    MigrateReport,
    VerifyReport,
)

_PLACE: Final = re.compile(r"(.+\.py):([0-9]+)")


class Result(Struct, frozen=True):
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


def results(report: AnyReport, root: Path | None) -> Iterator[Result]:
    """Yield the findings that count, then the silenced ones."""
    for finding in report.findings:
        yield _result(finding, report, root, "", "")
    for one in report.silenced:
        yield _result(one.finding, report, root, one.by, one.reason)


def checkpoints(report: AnyReport) -> tuple[str, ...]:
    """Return the checkpoint paths of a report; for an audit its module."""
    match report:
        case InspectReport() | GateReport() | DigestReport():
            return tuple(one.path for one in report.checkpoints)
        case DiffFilesReport():
            return (report.new,)
        case DiffModuleReport() | VerifyReport() | LockReport():
            return (report.path,)
        case MigrateReport():
            return (report.target or report.source,)
        case AuditReport():
            return (report.module,)
        case _:
            return ()


def errors(report: AnyReport, root: Path | None) -> tuple[tuple[str, str], ...]:
    """Return (path, reason) of the checkpoints that could not be checked."""
    match report:
        case GateReport():
            paths = [one.path for one in report.checkpoints if one.unread]
        case InspectReport() | DigestReport():
            paths = [one.split(": ", 1)[0] for one in report.errors]
        case _:
            return ()
    return tuple((relative(p, root), e) for p, e in zip(paths, report.errors, strict=True))


def unexplained(report: AnyReport) -> str:
    """Return the verdict if the run fails without a failing finding (values differ), else ""."""
    told = not report.exit_code or any(f.fails for f in report.findings) or errors(report, None)
    if told:
        return ""
    if isinstance(report, DigestReport):
        return digesting.verdict(report)
    return str(getattr(report, "verdict", ""))


def relative(path: str, root: Path | None) -> str:
    """Return `path` with slashes, relative to `root` if inside it; URLs are unchanged."""
    if is_remote(path):
        return path
    one = Path(path)
    if root is not None and one.is_absolute() and one.is_relative_to(root):
        return one.relative_to(root).as_posix()
    return one.as_posix()


def _result(
    finding: FindingReport, report: AnyReport, root: Path | None, silenced: str, reason: str
) -> Result:
    place = _PLACE.fullmatch(finding.where)
    if place:
        file = relative(place[1], root)
        return Result(finding, file, int(place[2]), silenced, reason)
    about = checkpoints(report)
    module = isinstance(report, AuditReport)
    path = finding.path or (about[0] if len(about) == 1 and not module else "")
    return Result(finding, relative(path, root) if path else "", 0, silenced, reason)


def sentence(result: Result) -> str:
    """Format the message on one line, after the checkpoint's path if the file is a source file."""
    finding = result.finding
    of = f"{finding.path}: " if finding.path and result.line else ""
    return printable(f"{of}{finding.message}")
