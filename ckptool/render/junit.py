"""Report -> JUnit XML: a suite for each checkpoint, a test for each rule that ran on it."""

from collections.abc import Iterator
from xml.etree.ElementTree import tostring

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from ckptool.render import Style
from ckptool.render.results import Result, checkpoints, errors, results, sentence, unexplained
from ckptool.render.text import printable
from ckptool.report import AnyReport, GateReport
from ckptool.rules import RULES


def render(report: AnyReport, style: Style) -> str:
    found = tuple(results(report, style.root))
    whole = JUnitXml("ckptool")
    for path in checkpoints(report):
        mine = [one for one in found if one.finding.path in {path, ""}]
        whole.add_testsuite(_suite(report, path, mine))
    about = {*checkpoints(report), ""}
    others = [one for one in found if one.finding.path not in about]
    if others:
        whole.add_testsuite(_of_cases("policy", list(_rules("policy", (), others))))
    unread = [_unread(path, reason) for path, reason in errors(report, None)]
    if unread:
        whole.add_testsuite(_of_cases("could not be checked", unread))
    whole.update_statistics()  # type: ignore[no-untyped-call]
    text: str = tostring(whole._elem, encoding="unicode")  # noqa: SLF001 (it writes files only)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'


def _suite(report: AnyReport, path: str, found: list[Result]) -> TestSuite:
    looked: tuple[str, ...] = ()
    if isinstance(report, GateReport):
        looked = next(one.rules for one in report.checkpoints if one.path == path)
    cases = [*_verdict(report, path), *_rules(path, looked, found)]
    for skipped in dict.fromkeys(report.skipped):
        if skipped.path in {path, ""}:
            case = _case(f"checks {skipped.what}", path)
            case.result = [Skipped(_clean(skipped.reason))]
            cases.append(case)
    return _of_cases(path, cases)


def _of_cases(name: str, cases: list[TestCase]) -> TestSuite:
    suite = TestSuite(_clean(name))
    for case in cases:
        suite.add_testcase(case)
    return suite


def _rules(path: str, looked: tuple[str, ...], found: list[Result]) -> Iterator[TestCase]:
    """Yield a test for each rule that ran or has findings, in code order."""
    for code in sorted({*looked, *(one.finding.code for one in found)}):
        mine = [one for one in found if one.finding.code == code]
        case = _case(f"{code} {RULES[code].name}", path)
        case.result = list(_outcome(mine))
        notes = [_line(one) for one in mine if not one.finding.fails]
        if notes:
            case.system_out = "\n".join(notes)
        yield case


def _outcome(found: list[Result]) -> Iterator[Failure | Skipped]:
    failing = [one for one in found if one.finding.fails]
    silent = [one for one in found if one.silenced]
    if failing:
        failure = Failure(_clean(sentence(failing[0])), failing[0].finding.level)
        failure.text = "\n\n".join(map(_line, failing))
        yield failure
    elif silent and len(silent) == len(found):
        yield Skipped(_clean(f"{silent[0].silenced}: {silent[0].reason}"))


def _line(one: Result) -> str:
    place = f"{one.file}:{one.line}: " if one.line else ""
    state = f" ({one.silenced}: {one.reason})" if one.silenced else ""
    fix = f"\nfix: {one.finding.fix}"
    return "\n".join(
        _clean(line)
        for line in f"{place}{one.finding.level}: {sentence(one)}{state}{fix}".split("\n")
    )


def _unread(path: str, reason: str) -> TestCase:
    case = _case("can be read", path)
    case.result = [Error(_clean(reason))]
    return case


def _verdict(report: AnyReport, path: str) -> Iterator[TestCase]:
    """Yield a failed test if the run fails without a failing finding."""
    said = unexplained(report)
    if said:
        case = _case("verdict", path)
        case.result = [Failure(_clean(said), "error")]
        yield case


def _case(name: str, path: str) -> TestCase:
    return TestCase(_clean(name), classname=_clean(path))


def _clean(text: str) -> str:
    """Escape control characters, which XML cannot hold."""
    return printable(text)
