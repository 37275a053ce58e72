"""Report -> SARIF 2.1.0, for code scanning and other SARIF readers."""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ckptool.locations import is_remote
from ckptool.phrases import make_printable
from ckptool.render import RenderOptions
from ckptool.render.ci_results import (
    LocatedCause,
    LocatedFinding,
    format_message,
    get_unexplained_verdict,
    list_causes,
    list_errors,
    list_limited_findings,
)
from ckptool.render.source_fixes import SourceFixes, index_fixes
from ckptool.reports.fix import SourceEditReport
from ckptool.rules import RULES
from ckptool.versions import NOT_INSTALLED, get_installed_version

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

SCHEMA_URL: Final = "https://json.schemastore.org/sarif-2.1.0.json"
ROOT_BASE_ID: Final = "SRCROOT"
RULES_URL: Final = "https://github.com/OWNER/ckptool/blob/main/docs/rules.md"
"""Page of all rules, with a heading for each."""
EXPLAIN_URL: Final = "https://github.com/OWNER/ckptool/blob/main/docs/howto/explain.md"
"""Page on the errors that `explain` knows."""
_MAX_RELATED: Final = 10
"""Maximum consequences that a result names as related locations."""


def render(report: "AnyReport", options: RenderOptions) -> str:
    located_findings, omitted = list_limited_findings(report, options.root)
    causes = list_causes(report, options.root)
    names = sorted({cause.name for cause in causes})
    codes = sorted({located_finding.finding.code for located_finding in located_findings})
    error_texts = [
        f"could not be checked: {reason}" for _, reason in list_errors(report, options.root)
    ]
    verdict = get_unexplained_verdict(report)
    run = {
        "tool": {"driver": _build_driver(codes, names)},
        "originalUriBaseIds": {ROOT_BASE_ID: {"description": {"text": "Where ckptool was run."}}},
        "invocations": [
            {
                "executionSuccessful": not error_texts,
                "exitCode": report.exit_code,
                "toolExecutionNotifications": [
                    *_iter_failure_notifications([*error_texts, *([verdict] if verdict else [])]),
                    *_iter_skipped_notifications(report),
                    *(
                        {"level": "note", "message": {"text": make_printable(o.text)}}
                        for o in omitted
                    ),
                ],
            }
        ],
        "results": [
            *_iter_results(located_findings, codes, index_fixes(report)),
            *(_build_cause_result(cause, [*codes, *names].index(cause.name)) for cause in causes),
        ],
        "columnKind": "unicodeCodePoints",
    }
    return json.dumps({"$schema": SCHEMA_URL, "version": "2.1.0", "runs": [run]}, indent=2)


def _build_driver(codes: list[str], names: list[str]) -> dict[str, Any]:
    version = get_installed_version("ckptool")
    version_field = {} if version == NOT_INSTALLED else {"semanticVersion": version}
    rules = [*map(_build_rule, codes), *map(_build_known_error, names)]
    return {"name": "ckptool", **version_field, "rules": rules}


def _build_known_error(name: str) -> dict[str, Any]:
    """Return the rule of an error that `explain` knows; what it means is in its results."""
    text = f"{name}: an error in a log, explained by ckptool explain"
    return {
        "id": name,
        "name": "".join(word.capitalize() for word in name.split("-")),
        "shortDescription": {"text": text},
        "fullDescription": {"text": text},
        "helpUri": EXPLAIN_URL,
        "help": {"text": "The message of each result has the probable cause and what to do next."},
        "defaultConfiguration": {"level": "error"},
    }


def _build_cause_result(cause: LocatedCause, rule_index: int) -> dict[str, Any]:
    fingerprint = sha256(f"{cause.name}\n{cause.summary}".encode(errors="surrogatepass"))
    return {
        "ruleId": cause.name,
        "ruleIndex": rule_index,
        "level": "error",
        "message": {"text": cause.text},
        "locations": [_build_physical_location(cause.file, cause.line)],
        "partialFingerprints": {"ckptool/v1": fingerprint.hexdigest()},
    }


def _build_rule(code: str) -> dict[str, Any]:
    rule = RULES[code]
    return {
        "id": code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": f"{rule.code} {rule.name}"},
        "fullDescription": {"text": rule.why},
        "helpUri": f"{RULES_URL}#{code.lower()}-{rule.name}",
        "help": {"text": f"{rule.why}\n\nFix: {rule.general_fix}"},
        "defaultConfiguration": {"level": rule.level.word},
    }


