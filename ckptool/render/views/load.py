"""LoadReport -> blocks."""

from collections.abc import Iterator

from ckptool.phrases import format_size, pluralize
from ckptool.render import RenderOptions
from ckptool.render.blocks import Block, LinesBlock, VerdictBlock, build_keys_table
from ckptool.render.views.migrate import build_steps_blocks
from ckptool.reports.load import LoadReport
from ckptool.reports.migrate import list_assumptions


def build_blocks(report: LoadReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    location = f" at `{report.at}`" if report.at else ""
    count = pluralize(report.tensor_count, "tensor")
    amount = f": {count}, {format_size(report.nbytes)}" if report.tensor_count else ""
    assumptions = [f"assumed: {text}" for text in list_assumptions(report.steps)]
    yield LinesBlock(
        (f"{report.path}{location} into {report.module}{amount}", *assumptions, *report.notes)
    )
    yield from build_steps_blocks(report.steps, options)
    for title, keys in (("Missing", report.missing), ("Unexpected", report.unexpected)):
        if keys:
            yield build_keys_table(title, keys, options)
    if report.questions:
        yield LinesBlock(tuple(f"open: {question}" for question in report.questions))
