"""Report -> JUnit XML: a suite for each checkpoint, a test for each rule that ran on it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar, cast
from xml.etree.ElementTree import tostring

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from ckptool.phrases import make_printable
from ckptool.render import RenderOptions
from ckptool.render.ci_results import (
    LocatedFinding,
    OmittedFindings,
    describe_cause,
    format_message,
    get_subjects,
    get_unexplained_verdict,
    index_main_findings,
    list_causes,
    list_errors,
    list_limited_findings,
)
from ckptool.reports.common import SkippedReport
from ckptool.reports.gate import GateReport
from ckptool.rules import RULES

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_Item = TypeVar("_Item")


def render(report: "AnyReport", options: RenderOptions) -> str:
    document = JUnitXml("ckptool")
    for part in report.module_reports or (report,):
        for suite in _iter_suites(cast("AnyReport", part), options):
            document.add_testsuite(suite)
    error_cases = [_build_error_case(path, reason) for path, reason in list_errors(report, None)]
    if error_cases:
        document.add_testsuite(_create_suite("could not be checked", error_cases))
    document.update_statistics()  # type: ignore[no-untyped-call]
    text: str = tostring(document._elem, encoding="unicode")  # noqa: SLF001 (it writes files only)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'


def _iter_suites(report: "AnyReport", options: RenderOptions) -> Iterator[TestSuite]:
    """Yield the suite of each checkpoint or module, and that of the policy."""
    located_findings, omitted = list_limited_findings(report, options.root)
    findings_by_path = _group_by_path((f.finding.path, f) for f in located_findings)
    skipped_by_path = _group_by_path((s.path, s) for s in dict.fromkeys(report.skipped))
    rules_by_path = (
        {checkpoint.path: checkpoint.rules for checkpoint in report.checkpoints}
        if isinstance(report, GateReport)
        else {}
    )
    omitted_by_path = _group_by_path((o.first.finding.path, o) for o in omitted)
    main_findings = index_main_findings(report, options.root)
    for path in get_subjects(report) or ("",):
        paths = dict.fromkeys((path, ""))
        suite = _build_suite(
            report,
            path,
            rules_by_path.get(path, ()),
            [f for name in paths for f in findings_by_path.get(name, ())],
            [s for name in paths for s in skipped_by_path.get(name, ())],
            [o for name in paths for o in omitted_by_path.get(name, ())],
            main_findings,
            options,
        )
        if path or len(suite):
            yield suite
    known_paths = {*get_subjects(report), ""}
    other_findings = [
        located_finding
        for located_finding in located_findings
        if located_finding.finding.path not in known_paths
    ]
    if other_findings:
        cases = _iter_rule_cases("policy", (), other_findings, [], main_findings)
        yield _create_suite("policy", list(cases))


def _group_by_path(items: Iterable[tuple[str, _Item]]) -> dict[str, list[_Item]]:
    """Return path -> items, in their order; "" has those of the whole run."""
    groups: dict[str, list[_Item]] = {}
    for path, item in items:
        groups.setdefault(path, []).append(item)
    return groups


def _build_suite(
    report: "AnyReport",
    path: str,
    rule_codes: tuple[str, ...],
    located_findings: list[LocatedFinding],
    skipped_checks: list[SkippedReport],
    omitted: list[OmittedFindings],
    main_findings: Mapping[str, LocatedFinding],
    options: RenderOptions,
) -> TestSuite:
    cases = [
        *_iter_verdict_cases(report, path),
        *_iter_cause_cases(report, options),
        *_iter_rule_cases(path, rule_codes, located_findings, omitted, main_findings),
    ]
    for skipped in skipped_checks:
        case = _create_case(f"checks {skipped.what}", path)
        case.result = [Skipped(_escape_text(skipped.reason))]
        cases.append(case)
    return _create_suite(path or f"ckptool {report.command}", cases)


def _create_suite(name: str, cases: list[TestCase]) -> TestSuite:
    suite = TestSuite(_escape_text(name))
    for case in cases:
        suite.add_testcase(case)
    return suite


def _iter_rule_cases(
    path: str,
    rule_codes: tuple[str, ...],
    located_findings: list[LocatedFinding],
    omitted: list[OmittedFindings],
    main_findings: Mapping[str, LocatedFinding],
) -> Iterator[TestCase]:
    """Yield a test for each rule that ran or has findings, in code order."""
    for code in sorted(
        {*rule_codes, *(located_finding.finding.code for located_finding in located_findings)}
    ):
        rule_findings = [
            located_finding
            for located_finding in located_findings
            if located_finding.finding.code == code
        ]
        case = _create_case(f"{code} {RULES[code].name}", path)
        case.result = list(_iter_outcomes(rule_findings, main_findings))
        notes = [
            _format_finding(located_finding, main_findings)
            for located_finding in rule_findings
            if not located_finding.finding.fails
        ]
        notes += [_escape_text(o.text) for o in omitted if o.first.finding.code == code]
        if notes:
            case.system_out = "\n".join(notes)
        yield case


def _iter_outcomes(
    located_findings: list[LocatedFinding], main_findings: Mapping[str, LocatedFinding]
) -> Iterator[Failure | Skipped]:
    failing_findings = [
        located_finding for located_finding in located_findings if located_finding.finding.fails
    ]
    silenced_findings = [
        located_finding for located_finding in located_findings if located_finding.silenced
    ]
    if failing_findings:
        failure = Failure(
            _escape_text(format_message(failing_findings[0])), failing_findings[0].finding.level
        )
        failure.text = "\n\n".join(
            _format_finding(failing_finding, main_findings) for failing_finding in failing_findings
        )
        yield failure
    elif silenced_findings and len(silenced_findings) == len(located_findings):
        yield Skipped(
            _escape_text(f"{silenced_findings[0].silenced}: {silenced_findings[0].reason}")
        )


def _format_finding(
    located_finding: LocatedFinding, main_findings: Mapping[str, LocatedFinding]
) -> str:
    """Return a finding with its fix, or with the finding that it follows from."""
    location = f"{located_finding.file}:{located_finding.line}: " if located_finding.line else ""
    status = (
        f" ({located_finding.silenced}: {located_finding.reason})"
        if located_finding.silenced
        else ""
    )
    cause = describe_cause(located_finding.finding, main_findings)
    fix = f"\n{cause}" if cause else f"\nfix: {located_finding.finding.fix}"
    return "\n".join(
        _escape_text(line)
        for line in (
            f"{location}{located_finding.finding.level}:"
            f" {format_message(located_finding)}{status}{fix}".split("\n")
        )
    )


def _build_error_case(path: str, reason: str) -> TestCase:
    case = _create_case("can be read", path)
    case.result = [Error(_escape_text(reason))]
    return case


def _iter_verdict_cases(report: "AnyReport", path: str) -> Iterator[TestCase]:
    """Yield a failed test if the run fails without a failing finding."""
    verdict = get_unexplained_verdict(report)
    if verdict:
        case = _create_case("verdict", path)
        case.result = [Failure(_escape_text(verdict), "error")]
        yield case


def _iter_cause_cases(report: "AnyReport", options: RenderOptions) -> Iterator[TestCase]:
    """Yield a failed test for each error of a log, with its cause and what to do next."""
    for cause in list_causes(report, options.root):
        case = _create_case(cause.name, cause.file)
        failure = Failure(_escape_text(cause.summary), "error")
        location = f"{cause.file}:{cause.line}: " if cause.file else ""
        failure.text = f"{_escape_text(location)}{cause.text}"
        case.result = [failure]
        yield case


def _create_case(name: str, path: str) -> TestCase:
    return TestCase(_escape_text(name), classname=_escape_text(path))


def _escape_text(text: str) -> str:
    """Escape control characters, which XML cannot hold."""
    return make_printable(text)
