"""Findings -> FindingsSection: a group for each rule, with its fix."""

from collections.abc import Iterator
from typing import Final

from ckptool.render import RenderOptions
from ckptool.render.blocks import FoldedFinding, build_findings_blocks, group_by_path
from ckptool.render.html.components import (
    FindingCard,
    FindingsSection,
    RuleFindings,
    split_code_spans,
)
from ckptool.reports.common import FindingReport

_MAX_CARDS: Final = 12
"""Maximum cards of one rule; the rest is only counted. -v shows all."""


def build_findings_sections(
    findings: tuple[FindingReport, ...], options: RenderOptions, *, multiple_checkpoints: bool
) -> Iterator[FindingsSection]:
    """Yield findings by rule in report order, one section for each of several checkpoints."""
    for index, (path, path_findings) in enumerate(
        group_by_path(findings, multiple_checkpoints=multiple_checkpoints).items()
    ):
        for block in build_findings_blocks(path_findings, options):
            yield FindingsSection(
                id=f"findings-{index}" if path else "findings",
                title=f"Findings: {path}" if path else "Findings",
                summary=block.summary,
                groups=tuple(_group_by_rule(path_findings, block.findings, options)),
            )


def _group_by_rule(
    findings: tuple[FindingReport, ...],
    folded_findings: tuple[FoldedFinding, ...],
    options: RenderOptions,
) -> Iterator[RuleFindings]:
    names = {finding.code: finding.name for finding in findings}
    counts: dict[tuple[str, str], int] = {}
    for finding in findings:
        code_and_level = finding.code, finding.level
        counts[code_and_level] = counts.get(code_and_level, 0) + 1
    for (code, level), count in counts.items():
        rule_findings = [
            folded_finding
            for folded_finding in folded_findings
            if (folded_finding.code, folded_finding.level) == (code, level)
            and not folded_finding.omitted_count
        ]
        omitted_count = sum(
            folded_finding.omitted_count
            for folded_finding in folded_findings
            if (folded_finding.code, folded_finding.level) == (code, level)
        )
        shown_findings = rule_findings if options.verbosity > 0 else rule_findings[:_MAX_CARDS]
        fixes = {folded_finding.fix for folded_finding in rule_findings}
        has_same_fix = len(fixes) == 1
        yield RuleFindings(
            code=code,
            name=names[code].replace("-", " "),
            level=level,
            count=count,
            fix=split_code_spans(rule_findings[0].fix) if has_same_fix else (),
            cards=tuple(
                FindingCard(
                    split_code_spans(folded_finding.message),
                    () if has_same_fix else split_code_spans(folded_finding.fix),
                )
                for folded_finding in shown_findings
            ),
            more=len(rule_findings) - len(shown_findings) + omitted_count,
        )
