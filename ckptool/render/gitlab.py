"""Report -> GitLab code quality JSON, shown in a merge request."""

import json
from hashlib import sha256
from typing import Any

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
from ckptool.report import AnyReport

_SEVERITIES = {"error": "critical", "warning": "minor", "note": "info"}


def render(report: AnyReport, style: Style) -> str:
    entries = [
        _entry("could-not-check", reason, "blocker", path)
        for path, reason in errors(report, style.root)
    ]
    verdict = unexplained(report)
    if verdict:
        entries.append(_entry("verdict", verdict, "critical", _file(report, style)))
    entries += [_finding(one, _file(report, style)) for one in results(report, style.root)]
    for skipped in dict.fromkeys(report.skipped):
        text = f"not checked: {skipped.what}: {skipped.reason}"
        file = relative(skipped.path, style.root) if skipped.path else _file(report, style)
        entries.append(_entry("skipped", text, "info", file))
    return json.dumps(entries, indent=2)


def _finding(result: Result, otherwise: str) -> dict[str, Any]:
    finding = result.finding
    severity, text = _SEVERITIES[finding.level], f"{result.title}: {sentence(result)}"
    if result.silenced:
        said = "waived" if result.silenced == "waiver" else "known"
        severity, text = "info", f"{text} ({said}: {result.reason})"
    file = result.file or otherwise
    return _entry(finding.code, text, severity, file, max(result.line, 1), finding.fingerprint)


def _entry(
    name: str, text: str, severity: str, file: str, line: int = 1, fingerprint: str = ""
) -> dict[str, Any]:
    whole = f"{file}\n{name}\n{fingerprint or text}"
    return {
        "description": printable(text),
        "check_name": name,
        "fingerprint": sha256(whole.encode(errors="surrogatepass")).hexdigest(),
        "severity": severity,
        "location": {"path": file, "lines": {"begin": line}},
    }


def _file(report: AnyReport, style: Style) -> str:
    """Return the file for entries that have none of their own, "." if the report has none."""
    about = checkpoints(report)
    return relative(about[0], style.root) if about else "."
