"""Report -> SARIF 2.1.0, for code scanning and other SARIF readers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ckptool.locations import is_remote
from ckptool.render import Style
from ckptool.render.results import Result, errors, results, sentence, unexplained
from ckptool.render.text import printable
from ckptool.report import AnyReport
from ckptool.rules import RULES
from ckptool.versions import NOT_INSTALLED, version_of

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
ROOT: Final = "SRCROOT"


def render(report: AnyReport, style: Style) -> str:
    found = tuple(results(report, style.root))
    codes = sorted({one.finding.code for one in found})
    unread = [f"could not be checked: {reason}" for _, reason in errors(report, style.root)]
    verdict = unexplained(report)
    run = {
        "tool": {"driver": _driver(codes)},
        "originalUriBaseIds": {ROOT: {"description": {"text": "Where ckptool was run."}}},
        "invocations": [
            {
                "executionSuccessful": not unread,
                "exitCode": report.exit_code,
                "toolExecutionNotifications": [
                    *_failures([*unread, *([verdict] if verdict else [])]),
                    *_skipped(report),
                ],
            }
        ],
        "results": [_result(one, codes) for one in found],
        "columnKind": "unicodeCodePoints",
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _driver(codes: list[str]) -> dict[str, Any]:
    installed = version_of("ckptool")
    known = {} if installed == NOT_INSTALLED else {"semanticVersion": installed}
    return {"name": "ckptool", **known, "rules": [_rule(code) for code in codes]}


def _rule(code: str) -> dict[str, Any]:
    rule = RULES[code]
    return {
        "id": code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": f"{rule.code} {rule.name}"},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.why}\n\nFix: {rule.fix}"},
        "defaultConfiguration": {"level": rule.level.word},
    }


def _result(one: Result, codes: list[str]) -> dict[str, Any]:
    finding = one.finding
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "level": finding.level,
        "message": {"text": f"{sentence(one)}\nFix: {printable(finding.fix)}"},
        "locations": [_location(one)],
        "partialFingerprints": {"ckptool/v1": finding.fingerprint},
        "properties": {"checkpoint": printable(finding.path), "fails": finding.fails},
    }
    if one.silenced:
        result["suppressions"] = [
            {
                "kind": "external",
                "status": "accepted",
                "justification": f"{one.silenced}: {printable(one.reason)}",
            }
        ]
    return result


def _location(one: Result) -> dict[str, Any]:
    location: dict[str, Any] = {}
    if one.file:
        location["physicalLocation"] = {"artifactLocation": _artifact(one.file)}
    if one.line:
        location["physicalLocation"]["region"] = {"startLine": one.line}
    if one.finding.key:
        name = printable(one.finding.key)
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "member"}]
    return location


def _artifact(file: str) -> dict[str, str]:
    if is_remote(file):
        return {"uri": quote(file, safe=":/?&=%@*", errors="surrogatepass")}
    name = quote(file, errors="surrogateescape")
    return (
        {"uri": f"file://{name}"} if Path(file).is_absolute() else {"uri": name, "uriBaseId": ROOT}
    )


def _failures(texts: list[str]) -> Iterator[dict[str, Any]]:
    for text in texts:
        yield {"level": "error", "message": {"text": printable(text)}}


def _skipped(report: AnyReport) -> Iterator[dict[str, Any]]:
    for one in dict.fromkeys(report.skipped):
        of = f"{one.path}: " if one.path else ""
        text = printable(f"{of}not checked: {one.what}: {one.reason}")
        yield {"level": "note", "message": {"text": text}}