def _iter_results(
    located_findings: Sequence[LocatedFinding], codes: list[str], fixes: SourceFixes
) -> Iterator[dict[str, Any]]:
    """Yield the results, with related locations.

    A consequence names the first finding of its cause, and that one some consequences.
    """
    members_by_cause: dict[str, list[LocatedFinding]] = {}
    for located_finding in located_findings:
        if located_finding.finding.cause:
            members_by_cause.setdefault(located_finding.finding.cause, []).append(located_finding)
    for located_finding in located_findings:
        finding = located_finding.finding
        members = members_by_cause.get(finding.cause, [])
        mains = (member for member in members if not member.finding.is_consequence)
        related = [*islice(mains, 1)]
        if related and related[0] is located_finding:
            related = [*islice((m for m in members if m.finding.is_consequence), _MAX_RELATED)]
        elif not finding.is_consequence:
            related = []
        result = _build_result(located_finding, codes)
        edit = fixes.find_edit(finding)
        if edit is not None:
            result["fixes"] = [_build_fix(edit)]
        if related:
            result["relatedLocations"] = [*map(_build_related_location, count(), related)]
        yield result


def _build_related_location(number: int, related: LocatedFinding) -> dict[str, Any]:
    """Return the location of the cause of a finding, or of a consequence."""
    role = "consequence" if related.finding.is_consequence else "cause"
    text = f"{role}: {related.title}: {make_printable(related.finding.summary)}"
    return {"id": number, **_build_location(related), "message": {"text": text}}


def _build_result(located_finding: LocatedFinding, codes: list[str]) -> dict[str, Any]:
    finding = located_finding.finding
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "level": finding.level,
        "message": {
            "text": f"{format_message(located_finding)}\nFix: {make_printable(finding.fix)}"
        },
        "locations": [_build_location(located_finding)],
        "partialFingerprints": {"ckptool/v1": finding.fingerprint},
        "properties": {
            "checkpoint": make_printable(finding.path),
            "fails": finding.fails,
            "cause": make_printable(finding.cause),
            "isConsequence": finding.is_consequence,
        },
    }
    if located_finding.silenced:
        result["suppressions"] = [
            {
                "kind": "external",
                "status": "accepted",
                "justification": (
                    f"{located_finding.silenced}: {make_printable(located_finding.reason)}"
                ),
            }
        ]
    return result


def _build_fix(edit: SourceEditReport) -> dict[str, Any]:
    """Return the fix of a result: whole lines, as a viewer can put them in their place."""
    replacements: dict[str, list[dict[str, Any]]] = {}
    for replacement in edit.replacements:
        region = {
            "startLine": replacement.start_line,
            "startColumn": 1,
            "endLine": replacement.end_line + 1,
            "endColumn": 1,
        }
        replacements.setdefault(replacement.file, []).append(
            {"deletedRegion": region, "insertedContent": {"text": replacement.text}}
        )
    return {
        "description": {"text": make_printable(f"proved by ckptool fix: {edit.after}")},
        "artifactChanges": [
            {"artifactLocation": _build_artifact_location(file), "replacements": of_file}
            for file, of_file in replacements.items()
        ],
    }


def _build_location(located_finding: LocatedFinding) -> dict[str, Any]:
    location = _build_physical_location(located_finding.file, located_finding.line)
    if located_finding.finding.key:
        name = make_printable(located_finding.finding.key)
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "member"}]
    return location


def _build_physical_location(file: str, line: int) -> dict[str, Any]:
    """Return {"physicalLocation": ...}; {} without a file, and no region where `line` is 0."""
    if not file:
        return {}
    region = {"region": {"startLine": line}} if line else {}
    return {"physicalLocation": {"artifactLocation": _build_artifact_location(file), **region}}


def _build_artifact_location(file: str) -> dict[str, str]:
    if is_remote(file):
        return {"uri": quote(file, safe=":/?&=%@*", errors="surrogatepass")}
    name = quote(file, errors="surrogateescape")
    return (
        {"uri": f"file://{name}"}
        if Path(file).is_absolute()
        else {"uri": name, "uriBaseId": ROOT_BASE_ID}
    )


def _iter_failure_notifications(texts: list[str]) -> Iterator[dict[str, Any]]:
    for text in texts:
        yield {"level": "error", "message": {"text": make_printable(text)}}


def _iter_skipped_notifications(report: "AnyReport") -> Iterator[dict[str, Any]]:
    for entry in dict.fromkeys(report.skipped):
        prefix = f"{entry.path}: " if entry.path else ""
        text = make_printable(f"{prefix}not checked: {entry.what}: {entry.reason}")
        yield {"level": "note", "message": {"text": text}}
