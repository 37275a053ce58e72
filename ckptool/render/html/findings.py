"""Findings -> FindingsSection: a group for each rule, with its fix."""

from collections.abc import Iterator
from typing import Final

from ckptool.render import Style
from ckptool.render.blocks import Problem, by_path, problems
from ckptool.render.html.parts import Findings, Group, Said, words
from ckptool.report import FindingReport

_MOST_SAID: Final = 12
"""Maximum cards of one rule; the rest is only counted. -v shows all."""


def grouped(
    findings: tuple[FindingReport, ...], style: Style, *, several: bool
) -> Iterator[Findings]:
    """Yield findings by rule in report order, one section for each of several checkpoints."""
    for number, (path, found) in enumerate(by_path(findings, several=several).items()):
        for block in problems(found, style):
            yield Findings(
                id=f"findings-{number}" if path else "findings",
                title=f"Findings: {path}" if path else "Findings",
                summary=block.summary,
                groups=tuple(_groups(found, block.problems, style)),
            )


def _groups(
    findings: tuple[FindingReport, ...], folded: tuple[Problem, ...], style: Style
) -> Iterator[Group]:
    names = {one.code: one.name for one in findings}
    numbers: dict[tuple[str, str], int] = {}
    for finding in findings:
        form = finding.code, finding.level
        numbers[form] = numbers.get(form, 0) + 1
    for (code, level), number in numbers.items():
        of_it = [one for one in folded if (one.code, one.level) == (code, level)]
        shown = of_it if style.verbosity > 0 else of_it[:_MOST_SAID]
        fixes = {one.fix for one in of_it}
        same = len(fixes) == 1
        yield Group(
            code=code,
            name=names[code].replace("-", " "),
            level=level,
            count=number,
            fix=words(of_it[0].fix) if same else (),
            said=tuple(Said(words(p.message), () if same else words(p.fix)) for p in shown),
            more=len(of_it) - len(shown),
        )
