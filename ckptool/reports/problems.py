"""FindingReports -> Problems: the findings of each cause together, and their count in words."""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from ckptool.phrases import pluralize
from ckptool.reports.common import FindingReport

LEVELS: Final = ("error", "warning", "note")
"""The worst first."""


class Problem(Struct, frozen=True):
    """One cause and its findings."""

    main_findings: tuple[FindingReport, ...]
    """Findings of one rule that say what is wrong, and what to change."""
    consequences: tuple[FindingReport, ...] = ()
    """Findings of other rules that go when the cause goes."""

    @property
    def main(self) -> FindingReport:
        return self.main_findings[0]

    @property
    def findings(self) -> tuple[FindingReport, ...]:
        return self.main_findings + self.consequences

    @property
    def level(self) -> str:
        """The worst level of its findings."""
        return min((finding.level for finding in self.findings), key=LEVELS.index)

    @property
    def paths(self) -> tuple[str, ...]:
        """Checkpoints concerned, in the order of the findings."""
        return tuple(dict.fromkeys(finding.path for finding in self.findings))


def group_by_cause(findings: Iterable[FindingReport]) -> tuple[Problem, ...]:
    """Return the problems, in the order of their first findings: the worst first.

    A finding without a cause is a problem by itself.
    """
    groups: dict[object, tuple[list[FindingReport], list[FindingReport]]] = {}
    for index, finding in enumerate(findings):
        main_findings, consequences = groups.setdefault(finding.cause or index, ([], []))
        (consequences if finding.is_consequence else main_findings).append(finding)
    return tuple(
        Problem(tuple(main_findings), tuple(consequences))
        if main_findings
        else Problem(tuple(consequences))
        for main_findings, consequences in groups.values()
    )


def count_problems(problems: Sequence[Problem]) -> str:
    """Return "1 error, 2 notes", and the number of findings if it is larger; "" for none."""
    levels = [problem.level for problem in problems]
    counts = ", ".join(pluralize(levels.count(level), level) for level in LEVELS if level in levels)
    finding_count = sum(len(problem.findings) for problem in problems)
    return f"{counts} ({finding_count:,} findings)" if finding_count > len(problems) else counts
