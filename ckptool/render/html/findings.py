"""Findings -> FindingsSection: a card for each cause, with its consequences and its fix."""

from collections.abc import Iterator
from typing import Final

from ckptool.render import RenderOptions
from ckptool.render.blocks import ProblemCard
from ckptool.render.html.components import (
    FindingCard,
    FindingLine,
    FindingsSection,
    split_fix,
)
from ckptool.render.problem_cards import build_problems_blocks
from ckptool.render.text import split_code_spans
from ckptool.reports.common import FindingReport

_MAX_LINES: Final = 12
"""Maximum lines of one card; the rest is only counted. -v shows all."""


def build_findings_sections(
    findings: tuple[FindingReport, ...], options: RenderOptions, *, multiple_checkpoints: bool
) -> Iterator[FindingsSection]:
    """Yield the problems in report order, one section for each of several checkpoints."""
    blocks = build_problems_blocks(findings, options, multiple_checkpoints=multiple_checkpoints)
    for index, block in enumerate(blocks):
        yield FindingsSection(
            id=f"findings-{index}" if block.path else "findings",
            title=f"Problems: {block.path}" if block.path else "Problems",
            summary=block.summary,
            cards=tuple(_build_finding_card(card, options) for card in block.cards),
        )


def _build_finding_card(card: ProblemCard, options: RenderOptions) -> FindingCard:
    shown_lines = card.lines if options.verbosity > 0 else card.lines[:_MAX_LINES]
    return FindingCard(
        code=card.code,
        name=card.name.replace("-", " "),
        level=card.level,
        fix=split_fix(card.fix) if card.fix else (),
        fix_label=split_code_spans(_capitalize(card.fix_label)),
        lines=tuple(
            FindingLine(split_code_spans(line.message), split_fix(line.fix) if line.fix else ())
            for line in shown_lines
        ),
        more=len(card.lines) - len(shown_lines),
        consequences=tuple(map(split_code_spans, card.consequences)),
        follows_text=_capitalize(card.escalation) or "As a consequence",
    )


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
