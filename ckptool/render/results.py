"""Report -> results with a place: what the formats of CI systems are made of."""

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
    """A finding, and where it is."""

    finding: FindingReport
    file: str
    """The line of source that it is about, else the checkpoint; "" where there is neither."""
    line: int
    """0 where there is none."""
    silenced: str = ""
    """"waiver" or "baseline" where it does not count."""
    reason: str = ""

    @property
    def title(self) -> str:
        return f"{self.finding.code} {self.finding.name}"


def results(report: AnyReport, root: Path | None) -> Iterator[Result]:
    """Yield the findings that count, then those that do not."""
    for finding in report.findings:
        yield _result(finding, report, root, "", "")
    for one in report.silenced:
        yield _result(one.finding, report, root, one.by, one.reason)


def checkpoints(report: AnyReport) -> tuple[str, ...]:
    """Return what a report is about: paths of checkpoints, else a module."""
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
    """Return what could not be checked: path and reason."""
    match report:
        case GateReport():
            paths = [one.path for one in report.checkpoints if one.unread]
        case InspectReport() | DigestReport():
            paths = [one.split(": ", 1)[0] for one in report.errors]
        case _:
            return ()
    return tuple((relative(p, root), e) for p, e in zip(paths, report.errors, strict=True))


def unexplained(report: AnyReport) -> str:
    """Return the verdict where the run fails and no finding says why: values differ, for one."""
    told = not report.exit_code or any(f.fails for f in report.findings) or errors(report, None)
    if told:
        return ""
    if isinstance(report, DigestReport):
        return digesting.verdict(report)
    return str(getattr(report, "verdict", ""))


def relative(path: str, root: Path | None) -> str:
    """Return `path` with slashes, from `root` where it is inside; a remote one as it is."""
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
    """Return a finding in one printable line, with the checkpoint that it is about."""
    finding = result.finding
    of = f"{finding.path}: " if finding.path and result.line else ""
    return printable(f"{of}{finding.message}")
