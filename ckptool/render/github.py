"""Report -> GitHub workflow commands, shown as annotations."""

import re
from typing import TYPE_CHECKING

from ckptool.phrases import make_printable
from ckptool.render import RenderOptions
from ckptool.render.ci_results import (
    LocatedFinding,
    format_message,
    get_subjects,
    get_unexplained_verdict,
    iter_located_findings,
    list_errors,
    make_relative,
)
from ckptool.reports.audit import AuditReport

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def render(report: "AnyReport", options: RenderOptions) -> str:
    lines = [
        _format_command(
            "error", {"title": "could not be checked", "file": path}, make_printable(reason)
        )
        for path, reason in list_errors(report, options.root)
    ]
    verdict = get_unexplained_verdict(report)
    if verdict:
        lines.append(
            _format_command(
                "error", _build_verdict_properties(report, options), make_printable(verdict)
            )
        )
    lines += [
        _format_finding(located_finding)
        for located_finding in iter_located_findings(report, options.root)
    ]
    for skipped in dict.fromkeys(report.skipped):
        prefix = f"{skipped.path}: " if skipped.path else ""
        text = make_printable(f"{prefix}{skipped.what}: {skipped.reason}")
        file_property = {"file": make_relative(skipped.path, options.root)} if skipped.path else {}
        lines.append(_format_command("notice", {"title": "not checked", **file_property}, text))
    return "\n".join(
        lines
        or [_format_command("notice", _build_verdict_properties(report, options), "no findings")]
    )


def _build_verdict_properties(report: "AnyReport", options: RenderOptions) -> dict[str, str]:
    title = {"title": f"ckptool {report.command}"}
    paths = get_subjects(report)
    is_single_checkpoint = len(paths) == 1 and not isinstance(report, AuditReport)
    return (
        {**title, "file": make_relative(paths[0], options.root)} if is_single_checkpoint else title
    )


def _format_finding(located_finding: LocatedFinding) -> str:
    finding = located_finding.finding
    file_property = {"file": located_finding.file} if located_finding.file else {}
    line_property = {"line": str(located_finding.line)} if located_finding.line else {}
    if located_finding.silenced:
        title = (
            f"{located_finding.title}"
            f" ({'waived' if located_finding.silenced == 'waiver' else 'known'})"
        )
        text = f"{format_message(located_finding)}\n{make_printable(located_finding.reason)}"
        return _format_command("notice", {"title": title, **file_property, **line_property}, text)
    text = f"{format_message(located_finding)}\nfix: {make_printable(finding.fix)}"
    return _format_command(
        _COMMANDS[finding.level],
        {"title": located_finding.title, **file_property, **line_property},
        text,
    )


def _format_command(name: str, properties: dict[str, str], text: str) -> str:
    property_text = ",".join(
        f"{key}={_escape_property(value)}" for key, value in properties.items()
    )
    return f"::{name} {property_text}::{_escape_data(text)}"


def _escape_data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    """Escape a property: its line ends are undone by GitHub, other control characters never are."""
    lines = re.split("([\r\n])", text)
    printable = "".join(line if line in {"\r", "\n"} else make_printable(line) for line in lines)
    return _escape_data(printable).replace(":", "%3A").replace(",", "%2C")
