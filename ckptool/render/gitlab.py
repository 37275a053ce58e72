"""Report -> GitLab code quality JSON, shown in a merge request."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ckptool.phrases import make_printable
from ckptool.render import RenderOptions
from ckptool.render.ci_results import (
    LocatedFinding,
    describe_cause,
    format_message,
    get_subjects,
    get_unexplained_verdict,
    index_main_findings,
    list_causes,
    list_errors,
    list_limited_findings,
    make_relative,
)

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_SEVERITIES = {"error": "critical", "warning": "minor", "note": "info"}


def render(report: "AnyReport", options: RenderOptions) -> str:
    entries = [
        _build_entry("could-not-check", reason, "blocker", path)
        for path, reason in list_errors(report, options.root)
    ]
    verdict = get_unexplained_verdict(report)
    if verdict:
        entries.append(
            _build_entry("verdict", verdict, "critical", _get_default_file(report, options))
        )
    main_findings = index_main_findings(report, options.root)
    located_findings, omitted = list_limited_findings(report, options.root)
    default_file = _get_default_file(report, options)
    entries += [_build_finding_entry(f, default_file, main_findings) for f in located_findings]
    entries += [
        _build_entry("omitted", o.text, "info", o.first.file or default_file) for o in omitted
    ]
    entries += [
        _build_entry(
            c.name, c.text.replace("\n", "; "), "critical", c.file or default_file, max(c.line, 1)
        )
        for c in list_causes(report, options.root)
    ]
    for skipped in dict.fromkeys(report.skipped):
        text = f"not checked: {skipped.what}: {skipped.reason}"
        file = (
            make_relative(skipped.path, options.root)
            if skipped.path
            else _get_default_file(report, options)
        )
        entries.append(_build_entry("skipped", text, "info", file))
    return json.dumps(entries, indent=2)


def _build_finding_entry(
    located_finding: LocatedFinding,
    default_file: str,
    main_findings: Mapping[str, LocatedFinding],
) -> dict[str, Any]:
    finding = located_finding.finding
    severity, text = (
        _SEVERITIES[finding.level],
        f"{located_finding.title}: {format_message(located_finding)}",
    )
    if located_finding.silenced:
        status = "waived" if located_finding.silenced == "waiver" else "known"
        severity, text = "info", f"{text} ({status}: {located_finding.reason})"
    elif cause := describe_cause(finding, main_findings):
        text = f"{text} ({cause})"
    file = located_finding.file or default_file
    return _build_entry(
        finding.code, text, severity, file, max(located_finding.line, 1), finding.fingerprint
    )


def _build_entry(
    name: str, text: str, severity: str, file: str, line: int = 1, fingerprint: str = ""
) -> dict[str, Any]:
    identity = f"{file}\n{name}\n{fingerprint or text}"
    return {
        "description": make_printable(text),
        "check_name": name,
        "fingerprint": sha256(identity.encode(errors="surrogatepass")).hexdigest(),
        "severity": severity,
        "location": {"path": file, "lines": {"begin": line}},
    }


def _get_default_file(report: "AnyReport", options: RenderOptions) -> str:
    """Return the file for entries that have none of their own, "." if the report has none."""
    subjects = get_subjects(report)
    return make_relative(subjects[0], options.root) if subjects else "."
