"""Report -> GitHub workflow commands, shown as annotations."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ckptool.phrases import make_printable
from ckptool.render import RenderOptions
from ckptool.render.blocks import build_silenced_lines, build_skipped_lines
from ckptool.render.ci_results import (
    get_subjects,
    get_unexplained_verdict,
    list_causes,
    list_errors,
    locate_finding,
    make_relative,
)
from ckptool.render.problem_cards import build_card
from ckptool.reports.audit import AuditReport
from ckptool.reports.problems import Problem, count_problems, group_by_cause

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


_MAX_ANNOTATIONS: Final = 10
"""Maximum annotations before the summary: GitHub shows no more than ten of a level."""


def render(report: "AnyReport", options: RenderOptions) -> str:
    """Return an annotation for each problem, ten at most, then what is left out, in few lines."""
    annotations = [*_iter_annotations(report, options)]
    lines = annotations[:_MAX_ANNOTATIONS]
    if omitted_count := len(annotations) - len(lines):
        title = {"title": f"ckptool {report.command}"}
        summary = count_problems(group_by_cause(report.findings))
        text = f"and {omitted_count:,} more{f'; in all: {summary}' if summary else ''}"
        lines.append(_format_command(_get_worst_command(report), title, text))
    lines += _iter_silenced_lines(report)
    lines += _iter_skipped_lines(report, options)
    if lines:
        return "\n".join(lines)
    return _format_command("notice", _build_verdict_properties(report, options), "no findings")


def _iter_annotations(report: "AnyReport", options: RenderOptions) -> Iterator[str]:
    for path, reason in list_errors(report, options.root):
        properties = {"title": "could not be checked", "file": path}
        yield _format_command("error", properties, make_printable(reason))
    if verdict := get_unexplained_verdict(report):
        properties = _build_verdict_properties(report, options)
        yield _format_command("error", properties, make_printable(verdict))
    for problem in group_by_cause(report.findings):
        yield _format_problem(problem, report, options)
    for cause in list_causes(report, options.root):
        location = {"file": cause.file, "line": str(cause.line)} if cause.file else {}
        yield _format_command("error", {"title": cause.name, **location}, cause.text)


def _get_worst_command(report: "AnyReport") -> str:
    return "error" if report.exit_code else "notice"


def _iter_silenced_lines(report: "AnyReport") -> Iterator[str]:
    """Yield one notice for all findings that a waiver or the baseline silences."""
    lines = [
        line
        for block in build_silenced_lines(report.silenced, RenderOptions())
        for line in block.lines
    ]
    if lines:
        title = {"title": "waived or in the baseline"}
        yield _format_command("notice", title, _join_limited_lines(lines))


def _iter_skipped_lines(report: "AnyReport", options: RenderOptions) -> Iterator[str]:
    """Yield one notice for all checks that were skipped."""
    lines = [
        line
        for block in build_skipped_lines(report.skipped, RenderOptions())
        for line in block.lines
    ]
    if lines:
        paths = {make_relative(s.path, options.root) for s in report.skipped if s.path}
        file_property = {"file": paths.pop()} if len(paths) == 1 else {}
        text = _join_limited_lines([line.removeprefix("not checked: ") for line in lines])
        yield _format_command("notice", {"title": "not checked", **file_property}, text)


def _join_limited_lines(lines: list[str]) -> str:
    more = len(lines) - _MAX_ANNOTATIONS
    shown = [make_printable(line) for line in lines[:_MAX_ANNOTATIONS]]
    return "\n".join([*shown, f"and {more:,} more"] if more > 0 else shown)


def _build_verdict_properties(report: "AnyReport", options: RenderOptions) -> dict[str, str]:
    title = {"title": f"ckptool {report.command}"}
    paths = get_subjects(report)
    is_single_checkpoint = len(paths) == 1 and not isinstance(report, AuditReport)
    return (
        {**title, "file": make_relative(paths[0], options.root)} if is_single_checkpoint else title
    )


def _format_problem(problem: Problem, report: "AnyReport", options: RenderOptions) -> str:
    """Return the annotation of a problem, at the file and line of its first finding."""
    located_finding = locate_finding(problem.main, report, options.root)
    card = build_card(problem, RenderOptions())
    properties = {"title": located_finding.title}
    if located_finding.file:
        properties["file"] = located_finding.file
    if located_finding.line:
        properties["line"] = str(located_finding.line)
    first, *continuation = card.lines
    is_about_source = bool(located_finding.line) and problem.main.path
    prefix = f"{', '.join(problem.paths[:3])}: " if is_about_source else ""
    texts = [f"{prefix}{first.message}", *(line.message for line in continuation)]
    texts += [f"{card.escalation}:"] if card.escalation else []
    texts += [f"- {text}" for text in card.consequences]
    texts.append(f"{card.fix_label}: {card.fix}")
    return _format_command(_COMMANDS[card.level], properties, "\n".join(map(make_printable, texts)))


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
