"""Report -> blocks, the same for all formats for people."""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, cast

from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    Block,
    VerdictBlock,
    build_silenced_lines,
    build_skipped_lines,
    cut_long_texts,
)
from ckptool.render.problem_cards import build_problems_blocks

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport


def build_blocks(report: "AnyReport", options: RenderOptions) -> Iterator[Block]:
    """Yield the blocks of `report`: its body, then findings, silenced findings, skipped checks."""
    yield from map(cut_long_texts, _iter_whole_blocks(report, options))


def _iter_whole_blocks(report: "AnyReport", options: RenderOptions) -> Iterator[Block]:
    yield from build_body(report, options)
    if report.module_reports:
        if options.verbosity >= 0:
            for part in report.module_reports:
                if part.has_details:
                    yield from _iter_part_blocks(cast("AnyReport", part), options)
            shown = {skipped for part in report.module_reports for skipped in part.skipped}
            others = tuple(skipped for skipped in report.skipped if skipped not in shown)
            yield from build_skipped_lines(others, options)
        return
    if options.verbosity >= 0 or report.command == "inspect":
        yield from build_problems_blocks(
            report.findings, options, multiple_checkpoints=report.has_multiple_checkpoints
        )
        yield from build_silenced_lines(report.silenced, options)
        yield from build_skipped_lines(report.skipped, options)


def _iter_part_blocks(report: "AnyReport", options: RenderOptions) -> Iterator[Block]:
    """Yield the blocks of one module of several; its verdict is in the table of all."""
    for block in _iter_whole_blocks(report, options):
        if not isinstance(block, VerdictBlock):
            yield block


def build_body(report: "AnyReport", options: RenderOptions) -> Iterator[Block]:
    """Yield the blocks of this kind of report: verdict, lines, tables.

    `reports/NAME.py` defines the report and `render/views/NAME.py` its blocks; NAME may have a
    folder, `revisions/upgrade`.
    """
    name = type(report).__module__.removeprefix("ckptool.reports.")
    blocks: Iterator[Block] = import_module(f"{__name__}.{name}").build_blocks(report, options)
    return blocks
