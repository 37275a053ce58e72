"""Report -> Page: verdict, findings, charts, tables and skipped checks."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from msgspec import UnsetType

from ckptool.phrases import make_printable
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    Block,
    LinesBlock,
    TableBlock,
    TreeBlock,
    VerdictBlock,
    build_silenced_lines,
    build_skipped_lines,
)
from ckptool.render.html import charts
from ckptool.render.html.components import (
    CodeSection,
    InlineText,
    Page,
    PageSection,
    TableSection,
    TextSection,
)
from ckptool.render.html.findings import build_findings_sections
from ckptool.render.html.heatmaps import build_heatmaps_section
from ckptool.render.html.summary import build_summary_facts, build_summary_lines
from ckptool.render.text import split_code_spans
from ckptool.render.views import build_body
from ckptool.reports.diff_files import DiffFilesReport
from ckptool.reports.gate import GateReport
from ckptool.reports.inspect import InspectReport
from ckptool.reports.migrate import MigrateReport
from ckptool.reports.verify import VerifyReport

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_TONES: Final = {0: "passed", 1: "failed", 2: "unknown"}
_TABLE_ID_PREFIX: Final = "table-"
_MAX_LINKS: Final = 9
_EXIT_TEXTS: Final = {
    0: "Exit code 0: passed",
    1: "Exit code 1: failed, or a difference was found",
    2: "Exit code 2: not everything could be checked",
}


def build_page(report: "AnyReport", options: RenderOptions) -> Page:
    """Build the page of `report`; a negative verbosity leaves only verdict and summary lines."""
    blocks = list(build_body(report, options))
    verdict = _format_title(report, blocks)
    optional_sections = (
        _iter_sections(report, blocks, options) if options.verbosity >= 0 else iter(())
    )
    sections = tuple(section for section in optional_sections if section is not None)
    return Page(
        command=report.command,
        title=verdict,
        verdict=split_code_spans(verdict),
        tone=_TONES[report.exit_code],
        exit_text=_EXIT_TEXTS[report.exit_code],
        summary=build_summary_lines(report) or _parse_lines(blocks[:2]),
        facts=build_summary_facts(report) if options.verbosity >= 0 else (),
        sections=sections,
        links=_build_links(sections),
    )


def _build_links(sections: tuple[PageSection, ...]) -> tuple[tuple[str, str], ...]:
    """Return (id, title) of the navigation; one link for all tables if sections are many."""
    if len(sections) <= _MAX_LINKS:
        return tuple((section.id, section.title) for section in sections)
    table_ids = [section.id for section in sections if section.id.startswith(_TABLE_ID_PREFIX)]
    other_links = [
        (section.id, section.title)
        for section in sections
        if not section.id.startswith(_TABLE_ID_PREFIX)
    ]
    return (*other_links, *((id_, "All tables") for id_ in table_ids[:1]))


def _format_title(report: "AnyReport", blocks: list[Block]) -> str:
    verdict_texts = [block.text for block in blocks if isinstance(block, VerdictBlock)]
    if isinstance(report, InspectReport):
        return (
            f"{len(verdict_texts)} checkpoints"
            if len(verdict_texts) != 1
            else report.checkpoints[0].path
        )
    return verdict_texts[0] if verdict_texts else f"ckptool {report.command}"


def _parse_lines(blocks: Iterable[Block]) -> tuple[InlineText, ...]:
    return tuple(
        split_code_spans(line)
        for block in blocks
        if isinstance(block, LinesBlock) and not block.language
        for line in block.lines
    )


def _iter_sections(
    report: "AnyReport", blocks: list[Block], options: RenderOptions
) -> Iterator[PageSection | None]:
    multiple_checkpoints = (
        isinstance(report, GateReport | InspectReport) and len(report.checkpoints) > 1
    )
    is_diff = isinstance(report, DiffFilesReport)
    has_main_tables = isinstance(report, GateReport | MigrateReport | VerifyReport)
    if is_diff:  # what changed is what a reader of two files came for
        yield from _iter_table_sections(report, blocks)
    yield from build_findings_sections(
        report.findings, options, multiple_checkpoints=multiple_checkpoints
    )
    yield _build_text_section(
        "silenced",
        "Findings that were waived or are known",
        build_silenced_lines(report.silenced, options),
    )
    if has_main_tables:
        yield from _iter_table_sections(report, blocks)
    yield charts.build_state_tree(report, options)
    if not isinstance(report.drawing, UnsetType):
        yield build_heatmaps_section("values", "Values of small buffers", report.drawing.pictures)
    yield from charts.build_charts(report)
    if not (is_diff or has_main_tables):
        yield from _iter_table_sections(report, blocks)
    yield _build_text_section(
        "skipped", "Not checked", build_skipped_lines(report.skipped, options)
    )


def _iter_table_sections(report: "AnyReport", blocks: list[Block]) -> Iterator[PageSection]:
    """Yield the tables and lines that every format shows, in block order."""
    multiple_checkpoints = isinstance(report, InspectReport) and len(report.checkpoints) > 1
    for index, block in enumerate(blocks):
        id_ = f"{_TABLE_ID_PREFIX}{index}"
        match block:
            case TableBlock():
                yield _build_table_section(id_, block)
            case TreeBlock():
                yield _build_table_section(id_, block.leaf_table)
            case VerdictBlock() if multiple_checkpoints:
                yield TextSection(
                    id=id_,
                    title=block.text.split(": ", 1)[0],
                    lines=(split_code_spans(block.text),),
                )
            case LinesBlock(language="diff"):
                text = "\n".join(map(make_printable, block.lines))
                yield CodeSection(id=id_, title="Diff", text=text)
            case LinesBlock() if index > 1:
                yield TextSection(id=id_, title="Notes", lines=_parse_lines([block]))
            case _:
                pass


def _build_table_section(id_: str, table: TableBlock) -> TableSection:
    title = table.title.replace("`", "")
    return TableSection(
        id=id_, title=title, columns=table.columns, rows=table.rows, more=table.more
    )


def _build_text_section(id_: str, title: str, blocks: Iterable[LinesBlock]) -> TextSection | None:
    lines = tuple(line.removeprefix("not checked: ") for block in blocks for line in block.lines)
    return (
        TextSection(id=id_, title=title, lines=tuple(map(split_code_spans, lines)))
        if lines
        else None
    )
