"""Report -> GitHub workflow commands, shown as annotations."""

from ckptool.render import Style
from ckptool.render.results import (
    Result,
    checkpoints,
    errors,
    relative,
    results,
    sentence,
    unexplained,
)
from ckptool.render.text import printable
from ckptool.report import AnyReport, AuditReport

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def render(report: AnyReport, style: Style) -> str:
    lines = [
        _command("error", {"title": "could not be checked", "file": path}, printable(reason))
        for path, reason in errors(report, style.root)
    ]
    verdict = unexplained(report)
    if verdict:
        lines.append(_command("error", _about(report, style), printable(verdict)))
    lines += [_finding(one) for one in results(report, style.root)]
    for skipped in dict.fromkeys(report.skipped):
        of = f"{skipped.path}: " if skipped.path else ""
        text = printable(f"{of}{skipped.what}: {skipped.reason}")
        lines.append(_command("notice", {"title": "not checked"}, text))
    return "\n".join(lines or [_command("notice", _about(report, style), "nothing was found")])


def _about(report: AnyReport, style: Style) -> dict[str, str]:
    title = {"title": f"ckptool {report.command}"}
    paths = checkpoints(report)
    one = len(paths) == 1 and not isinstance(report, AuditReport)
    return {**title, "file": relative(paths[0], style.root)} if one else title


def _finding(result: Result) -> str:
    finding = result.finding
    where = {"file": result.file} if result.file else {}
    line = {"line": str(result.line)} if result.line else {}
    if result.silenced:
        title = f"{result.title} ({'waived' if result.silenced == 'waiver' else 'known'})"
        text = f"{sentence(result)}\n{printable(result.reason)}"
        return _command("notice", {"title": title, **where, **line}, text)
    text = f"{sentence(result)}\nfix: {printable(finding.fix)}"
    return _command(_COMMANDS[finding.level], {"title": result.title, **where, **line}, text)


def _command(name: str, properties: dict[str, str], text: str) -> str:
    said = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{name} {said}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(printable(text)).replace(":", "%3A").replace(",", "%2C")
